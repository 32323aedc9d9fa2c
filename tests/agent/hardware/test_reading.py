"""Bounded reads below a root: nothing outside is opened, nothing raises, nothing blocks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.hardware.reading import MAX_BYTES, MAX_NAMES, Root, clean, whole_number


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    return outside


def test_an_absolute_link_is_followed_below_the_root(tmp_path: Path, secret: Path) -> None:
    root = tmp_path / "root"
    (root / "sys/tree").mkdir(parents=True)
    (root / "sys/tree/model").write_text("inside")
    (root / "link").symlink_to("/sys/tree")
    (root / "leak").symlink_to(secret)
    (root / "climb").symlink_to("../../outside/secret")
    files = Root(root)
    assert files.word("/link/model") == "inside"
    assert files.read("/leak/secret") is None
    assert files.read("/climb") is None
    assert files.read("/../outside/secret") is None
    assert files.names("/leak") == ()


def test_links_in_a_circle_and_pipes_read_as_missing(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    files = Root(tmp_path)
    assert [files.read(name) for name in ("/a", "/pipe", "/folder", "/none", "/x\0y")] == [None] * 5
    assert not files.exists("/a")
    assert files.names("/pipe") == ()


def test_reads_and_listings_are_bounded(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b"x" * (MAX_BYTES + 5))
    (tmp_path / "many").mkdir()
    for number in range(MAX_NAMES + 5):
        (tmp_path / "many" / str(number)).touch()
    files = Root(tmp_path)
    assert len(files.read("/large") or b"") == MAX_BYTES
    assert len(files.names("/many")) == MAX_NAMES


def test_only_the_machines_own_root_is_live(tmp_path: Path) -> None:
    assert Root(Path("/")).live
    assert Root(tmp_path / "/".join([".."] * 40)).live
    assert not Root(tmp_path).live


@given(st.text())
def test_a_clean_value_is_short_and_printable(text: str) -> None:
    value = clean(text)
    assert value is None or (0 < len(value) <= 128 and value.isascii() and value.isprintable())


@pytest.mark.parametrize(
    ("text", "number"),
    [("42\n", 42), ("-7", -7), ("", None), (None, None), ("1.5", None), ("9" * 21, None), ("٣", None), ("1 2", None)],
)
def test_whole_number(text: str | None, number: int | None) -> None:
    assert whole_number(text) == number
