"""Whose turn it is: one component at a time is installed, tried and switched, since that takes memory and time.

Invariant: at most one holder; whoever waits longest comes next. Taking it twice is taking it once. It is held in memory
only: after a restart everybody asks again.
"""

from __future__ import annotations

import asyncio
from collections import deque


class Turn:
    """The turn of one device."""

    def __init__(self) -> None:
        self._holder: str | None = None
        self._waiting: deque[tuple[str, asyncio.Future[None]]] = deque()

    @property
    def holder(self) -> str | None:
        """The component whose turn it is."""
        return self._holder

    def take(self, component: str) -> bool:
        """Take the turn if nobody has it and nobody waits. Returns whether ``component`` has it now."""
        if self._holder is None and not self._waiting:
            self._holder = component
        return self._holder == component

    async def wait(self, component: str) -> None:
        """Return when ``component`` has the turn."""
        if self.take(component):
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((component, place))
        try:
            await place
        except asyncio.CancelledError:
            if self._holder == component:  # it was handed over in the very moment of the cancellation
                self.release(component)
            self._waiting = deque(entry for entry in self._waiting if entry[1] is not place)
            raise

    def release(self, component: str) -> None:
        """Hand the turn on, if ``component`` has it."""
        if self._holder != component:
            return
        self._holder = None
        while self._waiting and self._holder is None:
            following, place = self._waiting.popleft()
            if not place.done():
                self._holder = following
                place.set_result(None)
