"""Files by their SHA-256: DATA/blobs/sha256/xx/SHA256, and unfinished ones in DATA/blobs/parts.

Invariant: a name under ``sha256/`` appears at once and whole, and only for bytes whose hash was computed before. Bytes
can rot later: ``has`` looks at the size, ``verify`` reads all of it again. Does not fetch (`fetch.py`) and does not
know which blobs are still needed: the caller names those.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final

from agent import durable
from agent.errors import DeviceError, TrustError

_SHA256: Final = re.compile(r"[0-9a-f]{64}")
Check = Callable[[], None]
_CHUNK: Final = 1024 * 1024


class Store:
    """The blobs below ``root``, which is made when missing. ``free_bytes`` stands in for the disk in tests."""

    def __init__(self, root: Path, reserve: int, free_bytes: Callable[[Path], int] | None = None) -> None:
        self._blobs = root / "sha256"
        self._parts = root / "parts"
        self.reserve = reserve
        self._free_bytes = free_bytes or _free_bytes
        durable.make_directory(self._blobs, "blobs.mkdir")
        durable.make_directory(self._parts, "blobs.mkdir")

    def path(self, sha256: str) -> Path:
        """Return where the blob lies, or would lie. Raises TrustError for what is not a SHA-256."""
        if not _SHA256.fullmatch(sha256):
            raise TrustError(f"{sha256[:80]!r} is not a SHA-256", "malformed")
        return self._blobs / sha256[:2] / sha256

    def part(self, sha256: str) -> Path:
        """Return where an unfinished download of the blob lies, or would lie."""
        return self._parts / f"{self.path(sha256).name}.part"

    def has(self, sha256: str, size: int) -> bool:
        """Return whether the blob is here with ``size`` bytes. One of another size is rotten, and does not count."""
        try:
            return self.path(sha256).stat().st_size == size
        except OSError:
            return False

    def verify(self, sha256: str, size: int, check: Check = lambda: None) -> None:
        """Read the blob through. Raises TrustError ("missing" or "wrong_hash") and then removes a rotten one."""
        if not self.has(sha256, size):
            raise TrustError(f"blob {sha256} is not here in its size; it will be fetched again", "missing")
        if hash_file(self.path(sha256), check) != sha256:
            durable.remove(self.path(sha256), "blobs.remove")
            raise TrustError(f"blob {sha256} has rotted on the disk; it will be fetched again", "wrong_hash")

    def adopt(self, part: Path, sha256: str) -> Path:
        """Take ``part`` in, whose bytes the caller has synced and found to have this hash. Raises DeviceError."""
        target = self.path(sha256)
        durable.make_directory(target.parent, "blobs.mkdir")
        durable.replace(part, target, "blobs.adopt")
        return target

    def free(self) -> int:
        """Return the bytes that are free on the disk, the reserve included."""
        return self._free_bytes(self._blobs)

    def require(self, needed: int) -> None:
        """Raise DeviceError ("disk_full") unless ``needed`` bytes fit and the reserve stays free."""
        missing = needed + self.reserve - self.free()
        if missing > 0:
            raise DeviceError(
                f"disk too full: {needed} bytes are needed and {self.reserve} must stay free; free {missing} bytes",
                "disk_full",
            )

    def sweep(self, keep: Collection[str]) -> int:
        """Remove every blob and part whose SHA-256 is not in ``keep``. Returns how many. Raises DeviceError."""
        wanted = set(keep)
        gone = 0
        for path in (*self._blobs.glob("*/*"), *self._parts.iterdir()):
            if path.name.split(".")[0] not in wanted:
                durable.remove(path, "blobs.sweep")
                gone += 1
        return gone


def hash_file(path: Path, check: Check = lambda: None) -> str:
    """Return the SHA-256 of the file's bytes; ``check`` is called now and then and may raise to stop it.

    Raises DeviceError when the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                check()
                digest.update(chunk)
    except OSError as error:
        raise DeviceError(f"cannot read {path}: {error.strerror or error}; check the disk", "unreadable") from error
    return digest.hexdigest()


def _free_bytes(path: Path) -> int:
    return shutil.disk_usage(path).free
