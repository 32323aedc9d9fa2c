"""The fleet CA: names come from here only, keys are proven, and no certificate stands for a thing of another kind."""

from __future__ import annotations

import ipaddress
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from controller.devices.authority import (
    CONTROLLER,
    CONTROLLER_NAME,
    DEVICES,
    OWN_DAYS,
    SERVING,
    Authority,
    read_request,
)
from controller.errors import InvalidError, UnavailableError
from wire.topics import DEVICE_ID

NOW = 1_790_000_000.0
DAY = 86_400.0


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ca", NOW)


def request(
    key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey, name: str = "c-control"
) -> str:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    made = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, algorithm)
    return made.public_bytes(serialization.Encoding.PEM).decode()


def common_name(certificate: x509.Certificate) -> str:
    return str(certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)


@pytest.mark.parametrize("key", [ec.generate_private_key(ec.SECP256R1()), ed25519.Ed25519PrivateKey.generate()])
def test_a_device_certificate(authority: Authority, key: ec.EllipticCurvePrivateKey) -> None:
    device = authority.new_device_name()
    issued = authority.issue_device(device, "default", read_request(request(key)), NOW)
    certificate = x509.load_pem_x509_certificate(issued.pem.encode())
    assert DEVICE_ID.match(device)
    assert common_name(certificate) == device  # not the name in the request
    assert certificate.public_key() == key.public_key()
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    assert list(usage.value) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert certificate.not_valid_before_utc.timestamp() == NOW - DAY
    assert certificate.not_valid_after_utc.timestamp() == NOW + 30 * DAY == issued.expires
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    assert uris == [f"spiffe://muster/tenant/default/device/{device}"]
    assert int(issued.serial, 16) == certificate.serial_number


def test_device_names_are_drawn_anew(authority: Authority) -> None:
    assert len({authority.new_device_name() for _ in range(200)}) == 200


@pytest.mark.parametrize("name", [CONTROLLER_NAME, "", "d-short", "d-" + "A" * 26])
def test_a_device_cannot_be_named_otherwise(authority: Authority, name: str) -> None:
    with pytest.raises(InvalidError):
        authority.issue_device(name, "default", ed25519.Ed25519PrivateKey.generate().public_key(), NOW)


def test_wrong_requests_are_refused() -> None:
    with pytest.raises(InvalidError) as told:
        read_request(request(rsa.generate_private_key(public_exponent=65537, key_size=2048)))
    assert told.value.code == "bad_key"
    with pytest.raises(InvalidError) as told:
        read_request(request(ec.generate_private_key(ec.SECP384R1())))
    assert told.value.code == "bad_key"
    for text in ("", "nonsense", "x" * 20_000, "\ud800", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n"):
        with pytest.raises(InvalidError) as told:
            read_request(text)
        assert told.value.code == "bad_csr"


def test_a_request_signed_with_another_key_is_refused() -> None:
    mine, theirs = ed25519.Ed25519PrivateKey.generate(), ed25519.Ed25519PrivateKey.generate()
    der = x509.load_pem_x509_csr(request(mine).encode()).public_bytes(serialization.Encoding.DER)
    raw = (serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    forged = der.replace(mine.public_key().public_bytes(*raw), theirs.public_key().public_bytes(*raw))
    pem = x509.load_der_x509_csr(forged).public_bytes(serialization.Encoding.PEM).decode()
    with pytest.raises(InvalidError, match="its own key"):
        read_request(pem)


def test_the_chain_is_that_of_its_use(authority: Authority) -> None:
    root = x509.load_pem_x509_certificate(authority.root_pem.encode())
    for use in (DEVICES, CONTROLLER, SERVING):
        issuer = x509.load_pem_x509_certificate(authority.chain_pem(use).encode())
        issuer.verify_directly_issued_by(root)
    device = authority.issue_device(
        authority.new_device_name(), "default", ed25519.Ed25519PrivateKey.generate().public_key(), NOW
    )
    certificate = x509.load_pem_x509_certificate(device.pem.encode())
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.chain_pem(DEVICES).encode()))
    own = x509.load_pem_x509_certificates(authority.controller_files(NOW).certificate.read_bytes())
    assert common_name(own[0]) == CONTROLLER_NAME
    own[0].verify_directly_issued_by(own[1])
    assert own[1].public_bytes(serialization.Encoding.PEM).decode() == authority.chain_pem(CONTROLLER)


