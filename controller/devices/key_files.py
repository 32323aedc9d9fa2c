"""Keys and certificates on disk.

Invariant: a private key's file has mode 0600 from its first byte on, and a file holds the whole old or the whole new
content, whatever happens in between. Knows nothing about what a key is for.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from controller.errors import UnavailableError
from wire.envelope import PrivateKey


def write_private(path: Path, key: PrivateKey) -> None:
    """Write ``key`` as PKCS#8 PEM. Raises UnavailableError."""
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    _replace(path, pem, 0o600)


def write_public(path: Path, text: str) -> None:
    """Write ``text``, unless the file holds it already. Raises UnavailableError."""
    data = text.encode()
    try:
        if path.read_bytes() == data:
            return
    except OSError:
        pass  # missing or unreadable: written below, which reports what is wrong
    _replace(path, data, 0o644)


def read_private_key(path: Path) -> PrivateKey:
    """Return the key in ``path``. Raises UnavailableError unless it is Ed25519 or an elliptic-curve key."""
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise UnavailableError(
            f"key {path} cannot be read: {error}; restore it from a backup", "bad_key_file"
        ) from error
    if not isinstance(key, ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey):
        raise UnavailableError(f"key {path} is of a kind that is not used here", "bad_key_file")
    return key


def _replace(path: Path, data: bytes, mode: int) -> None:
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise UnavailableError(f"{path} cannot be written: {error}", "file_unwritable") from error
