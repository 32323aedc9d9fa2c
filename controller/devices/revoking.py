"""Carries to the broker who is kept out: the list of refused certificates, then the live connections.

Invariant: the database is the truth; the list on disk follows it before any connection is cut, so that who is cut stays
out. After a start everything that is revoked is carried out once more. A device that floods the broker is kept out the
same way for a while; that is kept in memory, for one that goes on is soon seen again. Messages, tunnels and HTTP
sessions of a revoked device are refused elsewhere, by the database alone. Decides nothing (`revocation.py`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from controller.database.connection import Database
from controller.devices import store
from controller.devices.authority import Authority
from controller.devices.revocation import Write, cuts_due, judge, silence
from controller.errors import ControllerError

LOOK_SECONDS: Final = 1.0
PAUSE_SECONDS: Final = 0.2  # between two looks, however often something is committed
AT_ONCE: Final = 8  # cuts under way
MAX_SILENCED: Final = 1_000
STILL_OF_INTEREST: Final = 86_400.0  # seconds that a certificate stays on the list after its end: clocks differ

log = structlog.get_logger()


@dataclass
class _Cut:
    since: float  # monotonic, when the revocation was first seen
    done: int = 0


@dataclass
class _Silenced:
    until: float  # monotonic
    times: int


class Revoking:
    """``reload`` has the broker load the list again; ``cut(device)`` ends a connection. Both raise UnavailableError."""

    def __init__(
        self,
        database: Database,
        authority: Authority,
        reload: Callable[[], None],
        cut: Callable[[str], Awaitable[None]],
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._authority = authority
        self._reload = reload
        self._cut_one = cut
        self._clock = clock
        self._monotonic = monotonic
        self._cuts: dict[str, _Cut] = {}
        self._silenced: dict[str, _Silenced] = {}
        self._loaded = False  # whether the broker was told of the list as it is
        self._told = ""
        self._wake = asyncio.Event()

    async def run(self) -> None:
        """Carry out revocations until cancelled; each within a moment of its commit in this process."""
        loop = asyncio.get_running_loop()

        def wake() -> None:
            loop.call_soon_threadsafe(self._wake.set)

        self._database.subscribe(wake)
        while True:
            self._wake.clear()
            try:
                await self.look()
                self._told = ""
            except ControllerError as error:
                if str(error) != self._told:
                    self._told = str(error)
                    log.warning("a revocation could not be carried to the broker; trying again", reason=self._told)
            await asyncio.sleep(PAUSE_SECONDS)
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                pass

    def silence(self, device: str) -> None:
        """Keep ``device`` out for a while, longer each time. To be called in the event loop."""
        now = self._monotonic()
        times = self._silenced[device].times + 1 if device in self._silenced else 1
        if device not in self._silenced and len(self._silenced) >= MAX_SILENCED:
            self._silenced.clear()
        self._silenced[device] = _Silenced(now + silence(times), times)
        log.error("a device floods the broker and is kept out", device=device, seconds=silence(times), times=times)
        self._wake.set()

    def silenced(self) -> list[str]:
        """Return the devices that are kept out now because they flooded the broker."""
        now = self._monotonic()
        return sorted(device for device, one in self._silenced.copy().items() if one.until > now)

    async def look(self) -> None:
        """Bring the list up to date and make the cuts that are due. Raises ControllerError."""
        out = await asyncio.to_thread(self._update_list, self.silenced())
        now = self._monotonic()
        self._cuts = {device: self._cuts.get(device) or _Cut(now) for device in out}
        if not self._loaded:
            self._reload()
            self._loaded = True
        due = [device for device, cut in self._cuts.items() if cuts_due(now - cut.since, cut.done)]
        limit = asyncio.Semaphore(AT_ONCE)

        async def one(device: str) -> None:
            async with limit:
                await self._cut_one(device)
            cut = self._cuts[device]
            cut.done += 1
            if cut.done == 1:
                log.info("a device was cut off", device=device)

        outcomes = await asyncio.gather(*(one(device) for device in due), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    def _update_list(self, silenced: Sequence[str]) -> set[str]:
        now = self._clock()
        with self._database.read() as connection:
            rows = store.revoked_certificates(connection, now - STILL_OF_INTEREST, silenced)
        serials = {serial for _, serial in rows}
        verdict = judge(self._authority.held_list(), serials, self._authority.list_issuers, now)
        if isinstance(verdict, Write):
            self._authority.write_list(serials, verdict.begins, verdict.ends)
            self._loaded = False
            log.info("list of refused certificates written", certificates=len(serials), reason=verdict.reason)
        return {device for device, _ in rows}
