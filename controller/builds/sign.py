"""The builder's key, and the signed manifest of a build.

Invariant: the private key lies in the builder's data directory with mode 0600 and never leaves it; what is sealed is a
manifest that a device's parser accepts. Does not decide what deserves a signature (`accept.py`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from controller.builds.figures import Measured
from controller.errors import InvalidError, UnavailableError
from wire.codec import encode
from wire.envelope import MANIFEST, PublicKey, decode_public_key, encode_public_key, key_id, seal
from wire.errors import WireError
from wire.manifest import Limits, Manifest, build_id, parse_manifest

KEY_FILE: Final = "builder/key.pem"
PREDECESSORS: Final = "builder/predecessors"
# Boards differ from the builder by more than ten times, and a trial shares its board with whatever else runs there:
# these limits catch a build that hangs or swaps, not one that is a little slow.
SLOWEST_BOARD: Final = 50.0
LEAST_P95_MS: Final = 100.0
MEMORY_FACTOR: Final = 2.0
LEAST_MEMORY: Final = 256 * 1024**2


@dataclass(frozen=True, slots=True)
class Sealed:
    """build: the build's id; envelope: the bytes to store as the manifest's artifact."""

    build: str
    envelope: bytes


class BuilderKey:
    """The key that vouches for builds."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self.private = private
        self.id = key_id(private.public_key())
        self.public = encode_public_key(private.public_key())

    def seal(self, manifest: Manifest) -> Sealed:
        """Return ``manifest`` signed, and the id of its build. Raises wire.MalformedError for one no device takes."""
        payload = encode(manifest)
        parse_manifest(payload)
        return Sealed(build_id(payload), seal(payload, MANIFEST, self.private))


def builder_key(data: Path) -> BuilderKey:
    """Return the builder's key from the directory ``data``; made at first use.

    Raises InvalidError when the file is not such a key, UnavailableError when it cannot be read or written.
    """
    path = data / KEY_FILE
    try:
        pem = path.read_bytes() if path.exists() else _make(path)
    except OSError as error:
        raise UnavailableError(f"the builder's key {path}: {error}; check the data directory", "no_key") from error
    try:
        key = serialization.load_pem_private_key(pem, None)
    except (ValueError, TypeError) as error:
        raise InvalidError(f"{path} is not a private key: {error}; restore it from a backup", "bad_key") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise InvalidError(f"{path} is not an Ed25519 key; restore it from a backup", "bad_key")
    return BuilderKey(key)


def predecessors(data: Path) -> list[PublicKey]:
    """Return the keys whose place this builder takes (``builder/predecessors/NAME.pub``). Raises InvalidError."""
    found = []
    for file in sorted((data / PREDECESSORS).glob("*.pub")):
        try:
            found.append(decode_public_key(file.read_text().strip()))
        except (OSError, UnicodeDecodeError, WireError) as error:
            raise InvalidError(f"{file}: {error}", "bad_builder_key") from error
    return found


def limits_for(measured: Measured) -> Limits:
    """Return what a device refuses of this build: generous in time and memory, exact in outputs (wire 6.4)."""
    slowest = max(measured.golden_ms, measured.batch1.p95_ms)
    return Limits(
        max_p95_ms=max(LEAST_P95_MS, SLOWEST_BOARD * slowest),
        max_memory_bytes=max(LEAST_MEMORY, int(MEMORY_FACTOR * measured.peak_memory_bytes)),
        tolerance=measured.tolerance,
    )


def _make(path: Path) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    pem = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    fresh = path.with_name(f"{path.name}.{os.getpid()}.new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(pem)
        stream.flush()
        os.fsync(stream.fileno())
    try:
        os.link(fresh, path)  # unlike rename it never replaces a key that another process made meanwhile
    except FileExistsError:
        return path.read_bytes()
    finally:
        fresh.unlink()
    _sync_directory(path.parent)
    return pem


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
