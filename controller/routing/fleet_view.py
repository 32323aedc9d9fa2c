"""The fleet as the gateway sees it: who is registered, and who is there.

Invariant: a request is judged by the newest registry that could be read; while the database is away the last one
holds, so that a lost controller never stops serving. A tunnel of a device that was revoked is closed as soon as the
view knows. Does not route (`choose.py`, `attempt.py`) and does not carry requests (`tunnels.py`).
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import structlog

from controller.errors import ControllerError, UnauthenticatedError, UnavailableError
from controller.routing.standings import ModelStanding, Standings
from controller.routing.store import RegisteredDevice, Registry, RegistryFile
from controller.tenants import tokens
from controller.tenants.access import Principal

POLL_SECONDS: Final = 0.5
LOOK_SECONDS: Final = 5.0  # a look takes milliseconds, but the machine may be busy and the database away
MAX_TOKEN: Final = 256  # characters

log = structlog.get_logger()


class FleetView:
    """The registry in ``database_path`` and the live standings of devices. One event loop owns it."""

    def __init__(self, database_path: Path) -> None:
        self.standings = Standings()
        self.refreshed: float | None = None  # loop time of the last successful look
        self._file = RegistryFile(database_path)
        self._registry: Registry | None = None
        self._looked = asyncio.Event()
        self._looking = False
        self._listeners: list[Callable[[], None]] = []
        self._away = False
        # one thread: a read that is still going on when the gateway stops is over before the file is closed
        self._reader = ThreadPoolExecutor(1, "registry")

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` in the event loop after each change of the registry."""
        self._listeners.append(listener)

    async def run(self) -> None:
        """Follow the registry until cancelled."""
        try:
            while True:
                await self.refresh()
                await asyncio.sleep(POLL_SECONDS)
        finally:
            self.close()

    def close(self) -> None:
        """Let go of the database; the view is of no use afterwards."""
        self._reader.submit(self._file.close)
        self._reader.shutdown(wait=False)

    async def refresh(self) -> None:
        """Look once whether the registry changed. Never raises for a database that is away: that is logged once."""
        self._looking = True
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._reader, self._file.read_if_changed)
        except ControllerError as error:
            if not self._away:
                log.warning("the registry is away, serving goes on with the last view", error=str(error))
            self._away = True
        else:
            if self._away:
                log.info("the registry is back")
            self._away = False
            self.refreshed = asyncio.get_running_loop().time()
            if found is not None:
                self._registry = found
                for listener in self._listeners:
                    listener()
        finally:
            self._looking = False
        self._looked.set()
        self._looked = asyncio.Event()

    async def looked_again(self) -> None:
        """Wait until the registry was looked at once more: what is unknown now may have been stored just now.

        It also slows down whoever guesses. Ends after ``LOOK_SECONDS`` at the latest.
        """
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                if self._looking:
                    await self._looked.wait()  # this look began before what is looked for may have been stored
                await self._looked.wait()
        except TimeoutError:
            log.warning("the registry takes long to read")

    # who is registered

    @property
    def ready(self) -> bool:
        """Whether the registry was read at least once."""
        return self._registry is not None

    def device(self, device: str) -> RegisteredDevice | None:
        """Return a registered device, None for an unknown one. Raises UnavailableError before the first read."""
        return self._known().devices.get(device)

    def principal(self, text: str, now: float) -> Principal:
        """Return who holds the API token ``text``, or the console's session of that text. ``now``: since 1970.

        Raises UnauthenticatedError, and UnavailableError before the registry was first read.
        """
        registry = self._known()
        parts = text.split(".") if len(text) <= MAX_TOKEN else []
        id_, row = "", None
        if len(parts) == 3 and parts[0] == tokens.PREFIX:
            id_, row = parts[1], registry.tokens.get(parts[1])
            if row is not None and not hmac.compare_digest(row.secret_sha256, tokens.sha256(parts[2])):
                row = None
        elif len(parts) == 1:  # found by the hash of all of its 256 random bits
            id_, ends = registry.sessions.get(tokens.sha256(text), ("", 0.0))
            row = registry.tokens.get(id_) if ends > now else None
        if row is None:
            raise UnauthenticatedError("this API token is not known: make one with `muster tokens create`", "bad_token")
        if row.revoked:
            raise UnauthenticatedError("this API token was revoked: ask an admin for another", "revoked_token")
        if row.expires is not None and row.expires <= now:
            raise UnauthenticatedError("this API token has expired: ask an admin for another", "expired_token")
        return Principal(tenant=row.tenant, role=row.role, id=id_, name=row.name)

    def has_model(self, tenant: str, model: str, version: str | None) -> bool:
        """Whether the tenant has this model (and version), served by a device now or not."""
        if self.standings.eligible(tenant, model, version):
            return True
        registry = self._known()
        return (tenant, model) in registry.models and (version is None or (tenant, model, version) in registry.versions)

    # who is there: what `choose.rank` reads

    def eligible(self, tenant: str, model: str, version: str | None) -> Sequence[ModelStanding]:
        """Return the ready devices of ``tenant`` for ``model``."""
        return self.standings.eligible(tenant, model, version)

    def p99(self, tenant: str, model: str) -> float | None:
        """Return the 99th percentile of recent answers in seconds, None when there were too few."""
        return self.standings.p99(tenant, model)

    def _known(self) -> Registry:
        if self._registry is None:
            raise UnavailableError("the gateway has not read its registry yet: try again", "registry_unread")
        return self._registry
