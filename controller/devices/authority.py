"""The fleet CA: who is a device, who is the controller, which server is ours.

Invariant: a device's name is drawn here and nowhere else; no name in a signing request is ever used. Devices, the
controller's own clients and servers each have an issuer of their own and a name of another form, so that no
certificate can stand for a thing of another kind; the broker's operator descends from a root of its own, so that
nobody below the fleet's root reaches that door. Does not decide who may have a certificate (`enrolment.py`).
"""

from __future__ import annotations

import base64
import ipaddress
import itertools
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from controller.devices.key_files import read_private_key, write_private, write_public
from controller.devices.revocation import Held
from controller.errors import InvalidError, UnavailableError
from wire.envelope import PublicKey
from wire.topics import DEVICE_ID

CONTROLLER_NAME: Final = "c-control"
OPERATOR_NAME: Final = "o-control"
ROOT_YEARS: Final = 10
ISSUER_YEARS: Final = 5
DEVICE_DAYS: Final = 30
OWN_DAYS: Final = 397  # the controller's client and servers: made anew at a start when less than half is left
BACKDATED: Final = timedelta(hours=24)  # boards without a clock battery are often behind
DEVICES, CONTROLLER, SERVING, OPERATING = "devices", "controller", "serving", "operating"
_USES: Final = (DEVICES, CONTROLLER, SERVING)
_CLIENTS: Final = (DEVICES, CONTROLLER)
NEXT, PREVIOUS = "next", "previous"
MAX_CSR_BYTES: Final = 16_384


@dataclass(frozen=True, slots=True)
class Certificate:
    """An issued certificate: ``pem``; ``serial`` in hex; ``expires`` in seconds since 1970."""

    pem: str
    serial: str
    issued: float
    expires: float


@dataclass(frozen=True, slots=True)
class Files:
    """A certificate on disk, followed by its issuer in the same file, and its key (mode 0600)."""

    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class _Issuer:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


