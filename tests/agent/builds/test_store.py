"""Blobs by their hash: taken in whole, found rotten, swept when nobody names them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from agent.builds.store import Store, hash_file
from agent.errors import DeviceError, TrustError


def put(store: Store, body: bytes) -> str:
    sha256 = hashlib.sha256(body).hexdigest()
    store.part(sha256).write_bytes(body)
    assert store.adopt(store.part(sha256), sha256) == store.path(sha256)
    return sha256


def test_an_adopted_blob_is_there_and_its_part_is_not(tmp_path: Path) -> None:
    store = Store(tmp_path, 0)
    sha256 = put(store, b"body")
    assert store.has(sha256, 4)
    assert not store.has(sha256, 5)
    assert not store.part(sha256).exists()
    assert store.path(sha256) == tmp_path / "sha256" / sha256[:2] / sha256
    store.verify(sha256, 4)


def test_a_rotten_blob_is_found_by_reading_and_removed(tmp_path: Path) -> None:
    store = Store(tmp_path, 0)
    sha256 = put(store, b"body")
    store.path(sha256).write_bytes(b"bodY")
    with pytest.raises(TrustError) as caught:
        store.verify(sha256, 4)
    assert caught.value.code == "wrong_hash"
    assert not store.has(sha256, 4)
    with pytest.raises(TrustError) as caught:
        store.verify(sha256, 4)
    assert caught.value.code == "missing"


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "A" * 64, "0" * 63, "0" * 64 + "\n", "0" * 65])
def test_a_name_that_is_no_hash_leads_nowhere(tmp_path: Path, name: str) -> None:
    store = Store(tmp_path, 0)
    with pytest.raises(TrustError):
        store.path(name)
    with pytest.raises(TrustError):
        store.part(name)


def test_sweep_keeps_what_is_named_parts_and_tags_included(tmp_path: Path) -> None:
    store = Store(tmp_path, 0)
    kept, gone = put(store, b"kept"), put(store, b"gone")
    coming, dead = "a" * 64, "b" * 64
    for name in (coming, dead):
        store.part(name).write_bytes(b"half")
        store.part(name).with_suffix(".tag").write_text('"t"')
    assert store.sweep({kept, coming}) == 3
    assert store.has(kept, 4)
    assert not store.has(gone, 4)
    assert store.part(coming).exists()
    assert store.part(coming).with_suffix(".tag").exists()
    assert sorted(p.name for p in (tmp_path / "parts").iterdir()) == [f"{coming}.part", f"{coming}.tag"]


def test_the_reserve_is_never_given_away(tmp_path: Path) -> None:
    store = Store(tmp_path, 100, lambda _path: 1000)
    store.require(900)
    with pytest.raises(DeviceError, match="free 1 bytes") as caught:
        store.require(901)
    assert caught.value.code == "disk_full"


def test_hashing_can_be_stopped_and_says_what_it_cannot_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")

    def stop() -> None:
        raise KeyError

    with pytest.raises(KeyError):
        hash_file(tmp_path / "file", stop)
    with pytest.raises(DeviceError) as caught:
        hash_file(tmp_path / "none")
    assert caught.value.code == "unreadable"