def test_a_server_certificate(authority: Authority) -> None:
    files = authority.server_files("api", ["10.1.2.3", "fleet.example", ""], NOW)
    certificate = x509.load_pem_x509_certificate(files.certificate.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert set(names.get_values_for_type(x509.DNSName)) == {"localhost", "fleet.example"}
    addresses = {ipaddress.ip_address(text) for text in ("127.0.0.1", "::1", "10.1.2.3")}
    assert set(names.get_values_for_type(x509.IPAddress)) == addresses
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    assert list(usage.value) == [ExtendedKeyUsageOID.SERVER_AUTH]


def test_own_certificates_are_kept_until_they_no_longer_fit(authority: Authority) -> None:
    first = authority.server_files("api", ["a.example"], NOW).certificate.read_bytes()
    assert authority.server_files("api", ["a.example"], NOW + DAY).certificate.read_bytes() == first
    assert authority.server_files("api", ["b.example"], NOW + DAY).certificate.read_bytes() != first
    second = authority.server_files("api", ["b.example"], NOW).certificate.read_bytes()
    old = NOW + DAY + OWN_DAYS * DAY / 2
    assert authority.server_files("api", ["b.example"], old - 1).certificate.read_bytes() == second
    assert authority.server_files("api", ["b.example"], old).certificate.read_bytes() != second
    files = authority.controller_files(NOW)
    held = files.certificate.read_bytes()
    files.key.write_bytes((authority.directory / "root.key").read_bytes())
    assert authority.controller_files(NOW).certificate.read_bytes() != held


def test_keys_are_private_and_survive_a_restart(authority: Authority) -> None:
    for path in authority.directory.glob("*.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = Authority(authority.directory, NOW + DAY)
    assert again.root_pem == authority.root_pem
    assert again.chain_pem(DEVICES) == authority.chain_pem(DEVICES)


def test_a_foreign_or_missing_root_key_is_told(authority: Authority, tmp_path: Path) -> None:
    other = Authority(tmp_path / "other", NOW)
    (authority.directory / "root.key").write_bytes((other.directory / "root.key").read_bytes())
    with pytest.raises(UnavailableError, match="does not belong"):
        Authority(authority.directory, NOW)
    (authority.directory / "root.key").unlink()
    with pytest.raises(UnavailableError, match=r"root\.key"):
        Authority(authority.directory, NOW)


def test_nothing_outlives_its_issuer(authority: Authority) -> None:
    issuer = x509.load_pem_x509_certificate(authority.chain_pem(DEVICES).encode())
    late = issuer.not_valid_after_utc.timestamp() - DAY
    key = ed25519.Ed25519PrivateKey.generate().public_key()
    issued = authority.issue_device(authority.new_device_name(), "default", key, late)
    assert datetime.fromtimestamp(issued.expires, UTC) == issuer.not_valid_after_utc


def test_it_says_when_the_first_of_its_certificates_ends(authority: Authority) -> None:
    assert authority.ends() == (NOW + 5 * 365 * DAY, float("inf"))
    authority.controller_files(NOW + 10 * DAY)
    authority.server_files("api", [], NOW)
    assert authority.ends() == (NOW + 5 * 365 * DAY, NOW + OWN_DAYS * DAY)
    authority.operator_files(NOW - 2 * DAY)
    assert authority.ends()[1] == NOW + (OWN_DAYS - 2) * DAY


def test_a_list_is_read_again_only_when_it_has_changed(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    assert authority.held_list() is None
    authority.write_list(["a1", "b2"], NOW, NOW + DAY)
    first = authority.held_list()
    assert first is not None
    assert (first.serials, first.begins, first.ends) == ({"a1", "b2"}, NOW, NOW + DAY)
    monkeypatch.setattr(x509, "load_pem_x509_crl", lambda pem: pytest.fail("read again"))
    assert authority.held_list() is first
    monkeypatch.undo()
    other = Authority(authority.directory, NOW)  # as another process of the controller writes it
    other.write_list(["a1", "b3"], NOW + 1, NOW + DAY)
    assert authority.held_list() == other.held_list()
    authority.list_file.write_text("broken")
    assert authority.held_list() is None