class Authority:
    """The fleet CA in ``directory`` (mode 0700), made there when it is missing. Raises UnavailableError.

    While it is being replaced (`rotation.py`) another one lies in a directory below: ``NEXT`` before, ``PREVIOUS``
    after the switch. Both are believed; only this one issues. ``below``: it is that other one.
    """

    def __init__(self, directory: Path, now: float, *, below: bool = False) -> None:
        self.directory = directory
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise UnavailableError(f"fleet CA {directory}: {error}; check the data directory", "ca_unusable") from error
        self._root = self._load("root") or self._make_root(now)
        self._issuers = {use: self._load(use) or self._make_issuer(use, now) for use in _USES}
        if not below:
            self._issuers[OPERATING] = self._load(OPERATING) or self._make_root(now, OPERATING)
        self.root_pem = _pem(self._root.certificate)
        self._held: tuple[tuple[int, int, int], Held] | None = None
        others = [directory / name for name in (NEXT, PREVIOUS)]
        self._others = [Authority(other, now, below=True) for other in others if other.is_dir()]
        believed = [(one.root_pem, one.chain_pem(DEVICES), one.chain_pem(CONTROLLER)) for one in self._all]
        write_public(self.client_roots, "".join("".join(texts) for texts in believed))

    @property
    def _all(self) -> list[Authority]:
        return [self, *self._others]

    @property
    def client_roots(self) -> Path:
        """The file with the root and the issuers of clients, for a server that asks for client certificates."""
        return self.directory / "clients.pem"

    @property
    def root_file(self) -> Path:
        """The file with the root certificate."""
        return self.directory / "root.pem"

    @property
    def operating_root_file(self) -> Path:
        """The file with the root of the broker's operator, which has nothing to do with the fleet's."""
        return self.directory / f"{OPERATING}.pem"

    @property
    def list_file(self) -> Path:
        """The file with the lists of revoked certificates, one of each issuer of clients."""
        return self.directory / "revoked.pem"

    def chain_pem(self, use: str) -> str:
        """Return the issuer of the certificates for ``use``: what stands between them and the root."""
        return _pem(self._issuers[use].certificate)

    def ends(self) -> tuple[float, float]:
        """Return when the first of the CA's certificates ends, and when the first of the controller's own."""
        issuers = [self._root, *self._issuers.values()]
        own = [file for use in self._issuers for file in self.directory.glob(f"*-{use}.pem")]
        held = [x509.load_pem_x509_certificates(file.read_bytes())[0] for file in own]
        return (
            min(issuer.certificate.not_valid_after_utc.timestamp() for issuer in issuers),
            min((one.not_valid_after_utc.timestamp() for one in held), default=float("inf")),
        )

    @property
    def roots_pem(self) -> str:
        """The certificates from which the fleet's servers may descend, as devices are told at a renewal."""
        return "".join(one.root_pem for one in self._all)

    def issued_by_us(self, device_pem: str) -> bool:
        """Whether the authority that issues to devices now has issued this certificate."""
        try:
            x509.load_pem_x509_certificate(device_pem.encode()).verify_directly_issued_by(
                self._issuers[DEVICES].certificate
            )
        except (ValueError, TypeError, InvalidSignature):
            return False
        return True

    def new_device_name(self) -> str:
        """Return a fresh device id: "d-" and 26 base32 characters of 16 random bytes."""
        return "d-" + base64.b32encode(secrets.token_bytes(16)).decode().rstrip("=").lower()

    def issue_device(self, device: str, tenant: str, key: PublicKey, now: float) -> Certificate:
        """Return a client certificate for ``device``, good for ``DEVICE_DAYS`` days. Times: seconds since 1970."""
        if not DEVICE_ID.match(device):
            raise InvalidError(f"{device!r} is not a device id", "bad_device")
        names = [x509.UniformResourceIdentifier(f"spiffe://muster/tenant/{tenant}/device/{device}")]
        return self._issue(DEVICES, device, key, names, ExtendedKeyUsageOID.CLIENT_AUTH, DEVICE_DAYS, now)

    def controller_files(self, now: float) -> Files:
        """Return the controller's own client certificate (its name: ``CONTROLLER_NAME``)."""
        names = [x509.UniformResourceIdentifier(f"spiffe://muster/controller/{CONTROLLER_NAME}")]
        return self._own(CONTROLLER, "control", CONTROLLER_NAME, names, ExtendedKeyUsageOID.CLIENT_AUTH, now)

    def operator_files(self, now: float) -> Files:
        """Return the certificate with which the controller cuts connections at the broker (``OPERATOR_NAME``)."""
        names = [x509.UniformResourceIdentifier(f"spiffe://muster/operator/{OPERATOR_NAME}")]
        return self._own(OPERATING, "operator", OPERATOR_NAME, names, ExtendedKeyUsageOID.CLIENT_AUTH, now)

    def held_list(self) -> Held | None:
        """Return what is in ``list_file``; None when it is missing or broken. It is read again when it has changed."""
        try:
            stat = self.list_file.stat()
            which = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
            if self._held is None or self._held[0] != which:
                self._held = (which, self._read_list())
        except (OSError, ValueError):
            self._held = None
        return self._held[1] if self._held else None

    def _read_list(self) -> Held:
        lists = [x509.load_pem_x509_crl(pem) for pem in _split_lists(self.list_file.read_bytes())]
        return Held(
            serials=frozenset(f"{entry.serial_number:x}" for one in lists for entry in one),
            issuers=frozenset(one.issuer.rfc4514_string() for one in lists),
            begins=min(one.last_update_utc.timestamp() for one in lists),
            ends=min(one.next_update_utc.timestamp() for one in lists if one.next_update_utc is not None),
        )

    @property
    def list_issuers(self) -> frozenset[str]:
        """Who signs the lists in ``list_file``."""
        issuers = [one._issuers[use] for one in self._all for use in _CLIENTS]
        return frozenset(issuer.certificate.subject.rfc4514_string() for issuer in issuers)

    def write_list(self, serials: Iterable[str], begins: float, ends: float) -> None:
        """Write ``list_file`` in one step. ``serials`` in hex; times in seconds since 1970. Raises UnavailableError."""
        at = _time(begins)
        revoked = [
            x509.RevokedCertificateBuilder().serial_number(int(serial, 16)).revocation_date(at).build()
            for serial in sorted(serials)
        ]
        texts = []
        for one, use in itertools.product(self._all, _CLIENTS):
            issuer = one._issuers[use]
            builder = x509.CertificateRevocationListBuilder(
                issuer_name=issuer.certificate.subject,
                last_update=at,
                next_update=_time(ends),
                revoked_certificates=revoked if use == DEVICES else [],
            )
            signed = (
                builder.add_extension(x509.CRLNumber(int(begins)), critical=False)
                .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()), False)
                .sign(issuer.key, hashes.SHA256())
            )
            texts.append(signed.public_bytes(serialization.Encoding.PEM).decode())
        write_public(self.list_file, "".join(texts))

    def server_files(self, name: str, hosts: Sequence[str], now: float) -> Files:
        """Return a server certificate for ``hosts`` (names or addresses) and for this very machine.

        name: a short word for the files ("api", "mqtt"). Made anew when the hosts change or half its life is over.
        """
        wanted = list(dict.fromkeys(["localhost", "127.0.0.1", "::1", *(host for host in hosts if host)]))
        names = [_general_name(host) for host in wanted]
        return self._own(SERVING, name, f"s-{name}", names, ExtendedKeyUsageOID.SERVER_AUTH, now)

    def _own(
        self,
        use: str,
        stem: str,
        common_name: str,
        names: Sequence[x509.GeneralName],
        usage: x509.ObjectIdentifier,
        now: float,
    ) -> Files:
        files = Files(self.directory / f"{stem}-{use}.pem", self.directory / f"{stem}-{use}.key")
        if self._still_good(files, use, names, now):
            return files
        key = ec.generate_private_key(ec.SECP256R1())
        made = self._issue(use, common_name, key.public_key(), names, usage, OWN_DAYS, now)
        write_private(files.key, key)
        write_public(files.certificate, made.pem + self.chain_pem(use))
        return files

    def _still_good(self, files: Files, use: str, names: Sequence[x509.GeneralName], now: float) -> bool:
        if not (files.certificate.exists() and files.key.exists()):
            return False
        try:
            held = x509.load_pem_x509_certificates(files.certificate.read_bytes())[0]
            held.verify_directly_issued_by(self._issuers[use].certificate)
            held_names = held.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except (OSError, ValueError, TypeError, InvalidSignature, IndexError, x509.ExtensionNotFound):
            return False
        half = timedelta(days=OWN_DAYS / 2)
        fits = held.public_key() == read_private_key(files.key).public_key()
        return fits and list(held_names) == list(names) and _time(now) < held.not_valid_after_utc - half

    def _issue(
        self,
        use: str,
        common_name: str,
        key: PublicKey,
        names: Sequence[x509.GeneralName],
        usage: x509.ObjectIdentifier,
        days: float,
        now: float,
    ) -> Certificate:
        issuer = self._issuers[use]
        serial = x509.random_serial_number()
        ends = min(_time(now) + timedelta(days=days), issuer.certificate.not_valid_after_utc)
        certificate = (
            _builder(common_name, issuer.certificate.subject, key, serial, _time(now) - BACKDATED, ends)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()), critical=False)
            .sign(issuer.key, hashes.SHA256())
        )
        return Certificate(_pem(certificate), f"{serial:x}", now, ends.timestamp())

    def _make_root(self, now: float, stem: str = "root") -> _Issuer:
        key = ec.generate_private_key(ec.SECP256R1())
        title = f"muster {stem} {secrets.token_hex(4)}"
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, title)])
        return self._keep(stem, title, name, key, key, ROOT_YEARS, 1, now)

    def _make_issuer(self, use: str, now: float) -> _Issuer:
        key = ec.generate_private_key(ec.SECP256R1())
        title = f"muster {use} {secrets.token_hex(4)}"
        return self._keep(use, title, self._root.certificate.subject, key, self._root.key, ISSUER_YEARS, 0, now)

    def _keep(
        self,
        stem: str,
        title: str,
        issuer: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        signer: ec.EllipticCurvePrivateKey,
        years: int,
        path_length: int,
        now: float,
    ) -> _Issuer:
        begins = _time(now) - BACKDATED
        ends = _time(now) + timedelta(days=365 * years)
        certificate = (
            _builder(title, issuer, key.public_key(), x509.random_serial_number(), begins, ends)
            .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
            .sign(signer, hashes.SHA256())
        )
        write_private(self.directory / f"{stem}.key", key)  # the key first: a certificate without one is of no use
        write_public(self.directory / f"{stem}.pem", _pem(certificate))
        return _Issuer(certificate, key)

    def _load(self, stem: str) -> _Issuer | None:
        certificate, key = self.directory / f"{stem}.pem", self.directory / f"{stem}.key"
        if not certificate.exists():
            return None
        try:
            loaded = x509.load_pem_x509_certificate(certificate.read_bytes())
        except (OSError, ValueError) as error:
            raise UnavailableError(f"fleet CA: {certificate} is unreadable: {error}", "ca_unusable") from error
        private = read_private_key(key)
        if not isinstance(private, ec.EllipticCurvePrivateKey) or private.public_key() != loaded.public_key():
            raise UnavailableError(f"fleet CA: {key} does not belong to {certificate}", "ca_unusable")
        return _Issuer(loaded, private)


