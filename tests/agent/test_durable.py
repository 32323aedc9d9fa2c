"""What lasts, lasts whole: each function is cut at each of its points and must leave the old or the new."""

from __future__ import annotations

import errno
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent import durable
from agent.errors import DeviceError
from tests.agent.lossy_disk import LossyDisk


@pytest.fixture(autouse=True)
def _no_hook_left() -> Iterator[None]:
    yield
    durable.set_hook(None)


def points_of(action: Callable[[], object]) -> list[str]:
    passed: list[str] = []
    durable.set_hook(passed.append)
    action()
    durable.set_hook(None)
    return passed


def cut_at(number: int) -> None:
    count = 0

    def hook(name: str) -> None:
        nonlocal count
        count += 1
        if count == number:
            raise durable.PowerCut(name)

    durable.set_hook(hook)


def _sync_a_file(root: Path) -> None:
    with (root / "file").open("wb") as file:
        file.write(b"new")
        durable.sync_file(file, "t")
    durable.sync_directory(root, "t")


def _move(root: Path) -> None:
    durable.write_atomic(root / "from/file", b"new", "t")
    durable.replace(root / "from/file", root / "to/file", "t")


@pytest.mark.parametrize(
    ("action", "left"),
    [
        (lambda root: durable.write_atomic(root / "file", b"new", "t"), {"file": b"new"}),
        (_sync_a_file, {"file": b"new"}),
        (_move, {"to/file": b"new"}),
        (lambda root: durable.switch_link(root / "link", "target", "t"), {"link": b"target"}),
        (lambda root: durable.remove(root / "old", "t"), {"old": None}),
        (lambda root: durable.remove_tree(root / "tree", "t"), {"tree": None}),
        (lambda root: durable.make_directory(root / "a/b", "t"), {"a": b"", "a/b": b""}),
    ],
    ids=["write_atomic", "sync", "replace", "switch_link", "remove", "remove_tree", "make_directory"],
)
def test_what_has_returned_survives_a_cut_of_the_worst_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: Callable[[Path], None], left: dict[str, bytes | None]
) -> None:
    root = tmp_path / "root"
    disk = LossyDisk(root, monkeypatch)
    root.mkdir()
    for name in ("from", "to", "tree"):
        durable.make_directory(root / name, "t")
    durable.write_atomic(root / "old", b"old", "t")
    before = everything(root)
    action(root)
    disk.cut()
    assert everything(root) == {name: held for name, held in (before | left).items() if held is not None}


def everything(root: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(root)): str(path.readlink()).encode() if path.is_symlink()
        else b"" if path.is_dir() else path.read_bytes()
        for path in root.rglob("*")
    }  # fmt: skip


def test_write_atomic_leaves_old_or_new_at_every_cut(tmp_path: Path) -> None:
    path = tmp_path / "state"
    durable.write_atomic(path, b"zero", "t.write")
    points = points_of(lambda: durable.write_atomic(path, b"old", "t.write"))
    assert points == ["t.write:before", "t.write:written", "t.write:renamed", "t.write:after"]
    for number, point in enumerate(points, start=1):
        durable.write_atomic(path, b"old", "t.write")
        cut_at(number)
        with pytest.raises(durable.PowerCut):
            durable.write_atomic(path, b"new", "t.write")
        durable.set_hook(None)
        assert path.read_bytes() == (b"new" if point.endswith((":renamed", ":after")) else b"old")
    assert path.stat().st_mode & 0o777 == 0o600


def test_write_atomic_takes_the_mode_asked_for_in_spite_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        durable.write_atomic(tmp_path / "ports.json", b"{}", "t.write", 0o644)
    finally:
        os.umask(before)
    assert (tmp_path / "ports.json").stat().st_mode & 0o777 == 0o644


def test_write_atomic_does_not_write_through_a_planted_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    (tmp_path / ".state.new").symlink_to(victim)
    with pytest.raises(DeviceError):
        durable.write_atomic(tmp_path / "state", b"new", "t.write")
    assert victim.read_bytes() == b"mine"


