"""The files of all models and builds, each under the SHA-256 of its bytes.

Invariant: a file that stands under its hash is complete and synced, for it is written beside, hashed on the way, synced
and only then renamed; it is never changed afterwards. Does not know tenants: who may see which file is in the table
`artifacts` (`store.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, BinaryIO, Final

import structlog

from controller.errors import InvalidError, NotFoundError, TooLargeError, UnavailableError

BLOCK: Final = 1024**2
STALE_SECONDS: Final = 24 * 3600.0
_SHA256: Final = re.compile(r"[0-9a-f]{64}")

log = structlog.get_logger()


class ArtifactStore:
    """The content-addressed directory ``root``. One process writes (the API); any number may read.

    Raises UnavailableError when the directory cannot be used.
    """

    def __init__(self, root: Path) -> None:
        self._files, self._incoming = root / "sha256", root / "incoming"
        try:
            self._files.mkdir(parents=True, exist_ok=True)
            self._incoming.mkdir(exist_ok=True)
            self._drop_stale(time.time())
        except OSError as error:
            raise UnavailableError(f"artifacts in {root}: {error}; check the data directory", "no_artifacts") from error

    def path(self, sha256: str) -> Path:
        """Return where the file with this hash lies, or would lie. Raises InvalidError for what is not a hash."""
        if not _SHA256.fullmatch(sha256):
            raise InvalidError("an artifact is named by 64 hex digits in lower case: its SHA-256", "bad_sha256")
        return self._files / sha256[:2] / sha256

    def size(self, sha256: str) -> int | None:
        """Return the size of a file in bytes, None when there is none."""
        try:
            return self.path(sha256).stat().st_size
        except FileNotFoundError:
            return None

    def open(self, sha256: str) -> BinaryIO:
        """Open a file for reading. Raises NotFoundError."""
        try:
            return self.path(sha256).open("rb")
        except FileNotFoundError as error:
            raise NotFoundError(f"there is no artifact {sha256}: upload it first", "no_artifact") from error

    async def put(self, sha256: str, blocks: AsyncIterator[bytes], limit: int) -> int:
        """Store the bytes of ``blocks`` under ``sha256``; return their number.

        Raises TooLargeError beyond ``limit`` bytes, InvalidError when the bytes have another hash, UnavailableError
        when the disk does not take them. After an error nothing is left behind.
        """
        self.path(sha256)  # refuses what is no hash before anything is written
        return (await self._put(sha256, blocks, limit))[1]

    async def put_unnamed(self, blocks: AsyncIterator[bytes], limit: int) -> tuple[str, int]:
        """Store the bytes of ``blocks`` under the SHA-256 that they have; return it and their number."""
        return await self._put(None, blocks, limit)

    async def _put(self, sha256: str | None, blocks: AsyncIterator[bytes], limit: int) -> tuple[str, int]:
        incoming = self._incoming / f"{sha256 or 'unnamed'}.{secrets.token_hex(8)}"
        digest, size = hashlib.sha256(), 0
        stream = await _on_disk(incoming.open, "xb")
        try:
            async for block in _gathered(blocks):
                size += len(block)
                if size > limit:
                    raise TooLargeError(f"an artifact has at most {limit} bytes here", "too_large")
                await _on_disk(_append, stream, digest, block)
            found = digest.hexdigest()
            if sha256 is not None and found != sha256:
                raise InvalidError(
                    f"the bytes received have SHA-256 {found}, not {sha256}: send them again", "hash_mismatch"
                )
            await _on_disk(_settle, stream, incoming, self.path(found))
        finally:
            _leave_nothing(stream, incoming)
        return found, size

    def _drop_stale(self, now: float) -> None:
        for left in self._incoming.iterdir():
            if now - left.stat().st_mtime > STALE_SECONDS:
                log.info("dropped an upload that was never finished", file=left.name)
                left.unlink(missing_ok=True)


async def _on_disk(do: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return await asyncio.to_thread(do, *arguments)
    except OSError as error:
        raise UnavailableError(f"the artifact cannot be stored: {error}; make room", "disk_full") from error


async def _gathered(blocks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Join small blocks, so that a thread is asked once a mebibyte and not once a packet."""
    waiting = bytearray()
    async for block in blocks:
        waiting += block
        if len(waiting) >= BLOCK:
            yield bytes(waiting)
            waiting.clear()
    if waiting:
        yield bytes(waiting)


def _leave_nothing(stream: BinaryIO, incoming: Path) -> None:
    """Take away what was written, unless it was settled. On a full disk closing fails too: it writes what waits."""
    with contextlib.suppress(OSError):
        stream.close()
    try:
        incoming.unlink(missing_ok=True)
    except OSError as error:  # the next start takes it away
        log.warning("a broken upload could not be removed", file=incoming.name, error=str(error))


def _append(stream: BinaryIO, digest: hashlib._Hash, block: bytes) -> None:
    digest.update(block)
    stream.write(block)


def _settle(stream: BinaryIO, incoming: Path, target: Path) -> None:
    stream.flush()
    os.fsync(stream.fileno())
    target.parent.mkdir(exist_ok=True)
    incoming.rename(target)
    for directory in (target.parent, target.parent.parent):  # the name, and the folder that may be new
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
