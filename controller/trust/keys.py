"""The controller's own keys of a repository: for snapshot and timestamp, which say how things stand now.

A key is changed in two steps: `make_next` makes one beside the one in use, and once a root names it `settle` puts it in
its place. Which of the two signs is decided by the root alone, so that a crash between the steps changes nothing.

Invariant: nothing here can vouch for a build or for another key; the offline keys are never read by this program while
it serves (`ceremony.py`). Keys are files of mode 0600 under the data directory.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.signer import CryptoSigner, Key  # type: ignore[attr-defined]
from tuf.api.metadata import Root

from controller.devices.key_files import read_private_key, write_private
from controller.errors import UnavailableError
from controller.trust.layout import ONLINE, SNAPSHOT, TIMESTAMP


@dataclass(frozen=True)
class OnlineKeys:
    """The signers of snapshot and timestamp."""

    snapshot: CryptoSigner
    timestamp: CryptoSigner

    def signer(self, role: str) -> CryptoSigner:
        """Return the signer of ``role``, one of `layout.ONLINE`."""
        return {SNAPSHOT: self.snapshot, TIMESTAMP: self.timestamp}[role]

    def public(self, role: str) -> Key:
        """Return the public key of ``role``."""
        return self.signer(role).public_key


def online_keys(directory: Path) -> OnlineKeys:
    """Return the online keys in ``directory``, made when missing. Raises UnavailableError."""
    return OnlineKeys(**{role: signer(directory / f"{role}.pem") for role in ONLINE})


def keys_for(directory: Path, root: Root) -> OnlineKeys:
    """Return the online keys that ``root`` names; where it names none of ours, those in use."""
    return OnlineKeys(**{role: _named(directory, role, root) for role in ONLINE})


def make_next(directory: Path, role: str) -> Key:
    """Make a new key that a next root may name for ``role``, in place of one that none names."""
    key = Ed25519PrivateKey.generate()
    write_private(_next(directory, role), key)
    return CryptoSigner(key).public_key


def settle(directory: Path, root: Root) -> list[str]:
    """Put keys that ``root`` names in the place of those in use; return the roles. The old keys are gone then."""
    settled = []
    for role in ONLINE:
        file = _next(directory, role)
        if file.exists() and signer(file).public_key.keyid in root.roles[role].keyids:
            with contextlib.suppress(FileNotFoundError):  # another thread was first
                file.replace(directory / f"{role}.pem")
                settled.append(role)
    return settled


def _named(directory: Path, role: str, root: Root) -> CryptoSigner:
    for file in (directory / f"{role}.pem", _next(directory, role)):
        if file.exists():
            found = signer(file)
            if found.public_key.keyid in root.roles[role].keyids:
                return found
    return signer(directory / f"{role}.pem")


def _next(directory: Path, role: str) -> Path:
    return directory / f"{role}.next.pem"


def signer(file: Path) -> CryptoSigner:
    """Return the signer whose Ed25519 key lies in ``file``, made when missing. Raises UnavailableError."""
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        there = file.exists()
    except OSError as error:
        raise UnavailableError(f"key {file}: {error}; check the data directory", "no_key") from error
    if not there:
        write_private(file, Ed25519PrivateKey.generate())
    key = read_private_key(file)
    if not isinstance(key, Ed25519PrivateKey):
        raise UnavailableError(f"key {file} is not an Ed25519 key; restore it from a backup", "bad_key_file")
    return CryptoSigner(key)
