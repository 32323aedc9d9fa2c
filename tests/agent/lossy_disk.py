"""A disk that keeps, over a power cut, what was synced and nothing else: the worst one that the rules allow.

Files hold what they held at their last ``os.fsync``, directories the names that they had at theirs; whatever was never
synced is empty or not there. Databases are kept as they are: SQLite syncs them itself, without ``os.fsync``.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

_Names = dict[str, tuple[str, str | int]]  # a link with its target; a file or directory with its inode


class LossyDisk:
    """What would be left of the directory ``root``, told by every ``os.fsync`` from now on."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._root = root
        self._fsync = os.fsync
        self._contents: dict[int, bytes] = {}
        self._names: dict[int, _Names] = {}
        monkeypatch.setattr(os, "fsync", self._sync)

    def cut(self) -> None:
        """Leave under ``root`` only what was synced."""
        if not self._root.is_dir():
            return
        old = self._root.with_name("before-the-cut")
        self._root.rename(old)
        self._root.mkdir()
        contents, names = self._contents, self._names
        self._contents, self._names = {}, {}
        made: dict[int, Path] = {}

        def rebuild(inode: int, here: Path) -> None:
            for name, (kind, what) in names.get(inode, {}).items():
                path = here / name
                if kind == "link":
                    path.symlink_to(what)
                elif kind == "directory":
                    path.mkdir()
                    rebuild(int(what), path)
                elif (first := made.get(int(what))) is not None:
                    os.link(first, path)
                elif not name.partition(".db")[1]:
                    made[int(what)] = path
                    path.write_bytes(contents.get(int(what), b""))
                    self._contents[path.stat().st_ino] = contents.get(int(what), b"")
            self._names[here.stat().st_ino] = _listed(here)

        rebuild(old.stat().st_ino, self._root)
        for database in old.glob("*.db*"):
            database.rename(self._root / database.name)
        for path in sorted(old.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        old.rmdir()

    def _sync(self, descriptor: int) -> None:
        self._fsync(descriptor)
        found = os.fstat(descriptor)
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if self._root != path and self._root not in path.parents:
            return
        if stat.S_ISDIR(found.st_mode):
            self._names[found.st_ino] = _listed(path)
        else:
            self._contents[found.st_ino] = path.read_bytes()


def _listed(directory: Path) -> _Names:
    names: _Names = {}
    for path in directory.iterdir():
        if path.is_symlink():
            names[path.name] = ("link", str(path.readlink()))
        else:
            names[path.name] = ("directory" if path.is_dir() else "file", path.stat().st_ino)
    return names
