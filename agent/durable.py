"""The only place where the agent makes things last: every fsync, rename, unlink and commit, each a named crash point.

Invariant: when one of these functions has returned, its effect survives a power cut; when power goes earlier, what was
there before is still there, whole. Each function calls ``crash_point`` before, between and after its steps, so that a
test can cut the power at every one of them and nowhere else is there anything to cut. Does not decide what is stored.

One writer a path: temporary names are derived from the path, so that a cut leaves at most one of them behind.
Every failure is a DeviceError: "disk_full", "read_only", "disk_error", "database_broken" or "database_error".
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Final

from agent.errors import DeviceError

CRASH_VARIABLE: Final = "MUSTER_CRASH_AT"
CRASH_STATUS: Final = 137  # what a process ends with that was killed by signal 9

Hook = Callable[[str], None]


class PowerCut(BaseException):
    """What a test's hook raises where the power goes. An event, not an error: no handler of errors survives it."""


class _Points:
    """The names that were passed, in the order of their first use, and what happens at them."""

    def __init__(self, crash_at: int) -> None:
        self.lock = threading.Lock()
        self.names: dict[str, int] = {}
        self.hook: Hook | None = None
        self.crash_at = crash_at
        self.count = 0

    def reach(self, name: str) -> None:
        with self.lock:
            self.names[name] = self.names.get(name, 0) + 1
            self.count += 1
            die = self.count == self.crash_at
            hook = self.hook
        if die:
            os._exit(CRASH_STATUS)
        if hook is not None:
            hook(name)


_points: Final = _Points(int(os.environ.get(CRASH_VARIABLE) or 0))


def crash_point(name: str) -> None:
    """Mark a place where the power may go. The process ends at number ``MUSTER_CRASH_AT``, counted from 1."""
    _points.reach(name)


def crash_points() -> dict[str, int]:
    """Return the points that this process has passed, each with how often."""
    with _points.lock:
        return dict(_points.names)


def set_hook(hook: Hook | None) -> Hook | None:
    """Call ``hook(name)`` at each point from now on (tests only). Returns the hook before it."""
    with _points.lock:
        before, _points.hook = _points.hook, hook
    return before


def write_atomic(path: Path, data: bytes, point: str, mode: int = 0o600) -> None:
    """Make ``path`` hold exactly ``data``: all of it or, after a power cut, what it held before. Raises DeviceError."""
    temporary = path.with_name(f".{path.name}.new")
    crash_point(f"{point}:before")
    with _device(path):
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)  # the umask and a left-over file have no say
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        crash_point(f"{point}:written")
        temporary.rename(path)
        crash_point(f"{point}:renamed")
        _sync_directory(path.parent)
    crash_point(f"{point}:after")


def replace(source: Path, target: Path, point: str) -> None:
    """Rename ``source`` (synced) to ``target``: a file, or a directory onto nothing. Raises DeviceError."""
    crash_point(f"{point}:before")
    with _device(target):
        source.replace(target)
        crash_point(f"{point}:renamed")
        _sync_directory(target.parent)
        if source.parent != target.parent:
            _sync_directory(source.parent)
    crash_point(f"{point}:after")


def sync_file(file: int | IO[Any], point: str) -> None:
    """Bring what was written to ``file`` onto the disk. Raises DeviceError; then the file must not be trusted again."""
    crash_point(f"{point}:before")
    with _device(Path(str(getattr(file, "name", file)))):
        if not isinstance(file, int):
            file.flush()
        os.fsync(file if isinstance(file, int) else file.fileno())
    crash_point(f"{point}:after")


def sync_directory(path: Path, point: str) -> None:
    """Bring the names in ``path`` onto the disk. Raises DeviceError."""
    crash_point(f"{point}:before")
    with _device(path):
        _sync_directory(path)
    crash_point(f"{point}:after")


def make_directory(path: Path, point: str, mode: int = 0o700) -> None:
    """Make ``path`` and its missing parents. Nothing happens where it is there already. Raises DeviceError."""
    if path.is_dir():
        return
    crash_point(f"{point}:before")
    with _device(path):
        missing = [path]
        while not missing[-1].parent.is_dir():
            missing.append(missing[-1].parent)
        for directory in reversed(missing):
            directory.mkdir(mode=mode, exist_ok=True)
            _sync_directory(directory.parent)
    crash_point(f"{point}:after")


def switch_link(link: Path, target: str | Path, point: str) -> None:
    """Make the symbolic link ``link`` point at ``target``: the old one or the new one, at no time none.

    Raises DeviceError.
    """
    temporary = link.with_name(f".{link.name}.new")
    crash_point(f"{point}:before")
    with _device(link):
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target)
        crash_point(f"{point}:made")
        temporary.replace(link)
        crash_point(f"{point}:renamed")
        _sync_directory(link.parent)
    crash_point(f"{point}:after")


def remove(path: Path, point: str) -> None:
    """Remove the file or link ``path``, if it is there. Raises DeviceError."""
    if not path.is_symlink() and not path.exists():
        return
    crash_point(f"{point}:before")
    with _device(path):
        path.unlink(missing_ok=True)
        _sync_directory(path.parent)
    crash_point(f"{point}:after")


def remove_tree(path: Path, point: str) -> None:
    """Remove the directory ``path`` and all below it, if it is there. Never follows links. Raises DeviceError.

    It is renamed first, so that a cut leaves a ``.NAME.gone`` and never half of a directory under its own name.
    """
    gone = path.with_name(f".{path.name}.gone")
    if not path.is_dir() and not gone.is_dir():
        return
    crash_point(f"{point}:before")
    with _device(path):
        if gone.is_dir():
            shutil.rmtree(gone)
        if path.is_dir():
            path.rename(gone)
            crash_point(f"{point}:renamed")
            shutil.rmtree(gone)
        _sync_directory(path.parent)
    crash_point(f"{point}:after")


def commit(connection: sqlite3.Connection, point: str) -> None:
    """Commit the open transaction of ``connection``. Raises DeviceError; then the transaction was rolled back."""
    crash_point(f"{point}:before")
    try:
        connection.commit()
    except sqlite3.Error as error:
        with contextlib.suppress(sqlite3.Error):
            connection.rollback()
        raise database_error(error) from error
    crash_point(f"{point}:after")


def database_error(error: sqlite3.Error) -> DeviceError:
    """Return what ``error`` means for this device, to be raised from it."""
    primary = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
    if primary == sqlite3.SQLITE_FULL:
        return DeviceError("the disk is full: the database cannot be written; free some space", "disk_full")
    if primary == sqlite3.SQLITE_READONLY:
        return DeviceError(f"the database is read-only: {error}; make its directory writable", "read_only")
    if primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return DeviceError(f"the database is broken: {error}; it will be set aside", "database_broken")
    return DeviceError(f"the database does not answer as it should: {error}", "database_error")


def disk_error(error: OSError, path: Path) -> DeviceError:
    """Return what ``error`` at ``path`` means for this device, to be raised from it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DeviceError(f"the disk is full: cannot write {path}; free some space", "disk_full")
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return DeviceError(f"cannot write {path}: {error.strerror}; make it writable for this user", "read_only")
    return DeviceError(f"cannot write {path}: {error.strerror or error}; check the disk", "disk_error")


@contextlib.contextmanager
def _device(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise disk_error(error, path) from error


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
