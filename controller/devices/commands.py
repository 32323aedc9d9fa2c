"""Makes commands, signs them, and sends them until they are answered or have expired (wire 4.9).

Invariant: a command stands in the database before it is sent; it is sent only to devices that are connected, and again
every ``AGAIN_SECONDS``, because neither broker nor device promises to have kept it. Does not decide who may command.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import structlog
from sqlalchemy import Connection

from controller.database.connection import Database
from controller.devices import command_store
from controller.errors import UnavailableError
from wire import envelope
from wire.codec import encode
from wire.messages import Command
from wire.topics import COMMAND, Channel

KINDS: Final = ("restart", "logs")
LIFETIME: Final = 3600.0
AGAIN_SECONDS: Final = 20.0
LOOK_SECONDS: Final = 2.0
BATCH: Final = 500

Publish = Callable[[Channel, str, bytes], Awaitable[None]]

log = structlog.get_logger()


class CommandSender:
    """``order`` makes commands; ``run`` sends them."""

    def __init__(
        self,
        database: Database,
        key: envelope.PrivateKey,
        publish: Publish,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._key = key
        self._publish = publish
        self._clock = clock

    def order(self, connection: Connection, tenant: str, devices: Sequence[str], kind: str) -> list[str]:
        """Store a command for each of ``devices`` in the caller's transaction; return their ids."""
        now = self._clock()
        rows = []
        for device in devices:
            command = Command(
                id=f"c-{secrets.token_hex(12)}", device=device, kind=kind, issued=now, expires=now + LIFETIME
            )
            rows.append(
                {
                    "id": command.id,
                    "tenant": tenant,
                    "device": device,
                    "kind": kind,
                    "envelope": envelope.seal(encode(command), envelope.COMMAND, self._key),
                    "created": now,
                    "expires": command.expires,
                }
            )
        if rows:
            command_store.add(connection, rows)
        command_store.prune(connection, devices)
        return [str(row["id"]) for row in rows]

    async def run(self) -> None:
        """Send what is due, until cancelled."""
        while True:
            try:
                await self.look()
            except UnavailableError as error:
                log.debug("commands wait", reason=str(error))
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        """Send what is due now, once. Raises UnavailableError when database or broker are away."""
        now = self._clock()
        due = await asyncio.to_thread(self._due, now)
        sent: list[str] = []
        try:
            for id_, device, data in due:
                await self._publish(COMMAND, device, data)
                sent.append(id_)
        finally:
            if sent:
                await asyncio.to_thread(self._mark, sent, now)

    def _due(self, now: float) -> list[tuple[str, str, bytes]]:
        with self._database.read() as connection:
            late = command_store.has_expired(connection, now)
            due = command_store.due(connection, now, now - AGAIN_SECONDS, BATCH)
        if late:  # most of the time: no write transaction for nothing
            with self._database.begin() as connection:
                command_store.expire(connection, now)
        return due

    def _mark(self, sent: Sequence[str], now: float) -> None:
        with self._database.begin() as connection:
            command_store.mark_sent(connection, sent, now)
