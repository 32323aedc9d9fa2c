"""The key that vouches for assignments.

Invariant: made once, at the first start, in a file that its owner alone can read; never replaced by a new one while a
file is there, even an unreadable one, because devices have pinned it. Knows no other key.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ed25519

from controller.devices.key_files import read_private_key, write_private
from controller.errors import UnavailableError
from wire.envelope import PrivateKey, encode_public_key

FILE_NAME: Final = "assignment.key"


def assignment_key(directory: Path) -> PrivateKey:
    """Return the key in ``directory`` (made with mode 0700), making it when there is none. Raises UnavailableError."""
    path = directory / FILE_NAME
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        present = path.exists()
    except OSError as error:
        raise UnavailableError(f"{directory}: {error}; check the data directory", "file_unwritable") from error
    if not present:
        write_private(path, ed25519.Ed25519PrivateKey.generate())
    return read_private_key(path)


def public_text(key: PrivateKey) -> str:
    """Return the public half as the trust bundle names it (wire 8.2)."""
    return encode_public_key(key.public_key())