def read_request(csr_pem: str) -> PublicKey:
    """Return the public key of a signing request, whose names are ignored (wire 8.3).

    Raises InvalidError unless the request is signed with that key, which is Ed25519 or on the curve P-256.
    """
    if len(csr_pem) > MAX_CSR_BYTES:
        raise InvalidError("the signing request is too large", "bad_csr")
    try:
        request = x509.load_pem_x509_csr(csr_pem.encode())
        key = request.public_key()
        proven = request.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise InvalidError(f"the signing request cannot be read: {error}", "bad_csr") from error
    if not isinstance(key, ed25519.Ed25519PublicKey) and not (
        isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1)
    ):
        raise InvalidError("a device's key must be Ed25519 or on the curve P-256", "bad_key")
    if not proven:
        raise InvalidError("the signing request is not signed with its own key", "bad_csr")
    return key


def _builder(
    common_name: str, issuer: x509.Name, key: PublicKey, serial: int, begins: datetime, ends: datetime
) -> x509.CertificateBuilder:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(serial)
        .not_valid_before(begins)
        .not_valid_after(ends)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _split_lists(data: bytes) -> list[bytes]:
    end = b"-----END X509 CRL-----"
    found = [part + end for part in data.split(end)[:-1]]
    if not found:
        raise ValueError("no list")
    return found


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _time(now: float) -> datetime:
    return datetime.fromtimestamp(now, UTC).replace(microsecond=0)
