"""What ends the waiting for a device's answer before it came: a client that left, a device that does not move on.

Invariant: both only settle the stream (`streams.py`); who waits for it does the rest. While bytes of a large body move,
either way, the device is not taken for dead, but never for longer than the try may take in all. Decides no durations
(`attempt.py`).
"""

from __future__ import annotations

import asyncio
from typing import Final

from starlette.types import Receive

from controller.routing.attempt import Outcome, Try
from controller.routing.streams import Stream

WATCH_AFTER: Final = 0.05  # seconds: requests that are answered sooner need nobody who looks for their client
HICCUP: Final = 0.1  # seconds by which a timer is late when this process had no time


class ClientWatch:
    """Notices that the client of one request went away, and settles the stream that works for it."""

    def __init__(self, receive: Receive) -> None:
        self.gone = False
        self.stream: Stream | None = None
        self._receive = receive
        self._task: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(WATCH_AFTER, self._start)

    def stop(self) -> None:
        """Look no longer."""
        self._timer.cancel()
        if self._task is not None:
            self._task.cancel()

    def _start(self) -> None:
        self._task = self._loop.create_task(self._wait())

    async def _wait(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        if self.stream is not None:
            self.stream.end(Outcome.ABANDONED, "the client went away")


class Patience:
    """Settles ``stream`` as out of time when nothing of it moved for ``step.timeout``, or after ``step.limit``."""

    __slots__ = ("_due", "_end", "_loop", "_moved", "_step", "_stream", "_timer")

    def __init__(self, stream: Stream, step: Try) -> None:
        self._stream, self._step = stream, step
        self._loop = asyncio.get_running_loop()
        now = self._loop.time()
        self._end = now + step.limit
        self._due = now + step.timeout
        self._moved = 0
        self._timer = self._loop.call_at(self._due, self._look)

    def stop(self) -> None:
        """Look no longer."""
        self._timer.cancel()

    def _look(self) -> None:
        now = self._loop.time()
        before, self._moved = self._moved, self._stream.moved
        if now >= self._end:
            return self._stream.end(Outcome.TIMEOUT)
        if now - self._due > HICCUP:  # this process slept, not the device: its answer may lie unread in the socket
            self._due = now + HICCUP
        elif self._moved != before:
            self._due = now + self._step.timeout
        else:
            return self._stream.end(Outcome.TIMEOUT)
        self._due = min(self._due, self._end)
        self._timer = self._loop.call_at(self._due, self._look)
        return None
