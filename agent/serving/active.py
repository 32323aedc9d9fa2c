"""Which builds are active, on disk: so that serving serves again after a crash without the agent.

Invariant: what is written here was written before requests went to it. A build that was being loaded when the process
died three times in a row is left out, so that one bad build cannot keep the others from being served. A file that
cannot be read counts as empty: the agent tells serving again what to load.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, TypeVar

import msgspec
import structlog

from agent import durable
from agent.errors import DeviceError

log = structlog.get_logger()

_T = TypeVar("_T")

MAX_ATTEMPTS: Final = 3
_MAX_BYTES: Final = 1024 * 1024


class Place(msgspec.Struct, frozen=True):
    """An active build and the directory in which it is installed."""

    build: str
    directory: str


class _Attempt(msgspec.Struct, frozen=True):
    build: str
    count: int


class ActiveFile:
    """``active.json`` and ``attempt.json`` in one directory. Every method may wait for the disk."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file = directory / "active.json"
        self._attempt = directory / "attempt.json"

    def read(self) -> dict[str, Place]:
        """Return the active builds by model; empty where nothing, or nothing readable, is written."""
        return _read(self._file, dict[str, Place]) or {}

    def write(self, active: dict[str, Place]) -> None:
        """Remember ``active``. Raises DeviceError."""
        durable.make_directory(self._directory, "serving.directory")
        durable.write_atomic(self._file, msgspec.json.encode(active), "serving.active")

    def begin(self, build: str) -> bool:
        """Note that ``build`` is about to be loaded at a start; False when it must be left out.

        Where it cannot be noted the build is loaded all the same: a full disk must not keep it from being served.
        """
        before = _read(self._attempt, _Attempt)
        count = before.count + 1 if before is not None and before.build == build else 1
        if count > MAX_ATTEMPTS:
            return False
        try:
            durable.write_atomic(self._attempt, msgspec.json.encode(_Attempt(build, count)), "serving.attempt")
        except DeviceError as error:
            log.warning("cannot note a load", build=build, reason=str(error))
        return True

    def done(self) -> None:
        """Note that the load ended, well or not, without the process; what cannot be noted is logged."""
        try:
            durable.remove(self._attempt, "serving.attempt")
        except DeviceError as error:
            log.warning("cannot note the end of a load", reason=str(error))


def _read(file: Path, kind: type[_T]) -> _T | None:
    try:
        with file.open("rb") as opened:
            return msgspec.json.decode(opened.read(_MAX_BYTES), type=kind)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        log.warning("cannot read file, treated as empty", file=str(file), reason=str(error))
        return None
