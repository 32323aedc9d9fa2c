"""The controller's own signing keys that no device knows: for access tokens and for the audit trail's heads.

Invariant: made once, in a file that its owner alone can read; a file that is there is never replaced, not even an
unreadable one. One key for one purpose.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ed25519

from controller.devices.key_files import read_private_key, write_private
from controller.errors import UnavailableError

ACCESS: Final = "access.key"  # signs operators' access tokens
AUDIT: Final = "audit.key"  # signs the heads of the audit trail


def signing_key(directory: Path, name: str) -> ed25519.Ed25519PrivateKey:
    """Return the key ``name`` in ``directory``, making it when there is none. Raises UnavailableError."""
    path = directory / name
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        present = path.exists()
    except OSError as error:
        raise UnavailableError(f"{directory}: {error}; check the data directory", "file_unwritable") from error
    if not present:
        write_private(path, ed25519.Ed25519PrivateKey.generate())
    key = read_private_key(path)
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise UnavailableError(f"key {path} is of a kind that is not used here", "bad_key_file")
    return key