def test_switch_link_has_a_target_at_every_cut(tmp_path: Path) -> None:
    link = tmp_path / "current"
    durable.switch_link(link, "old", "t.link")
    points = points_of(lambda: durable.switch_link(link, "old", "t.link"))
    seen = set()
    for number in range(1, len(points) + 1):
        durable.switch_link(link, "old", "t.link")
        cut_at(number)
        with pytest.raises(durable.PowerCut):
            durable.switch_link(link, "new", "t.link")
        durable.set_hook(None)
        seen.add(str(link.readlink()))
    assert seen == {"old", "new"}


def test_remove_tree_never_leaves_half_a_directory_under_its_name(tmp_path: Path) -> None:
    tree = tmp_path / "tree"

    def make() -> None:
        tree.mkdir(exist_ok=True)
        (tree / "a").write_bytes(b"a")
        (tree / "b").write_bytes(b"b")

    make()
    points = points_of(lambda: durable.remove_tree(tree, "t.remove"))
    assert not tree.exists()
    for number in range(1, len(points) + 1):
        make()
        cut_at(number)
        with pytest.raises(durable.PowerCut):
            durable.remove_tree(tree, "t.remove")
        durable.set_hook(None)
        assert not tree.exists() or sorted(p.name for p in tree.iterdir()) == ["a", "b"]
        durable.remove_tree(tree, "t.remove")
        assert list(tmp_path.iterdir()) == []


def test_remove_tree_does_not_follow_links(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_bytes(b"x")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "link").symlink_to(tmp_path / "kept")
    durable.remove_tree(tmp_path / "tree", "t.remove")
    assert (tmp_path / "kept" / "file").read_bytes() == b"x"


def test_commit_lasts_from_its_after_point_on(tmp_path: Path) -> None:
    for number, kept in ((1, 0), (2, 1)):
        path = tmp_path / f"{number}.db"
        connection = sqlite3.connect(path)
        connection.execute("CREATE TABLE t (x INTEGER)")
        connection.commit()
        connection.execute("INSERT INTO t VALUES (1)")
        cut_at(number)
        with pytest.raises(durable.PowerCut):
            durable.commit(connection, "t.commit")
        durable.set_hook(None)
        connection.close()
        again = sqlite3.connect(path)
        assert again.execute("SELECT count(*) FROM t").fetchone()[0] == kept
        again.close()


def test_make_directory_makes_parents_and_is_content_with_what_is_there(tmp_path: Path) -> None:
    durable.make_directory(tmp_path / "a/b/c", "t.mkdir")
    durable.make_directory(tmp_path / "a/b/c", "t.mkdir")
    assert (tmp_path / "a/b/c").is_dir()


@pytest.mark.parametrize(
    ("number", "code"), [(errno.ENOSPC, "disk_full"), (errno.EROFS, "read_only"), (errno.EIO, "disk_error")]
)
def test_a_failing_sync_is_the_devices_fault_by_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: str
) -> None:
    def fail(_descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(DeviceError) as caught:
        durable.write_atomic(tmp_path / "state", b"new", "t.write")
    assert caught.value.code == code
    assert not (tmp_path / "state").exists()


def test_the_variable_ends_the_process_at_the_given_point(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from agent import durable\n"
        "durable.write_atomic(Path(sys.argv[1]), b'new', 't.write')\nprint('done')"
    )
    path = tmp_path / "state"
    for number, status in ((1, 137), (4, 137), (5, 0)):
        path.unlink(missing_ok=True)
        environment = {**os.environ, durable.CRASH_VARIABLE: str(number)}
        ended = subprocess.run([sys.executable, "-c", program, str(path)], env=environment, check=False)
        assert ended.returncode == status
        assert path.exists() == (number > 1)


def test_points_are_registered_by_name_with_their_count(tmp_path: Path) -> None:
    before = durable.crash_points().get("t.count:before", 0)
    durable.write_atomic(tmp_path / "x", b"", "t.count")
    durable.write_atomic(tmp_path / "x", b"", "t.count")
    assert durable.crash_points()["t.count:before"] == before + 2
