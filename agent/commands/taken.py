"""Which commands were taken: written down before a command is begun (wire 4.9).

Invariant: ``take`` says yes once for each id, also over restarts and power cuts; the directory stays below ``MAX_KEPT``
small files, for a command that has long expired is refused by its expiry alone. Does nothing itself.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from agent import durable

MAX_KEPT: Final = 256
KEPT_SECONDS: Final = 2 * 86_400.0
_ID: Final = re.compile(r"^c-[0-9a-f]{24}\Z")


class Taken:
    """The marks in ``directory``, one file a command. Raises DeviceError when the disk does not take a mark."""

    def __init__(self, directory: Path, clock: Callable[[], float] = time.time) -> None:
        self._directory = directory
        self._clock = clock

    def take(self, command: str) -> bool:
        """Note that ``command`` (an id) is begun; return False where that was noted before."""
        mark = self._mark(command)
        if mark.exists():
            return False
        durable.make_directory(self._directory, "commands.directory")
        durable.write_atomic(mark, b"", "commands.taken")
        self._prune()
        return True

    def all(self) -> list[str]:
        """Return the ids that were taken and are still kept, the oldest first."""
        return [path.name for path in self._by_age()]

    def _mark(self, command: str) -> Path:
        if not _ID.match(command):
            raise ValueError(f"{command!r} is not the id of a command")
        return self._directory / command

    def _by_age(self) -> list[Path]:
        if not self._directory.is_dir():
            return []
        found = [(path.stat().st_mtime, path) for path in self._directory.iterdir() if _ID.match(path.name)]
        return [path for _, path in sorted(found)]

    def _prune(self) -> None:
        marks = self._by_age()
        old = self._clock() - KEPT_SECONDS
        for place, path in enumerate(marks):
            if len(marks) - place > MAX_KEPT or path.stat().st_mtime < old:
                durable.remove(path, "commands.prune")
