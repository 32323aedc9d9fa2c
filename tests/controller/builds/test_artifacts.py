"""The content-addressed directory."""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from controller.builds.artifacts import BLOCK, ArtifactStore
from controller.errors import InvalidError, NotFoundError, TooLargeError, UnavailableError


async def blocks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


async def test_bytes_come_back_under_their_hash(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    content = os.urandom(2 * BLOCK + 17)
    sha256 = hashlib.sha256(content).hexdigest()
    assert await store.put(sha256, blocks(content[:5], content[5:BLOCK], content[BLOCK:]), 3 * BLOCK) == len(content)
    assert store.size(sha256) == len(content)
    with store.open(sha256) as stream:
        assert stream.read() == content
    assert files(tmp_path) == [f"sha256/{sha256[:2]}/{sha256}"]
    assert await store.put(sha256, blocks(content), 3 * BLOCK) == len(content), "again is no error"


async def test_other_bytes_than_named_leave_nothing(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    with pytest.raises(InvalidError) as refused:
        await store.put("0" * 64, blocks(b"bytes"), 100)
    assert refused.value.code == "hash_mismatch"
    assert store.size("0" * 64) is None
    assert files(tmp_path) == []


async def test_too_many_bytes_are_stopped_on_the_way(tmp_path: Path) -> None:
    store, sent = ArtifactStore(tmp_path), 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += BLOCK
            yield bytes(BLOCK)

    with pytest.raises(TooLargeError):
        await store.put("0" * 64, endless(), 3 * BLOCK)
    assert sent <= 5 * BLOCK
    assert files(tmp_path) == []


async def test_an_upload_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)

    async def broken() -> AsyncIterator[bytes]:
        yield bytes(BLOCK)
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await store.put("0" * 64, broken(), 3 * BLOCK)
    assert files(tmp_path) == []


async def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ArtifactStore(tmp_path)

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UnavailableError, match="No space left"):
        await store.put(hashlib.sha256(b"bytes").hexdigest(), blocks(b"bytes"), 100)
    assert files(tmp_path) == []


@pytest.mark.parametrize("size", [5000, 3 * BLOCK])
async def test_a_disk_that_fills_up_on_the_way_is_told_and_leaves_nothing(tmp_path: Path, size: int) -> None:
    store, content = ArtifactStore(tmp_path), os.urandom(size)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, hard))  # as on a full disk, writing and closing both fail
    try:
        with pytest.raises(UnavailableError, match="make room") as refused:
            await store.put(hashlib.sha256(content).hexdigest(), blocks(content), 4 * BLOCK)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert refused.value.code == "disk_full"
    assert files(tmp_path) == []


@pytest.mark.parametrize("name", ["", "A" * 64, "../" + "0" * 61, "0" * 63, "0" * 64 + "\n"])
def test_only_a_hash_is_a_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidError):
        ArtifactStore(tmp_path).path(name)


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        ArtifactStore(tmp_path).open("0" * 64)


def test_uploads_that_were_never_finished_go_away_after_a_day(tmp_path: Path) -> None:
    ArtifactStore(tmp_path)
    old, young = tmp_path / "incoming" / "old", tmp_path / "incoming" / "young"
    for path in (old, young):
        path.write_bytes(b"half")
    past = time.time() - 25 * 3600
    os.utime(old, (past, past))
    ArtifactStore(tmp_path)
    assert not old.exists()
    assert young.exists()
