"""Sequenced messages: stored once, then acknowledged (wire 4.2).

Invariant: a message's effect and the device's sequence are committed together, and only after that commit the device
hears an acknowledgement; killed at any point, the device sends again and nothing is stored twice. Messages that wait
are committed together. A message whose effect fails for ever is set aside, so that it does not block those behind it.
Knows no effect itself: handlers are handed over by `app.py`.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from enum import Enum
from typing import Any, Final

import structlog
from sqlalchemy import Connection

from controller.database.connection import Database
from controller.devices.sequence import Duplicate, Fresh, Gap
from controller.devices.store import accept
from controller.errors import NotFoundError, UnavailableError
from controller.telemetry.series import Series
from wire.messages import Health, Sequenced

MAX_WAITING: Final = 2048
MAX_BATCH: Final = 256
MAX_ATTEMPTS: Final = 3
PRUNE_SECONDS: Final = 600.0
_MAX_REMEMBERED: Final = 10_000

Effect = Callable[[Connection, str, Any, float], object]  # (connection, device, message, received)
Acknowledge = Callable[[str, str, int], Awaitable[None]]  # (device, stream, sequence)
Waiting = tuple[str, Sequenced]

log = structlog.get_logger()


class Ingest:
    """``run`` stores what the broker hands to ``handlers``; ``observe`` is told of each health report once stored.

    counts: messages "stored", "duplicate" (acknowledged again), "gap" (neither), "postponed" (the database is away:
    the device sends again), "set_aside", "unstorable" (not even that), "refused" (unknown or revoked device); and
    "report_" with the outcome that an effect gives as an Enum.
    """

    def __init__(
        self,
        database: Database,
        series: Series,
        effects: Mapping[type[Sequenced], Effect],
        acknowledge: Acknowledge,
        clock: Callable[[], float] = time.time,
        observe: Callable[[str, Health, float], None] = lambda device, health, now: None,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._database = database
        self._series = series
        self._effects = effects
        self._acknowledge = acknowledge
        self._clock = clock
        self._observe = observe
        self._waiting: asyncio.Queue[Waiting] = asyncio.Queue(MAX_WAITING)
        self._failures: dict[tuple[str, str, int], int] = {}
        self._pruned = 0.0

    def handlers(self) -> dict[type[Sequenced], Callable[[str, Any], Awaitable[None]]]:
        """Return the broker's handlers by message type."""
        return dict.fromkeys((Health, *self._effects), self.handle)

    async def handle(self, device: str, message: Sequenced) -> None:
        """Take a message in; waits while too many wait already. Storing and acknowledging follow in ``run``."""
        await self._waiting.put((device, message))

    async def run(self) -> None:
        """Store and acknowledge until cancelled."""
        while True:
            batch = [await self._waiting.get()]
            while len(batch) < MAX_BATCH and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            await self.store(batch)

    async def store(self, batch: Sequence[Waiting]) -> None:
        """Store ``batch`` and acknowledge what is stored. Raises nothing: what fails is counted, and sent again."""
        try:
            stored = await asyncio.to_thread(self._commit, batch)
        except UnavailableError as error:
            self.counts["postponed"] += len(batch)
            log.warning("messages could not be stored; the devices send again", messages=len(batch), error=str(error))
            return
        outcomes = await asyncio.gather(
            *(self._acknowledge(device, stream, upto) for (device, stream), upto in stored.items()),
            return_exceptions=True,
        )
        for outcome in outcomes:
            if isinstance(outcome, Exception):  # the device sends again, and is answered then
                log.debug("an acknowledgement was not sent", error=str(outcome))

    def _commit(self, batch: Sequence[Waiting]) -> dict[tuple[str, str], int]:
        now = self._clock()
        if abs(now - self._pruned) >= PRUNE_SECONDS:  # either way: a clock that was put back must not stop it
            self._pruned = now
            self._series.prune(now)
        try:
            return self._commit_together(batch, now)
        except UnavailableError:
            raise
        except Exception as error:
            if len(batch) == 1:
                return self._failed(batch[0], error, now)
            log.warning("messages are stored one by one", messages=len(batch), error=str(error))
        stored: dict[tuple[str, str], int] = {}
        for waiting in batch:
            try:
                stored |= self._commit_together([waiting], now)
            except UnavailableError:
                raise
            except Exception as error:
                stored |= self._failed(waiting, error, now)
        return stored

    def _commit_together(
        self, batch: Sequence[Waiting], now: float, *, with_effect: bool = True
    ) -> dict[tuple[str, str], int]:
        """Store ``batch`` in one transaction; return up to where each (device, stream) is to be acknowledged."""
        counts: Counter[str] = Counter()
        stored: dict[tuple[str, str], int] = {}
        health: list[tuple[str, Health]] = []
        with self._database.begin() as connection:
            for device, message in batch:
                try:
                    verdict = accept(connection, device, message.stream, message.sequence, message.previous)
                except NotFoundError:
                    counts["refused"] += 1
                    continue
                if isinstance(verdict, Gap):
                    counts["gap"] += 1
                    continue
                counts["duplicate" if isinstance(verdict, Duplicate) else "stored"] += 1
                stored[device, message.stream] = verdict.acknowledge
                if not isinstance(verdict, Fresh) or not with_effect:
                    continue
                if isinstance(message, Health):
                    health.append((device, message))
                else:
                    outcome = self._effects[type(message)](connection, device, message, now)
                    if isinstance(outcome, Enum):
                        counts[f"report_{outcome.value}"] += 1
            if health:
                # First there, then here: cut in between, the device sends again and the series skip what they have.
                self._series.write(health, now)
        for device, message in health:
            self._observe(device, message, now)
        self.counts += counts
        return stored

    def _failed(self, waiting: Waiting, error: Exception, now: float) -> dict[tuple[str, str], int]:
        device, message = waiting
        key = (device, message.stream, message.sequence)
        attempts = self._failures.pop(key, 0) + 1
        log.error("a message could not be stored", device=device, sequence=message.sequence, exc_info=error)
        if attempts < MAX_ATTEMPTS:
            if len(self._failures) >= _MAX_REMEMBERED:
                self._failures.clear()
            self._failures[key] = attempts
            self.counts["postponed"] += 1
            return {}
        self.counts["set_aside"] += 1
        try:
            return self._commit_together([waiting], now, with_effect=False)
        except UnavailableError:
            raise
        except Exception as trouble:  # not even its sequence can be stored: the device keeps it, and all others go on
            log.warning("a message could not be set aside", device=device, error=str(trouble))
            self.counts["unstorable"] += 1
            return {}
