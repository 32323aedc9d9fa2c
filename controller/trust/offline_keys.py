"""Key files of people: root and targets keys in directories that an operator names, on media that are put away.

Invariant: a file is readable by its owner alone from its first byte on, is never overwritten, and its name tells role
and key: `muster-ROLE-KEYID.pem`. Either all new keys of a ceremony are written and synced, or none is left. Read by
commands at a ceremony only, never by what serves.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from securesystemslib.signer import CryptoSigner, Key, SSlibKey  # type: ignore[attr-defined]

from controller.errors import ConflictError, InvalidError, UnavailableError
from wire.envelope import decode_public_key
from wire.errors import WireError

SHORT: Final = 16
MAX_FILE: Final = 16_384
MAX_FILES: Final = 256  # key files in one directory
_NAME: Final = re.compile(rf"muster-(root|targets)-([0-9a-f]{{{SHORT}}})\.pem")

Passphrases = Callable[[Path], Sequence[bytes]]  # asked only for a file that is encrypted; all are tried


@dataclass(frozen=True)
class NewKey:
    """A key that was made: where it lies, and what signs with it."""

    file: Path
    signer: CryptoSigner


class NewKeys:
    """The new keys of one ceremony; ``remove`` takes all of them away again."""

    def __init__(self, passphrase: bytes | None) -> None:
        self._passphrase = passphrase
        self.made: list[NewKey] = []

    def make(self, role: str, directory: Path) -> NewKey:
        """Make a key of ``role`` in ``directory``. Raises InvalidError or UnavailableError; then all are removed."""
        try:
            key = Ed25519PrivateKey.generate()
            signer = CryptoSigner(key)
            file = directory / f"muster-{role}-{signer.public_key.keyid[:SHORT]}.pem"
            _write(file, _pem(key, self._passphrase))
        except BaseException:
            self.remove()
            raise
        self.made.append(NewKey(file, signer))
        return self.made[-1]

    def remove(self) -> None:
        """Take away what was made: nobody knows these keys."""
        while self.made:
            one = self.made.pop()
            with contextlib.suppress(OSError):
                one.file.unlink()


def check_directories(directories: Sequence[Path]) -> None:
    """Check that each is a directory of its own that can be written. Raises InvalidError or ConflictError."""
    seen: dict[tuple[int, int], Path] = {}
    for directory in directories:
        try:
            there = directory.stat()
        except OSError as error:
            raise InvalidError(
                f"{directory}: {error.strerror}; put the medium in, or correct the name. Nothing was changed",
                "no_directory",
            ) from error
        if not directory.is_dir():
            raise InvalidError(f"{directory} is no directory; nothing was changed", "no_directory")
        if not os.access(directory, os.W_OK | os.X_OK):
            raise InvalidError(f"{directory} cannot be written by you; nothing was changed", "no_directory")
        mark = (there.st_dev, there.st_ino)
        if mark in seen:
            raise ConflictError(
                f"{directory} and {seen[mark]} are the same directory: root keys are kept apart, in three places",
                "same_directory",
            )
        seen[mark] = directory


def held_in(directory: Path) -> list[Path]:
    """Return the key files in ``directory``. Raises InvalidError."""
    try:
        files = sorted(file for file in directory.iterdir() if _NAME.fullmatch(file.name))
    except OSError as error:
        raise InvalidError(
            f"{directory}: {error.strerror}; put the medium in, or correct the name. Nothing was changed",
            "no_directory",
        ) from error
    if len(files) > MAX_FILES:
        raise InvalidError(f"{directory} holds {len(files)} keys: that is no place of Muster's keys", "no_directory")
    return files


def signers_in(directories: Iterable[Path], keyids: Iterable[str], passphrases: Passphrases) -> dict[str, CryptoSigner]:
    """Return what signs with those of ``keyids`` whose files lie in ``directories``, by key id.

    Other key files (of former keys) are left alone. Raises InvalidError: a file is broken, a passphrase is wrong.
    """
    wanted = {keyid[:SHORT]: keyid for keyid in keyids}
    found: dict[str, CryptoSigner] = {}
    for directory in directories:
        for file in held_in(directory):
            match = _NAME.fullmatch(file.name)
            assert match is not None, "held_in returns such names only"
            keyid = wanted.get(match[2])
            if keyid is None or keyid in found:
                continue
            signer = CryptoSigner(_read(file, passphrases))
            if signer.public_key.keyid != keyid:
                raise InvalidError(f"{file} holds another key than its name says; find the right file", "other_key")
            found[keyid] = signer
    return found


def public_key_in(file: Path) -> Key:
    """Return a builder's public key, in PEM or in base64 as controllers keep them. Raises InvalidError."""
    try:
        with file.open("rb") as stream:
            text = stream.read(MAX_FILE).decode("ascii").strip()
        if text.startswith("-----"):
            found: object = serialization.load_pem_public_key(text.encode())
        else:
            found = decode_public_key(text)
    except OSError as error:
        raise InvalidError(f"{file}: {error.strerror}", "bad_public_key") from error
    except (ValueError, UnsupportedAlgorithm, WireError) as error:
        raise InvalidError(f"{file} holds no public key: {error}", "bad_public_key") from error
    if not isinstance(found, Ed25519PublicKey):
        raise InvalidError(f"{file} holds no Ed25519 public key: builders have such keys", "bad_public_key")
    return SSlibKey.from_crypto(found)


def sync_directory(directory: Path) -> None:
    """Make names in ``directory`` survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _pem(key: Ed25519PrivateKey, passphrase: bytes | None) -> bytes:
    protection: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase is not None:
        protection = serialization.BestAvailableEncryption(passphrase)
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection)


def _write(file: Path, pem: bytes) -> None:
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise UnavailableError(f"{file}: {error.strerror}; nothing was changed", "unwritable") from error
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(pem)
            stream.flush()
            os.fsync(stream.fileno())
        sync_directory(file.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            file.unlink()
        raise UnavailableError(f"{file}: {error.strerror}; nothing was changed", "unwritable") from error


def _read(file: Path, passphrases: Passphrases) -> Ed25519PrivateKey:
    try:
        with file.open("rb") as stream:
            pem = stream.read(MAX_FILE + 1)
    except OSError as error:
        raise InvalidError(f"{file}: {error.strerror}", "bad_key_file") from error
    try:
        key = _load(pem, None)
    except TypeError:  # the library's way to say that it is encrypted
        key = _unlocked(file, pem, passphrases(file))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InvalidError(f"{file} is not a private key: take another copy of it", "bad_key_file") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise InvalidError(f"{file} is not an Ed25519 key: take another copy of it", "bad_key_file")
    return key


def _unlocked(file: Path, pem: bytes, passphrases: Sequence[bytes]) -> object:
    for passphrase in passphrases:
        with contextlib.suppress(ValueError):
            return _load(pem, passphrase)
    wrong = "none of the passphrases fits" if len(passphrases) > 1 else "the passphrase is wrong"
    raise InvalidError(f"{file}: {wrong}; nothing was changed", "wrong_passphrase")


def _load(pem: bytes, passphrase: bytes | None) -> object:
    if len(pem) > MAX_FILE:
        raise ValueError("too large")
    return serialization.load_pem_private_key(pem, passphrase)
