"""What devices say of themselves (wire 4.3 to 4.6) goes into their rows.

Invariant: one transaction a message; heartbeats are collected and written together once a second, because a fleet
sends more of them than a disk should sync. Does not handle sequenced messages (telemetry/ingest.py).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
import structlog

from controller.database.connection import Database
from controller.devices import store
from controller.devices.copies import Copies
from controller.errors import UnavailableError
from wire.codec import Message
from wire.messages import Facts, Heartbeat, Reported, State

FLUSH_SECONDS: Final = 1.0

log = structlog.get_logger()


class Reports:
    """Handlers for the broker; ``run`` must run beside them. ``copies``: which identities two machines seem to use."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self.copies = Copies()
        self._database = database
        self._clock = clock
        self._seen: dict[str, float] = {}  # bounded by the number of enrolled devices: the broker drops all others

    def handlers(self) -> dict[type[Message], Callable[[str, Any], Awaitable[None]]]:
        """Return the handlers by message type, as `Broker` wants them."""
        return {
            State: self.on_state,
            Heartbeat: self.on_heartbeat,
            Facts: self.on_facts,
            Reported: self.on_reported,
        }

    async def on_state(self, device: str, state: State) -> None:
        """Store whether the device is there. Raises UnavailableError when the database is away, as the others do."""
        self.copies.note(device, state.boot, state.session, state.online, self._clock())
        await asyncio.to_thread(self._save_state, device, state)

    async def on_heartbeat(self, device: str, _heartbeat: Heartbeat) -> None:
        """Note that the device was heard; ``run`` writes it down."""
        self._seen[device] = self._clock()

    async def on_facts(self, device: str, facts: Facts) -> None:
        """Store what the hardware is."""
        await asyncio.to_thread(self._save_facts, device, facts)

    async def on_reported(self, device: str, reported: Reported) -> None:
        """Store what runs."""
        await asyncio.to_thread(self._save_reported, device, reported)

    async def run(self) -> None:
        """Write heartbeats down every ``FLUSH_SECONDS``, until cancelled."""
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            await self.flush()

    async def flush(self) -> None:
        """Write down the heartbeats since the last time; those of a busy second are kept for the next."""
        seen, self._seen = self._seen, {}
        if not seen:
            return
        try:
            await asyncio.to_thread(self._save_seen, seen)
        except UnavailableError as error:
            self._seen = seen | self._seen
            log.warning("heartbeats could not be stored", devices=len(seen), error=str(error))

    def _save_state(self, device: str, state: State) -> None:
        with self._database.begin() as connection:
            store.save_state(connection, device, state, self._clock())

    def _save_facts(self, device: str, facts: Facts) -> None:
        with self._database.begin() as connection:
            store.save_facts(connection, device, facts, _builtins(facts))

    def _save_reported(self, device: str, reported: Reported) -> None:
        with self._database.begin() as connection:
            store.save_reported(connection, device, reported, _builtins(reported), self._clock())

    def _save_seen(self, seen: dict[str, float]) -> None:
        with self._database.begin() as connection:
            store.save_seen(connection, seen)


def _builtins(message: Message) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(message)
    del fields["extra"]
    return fields
