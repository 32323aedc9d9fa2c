"""The device's key and certificate: files in ``DATA/identity``.

Invariant: the key is made on the device, never leaves it, and is never made anew where one lies, whole or broken: what
happens to a device that lost its key is a person's decision. Does not talk to anyone (`enrol.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from agent import durable
from agent.errors import DeviceError

PrivateKey = ec.EllipticCurvePrivateKey

KEY_FILE: Final = "key.pem"
CERTIFICATE_FILE: Final = "certificate.pem"
CA_FILE: Final = "ca.pem"
_ADVICE: Final = "restore the file, or remove the directory to enrol this machine as a new device"


def make_or_load_key(directory: Path) -> PrivateKey:
    """Return the device's key; make one (P-256, file mode 0600) where there is no file. Raises DeviceError."""
    path = directory / KEY_FILE
    if path.exists() or path.is_symlink():
        return load_key(directory)
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    durable.make_directory(directory, "identity.directory")
    durable.write_atomic(path, pem, "identity.key")
    return key


def load_key(directory: Path) -> PrivateKey:
    """Return the key in ``directory``. Raises DeviceError ("bad_key") when it cannot be read or is of another kind."""
    path = directory / KEY_FILE
    try:
        key = serialization.load_pem_private_key(read(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise DeviceError(f"the device's key {path} is broken: {error}; {_ADVICE}", "bad_key") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise DeviceError(f"the device's key {path} is not on the curve P-256; {_ADVICE}", "bad_key")
    return key


def certificate_request(key: PrivateKey) -> str:
    """Return a PEM request that proves possession of ``key``; its name is a placeholder (wire 8.3)."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "muster device")])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode()


def check_certificate(pem: bytes, key: PrivateKey, device: str) -> x509.Certificate:
    """Return the first certificate in ``pem`` if it is for ``key`` and names ``device``.

    Raises DeviceError ("bad_certificate"). Its dates are not judged: an expired certificate stops changes, which is
    the broker's word, and never serving.
    """
    try:
        certificate = x509.load_pem_x509_certificates(pem)[0]
        names = [str(name.value) for name in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    except ValueError as error:
        raise DeviceError(f"the device's certificate is broken: {error}; {_ADVICE}", "bad_certificate") from error
    if certificate.public_key() != key.public_key():
        raise DeviceError(f"the device's certificate does not fit its key; {_ADVICE}", "bad_certificate")
    if names != [device]:
        raise DeviceError(f"the device's certificate is for {names}, not for {device}; {_ADVICE}", "bad_certificate")
    return certificate


def read(path: Path, limit: int = 256 * 1024) -> bytes:
    """Return the bytes of ``path``. Raises DeviceError ("missing_file" or "unreadable_file"), also beyond ``limit``."""
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except FileNotFoundError as error:
        raise DeviceError(f"{path} is missing; {_ADVICE}", "missing_file") from error
    except OSError as error:
        raise DeviceError(f"{path} cannot be read: {error.strerror}", "unreadable_file") from error
    if len(data) > limit:
        raise DeviceError(f"{path} is larger than {limit} bytes; {_ADVICE}", "unreadable_file")
    return data
