"""Is this device one of ours? Asked for every message, so the answer is kept for a moment.

Invariant: a revocation in this process counts from its commit on, one in another process within ``KEEP_SECONDS``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from controller.database.connection import Database
from controller.devices import store

KEEP_SECONDS: Final = 1.0
_MAX_KEPT: Final = 100_000


class Registry:
    """Answers from memory as long as nothing was committed."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._clock = clock
        self._kept: dict[str, bool] = {}
        self._until = 0.0
        database.subscribe(self._forget)

    def knows(self, device: str) -> bool:
        """Whether ``device`` is enrolled and not revoked."""
        now = self._clock()
        if now >= self._until or len(self._kept) >= _MAX_KEPT:
            self._kept = {}
            self._until = now + KEEP_SECONDS
        kept = self._kept  # a commit meanwhile replaces the dictionary: then this answer must not outlive it
        found = kept.get(device)
        if found is None:
            with self._database.read() as connection:
                found = store.is_active(connection, device)
            kept[device] = found
        return found

    def _forget(self) -> None:
        self._kept = {}
