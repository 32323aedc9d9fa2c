"""One request in a tunnel: what goes out of it, and what came back.

Invariant: a stream is settled exactly once; the room of its answer is reserved before it is kept, and returned once. A
request's frames are made one at a time, when it is their turn. Writes nothing and reads nothing (`tunnels.py`).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from controller.routing.attempt import Outcome
from wire.tunnel import CHUNK, Frame, Kind, ResponseHead, encode_frame

if TYPE_CHECKING:
    from controller.routing.tunnels import Tunnel


class Stream:
    """One request in one tunnel. ``done`` ends with the outcome; after ANSWERED ``head`` and ``body`` are complete."""

    __slots__ = ("_answered", "_reserved", "body", "detail", "done", "head", "id", "outgoing", "tunnel")

    def __init__(self, tunnel: Tunnel, number: int, outgoing: Outgoing, done: asyncio.Future[Outcome]) -> None:
        self.tunnel = tunnel
        self.id = number
        self.outgoing = outgoing
        self.done = done
        self.head: ResponseHead | None = None
        self.body: bytes | bytearray = b""
        self.detail = ""
        self._reserved = 0
        self._answered = 0.0

    @property
    def moved(self) -> int:
        """Bytes that moved either way, not counting what fits into the request's first frame."""
        return max(0, self.outgoing.sent - CHUNK) + len(self.body)

    @property
    def waited(self) -> float | None:
        """Seconds of waiting for the answer to begin: from the end of a large request, from the beginning of a small
        one; None for an answer that came sooner."""
        written = self.outgoing.written
        return self._answered - written if 0.0 < written <= self._answered else None

    def begin_answer(self, head: ResponseHead, now: float) -> None:
        """Take the answer's head. ``now``: loop time."""
        self.head, self._answered = head, now

    def end(self, outcome: Outcome, detail: str = "") -> None:
        """Settle the stream, unless it is settled."""
        if not self.done.done():
            self.detail = detail
            self.done.set_result(outcome)

    def reserve(self, size: int) -> bool:
        """Reserve room for an answer of ``size`` bytes."""
        if not self.tunnel.budget.take(self.tunnel.live.tenant, size):
            return False
        self._reserved += size
        return True

    def release(self) -> None:
        """Return the room of the answer: nobody reads it any more."""
        self.tunnel.budget.give(self.tunnel.live.tenant, self._reserved)
        self._reserved = 0


class Outgoing:
    """A request on its way: its frames are made one at a time, when it is their turn."""

    __slots__ = ("_body", "_head", "_offset", "_stream", "started", "stopped", "written")

    def __init__(self, stream: int, head: bytes, body: bytes, now: float) -> None:
        self._stream, self._head, self._body = stream, head, body
        self._offset = 0
        self.started = False
        self.stopped = False
        self.written = now if len(body) <= CHUNK else 0.0  # loop time from which on the device has it all to work on

    @property
    def sent(self) -> int:
        """Bytes of the body that were made into frames."""
        return self._offset

    @property
    def left(self) -> int:
        """Bytes of the body that were not made into frames yet."""
        return len(self._body) - self._offset

    @property
    def finished(self) -> bool:
        """Whether the last frame was made, or nobody wants the rest."""
        return self.stopped or (self.started and self._offset == len(self._body))

    def stop(self) -> None:
        """Make no further frame."""
        self.stopped, self._body, self._offset = True, b"", 0

    def next_frame(self) -> bytes:
        """Return the bytes of the next frame."""
        whole = not self._offset and len(self._body) <= CHUNK
        chunk = self._body if whole else self._body[self._offset : self._offset + CHUNK]
        self._offset += len(chunk)
        end = self._offset == len(self._body)
        if self.started:
            return encode_frame(Frame(Kind.BODY, self._stream, body=chunk, end=end))
        self.started = True
        return encode_frame(Frame(Kind.REQUEST, self._stream, self._head, chunk, end))
