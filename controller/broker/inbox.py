"""Incoming messages wait here, a queue for each device.

Invariant: messages of one device are handled one after the other, in order; a device that sends more than is handled
loses its own messages, never those of others, and memory is bounded. Does not decode (`session.py`).
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from wire.topics import Channel

MAX_WAITING: Final = 64  # messages of one device
MAX_AT_ONCE: Final = 32  # devices whose messages are being handled

log = structlog.get_logger()

Handle = Callable[[str, Channel, bytes], Awaitable[None]]


class Inbox:
    """``handle(device, channel, payload)`` does the work; what it raises is logged and counted."""

    def __init__(self, handle: Handle, max_waiting: int = MAX_WAITING, max_at_once: int = MAX_AT_ONCE) -> None:
        self._handle = handle
        self._max_waiting = max_waiting
        self._at_once = asyncio.Semaphore(max_at_once)
        self._waiting: dict[str, deque[tuple[Channel, bytes]]] = {}
        self._workers: set[asyncio.Task[None]] = set()
        self.counts: Counter[str] = Counter()  # "flooded": dropped because the queue was full; "failed": raised

    def put(self, device: str, channel: Channel, payload: bytes) -> bool:
        """Queue one message; return False when one was dropped for it, this or an older one.

        When the queue is full, a retained value replaces the older one that waits on its channel; anything else is
        dropped: what must arrive is sent again (wire 4.2).
        """
        queue = self._waiting.get(device)
        if queue is None:
            self._waiting[device] = deque([(channel, payload)])
            worker = asyncio.create_task(self._work(device), name=f"inbox {device}")
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)
            return True
        full = len(queue) >= self._max_waiting
        if full:
            older = next((entry for entry in queue if entry[0] is channel), None) if channel.retained else None
            self.counts["flooded"] += 1
            if older is None:
                return False
            queue.remove(older)
        queue.append((channel, payload))
        return not full

    async def close(self) -> None:
        """Drop what waits and stop."""
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        self._waiting.clear()

    async def _work(self, device: str) -> None:
        queue = self._waiting[device]
        while queue:
            async with self._at_once:  # taken anew for each message, so that a long queue waits its turn
                channel, payload = queue.popleft()
                try:
                    await self._handle(device, channel, payload)
                except Exception:
                    self.counts["failed"] += 1
                    log.exception("a message could not be handled", device=device, channel=channel.name)
        del self._waiting[device]
