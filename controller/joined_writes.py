"""What is written to a connection within one turn of the event loop goes out in one piece.

Invariant: bytes keep their order, and none waits longer than to the end of the turn or beyond ``MAX_HELD``. An answer's
head and body are two writes of uvicorn's; together they cost one record and one system call instead of two. Knows no
protocol.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

MAX_HELD: Final = 64 * 1024  # bytes: more is handed on at once, so that the transport can say that it is full


class JoinedWrites:
    """A transport in front of ``transport``; everything but writing and closing is the latter's own."""

    __slots__ = ("_due", "_held", "_loop", "_size", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held: list[bytes] = []
        self._size = 0
        self._due = False

    def write(self, data: bytes) -> None:
        """Write ``data`` at the end of this turn."""
        self._held.append(data)
        self._size += len(data)
        if self._size > MAX_HELD:
            self._hand_on()
        elif not self._due:
            self._due = True
            self._loop.call_soon(self._end_turn)

    def close(self) -> None:
        """Write what is held, and close."""
        self._hand_on()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def _end_turn(self) -> None:
        self._due = False
        self._hand_on()

    def _hand_on(self) -> None:
        if self._held:
            data = self._held[0] if len(self._held) == 1 else b"".join(self._held)
            self._held, self._size = [], 0
            if not self._transport.is_closing():
                self._transport.write(data)
