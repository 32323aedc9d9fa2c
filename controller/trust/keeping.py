"""Keeps the online part of every tenant's repository fresh, and tells what a person must sign in time.

Invariant: a timestamp is replaced when half of its life is over, so that a controller that was away for hours leaves no
device without a fresh one. Offline keys are not here, unless for trial (`trial.py`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog
from securesystemslib.signer import Key  # type: ignore[attr-defined]
from sqlalchemy import Connection
from tuf.api.metadata import Root, Targets

from controller.database.connection import Database
from controller.errors import ControllerError
from controller.trust import layout, metadata, repository, store, trial
from controller.trust.keys import OnlineKeys, keys_for, make_next, online_keys, settle
from wire.envelope import PublicKey

LOOK_SECONDS: Final = 60.0
SOON: Final = 30 * layout.DAY  # before which a person should have signed again

log = structlog.get_logger()


@dataclass(frozen=True)
class Keeper:
    """Where the keys of repositories lie, and who builds: what is needed to found and keep one.

    directory: of the online keys, one directory a tenant below it.
    """

    database: Database
    directory: Path
    builders: tuple[PublicKey, ...]
    profiles: tuple[str, ...]

    def online(self, tenant: str) -> OnlineKeys:
        """Return the tenant's online keys, made when missing."""
        return online_keys(self.directory / tenant)

    def online_for(self, tenant: str, root: Root) -> OnlineKeys:
        """Return the tenant's online keys that ``root`` names."""
        return keys_for(self.directory / tenant, root)

    def make_next(self, tenant: str, role: str) -> Key:
        """Make a key that the tenant's next root may name for ``role``, one of `layout.ONLINE`."""
        return make_next(self.directory / tenant, role)

    def settle(self, tenant: str, root: Root) -> list[str]:
        """Put the keys that ``root``, which holds now, names in the place of those in use; return the roles."""
        return settle(self.directory / tenant, root)

    def trial_directory(self, tenant: str) -> Path:
        """Return where the tenant's trial keys lie, or would lie."""
        return self.directory / tenant / trial.DIRECTORY

    def found(self, connection: Connection, tenant: str, now: float) -> None:
        """Make sure that ``tenant`` has a repository: under trial keys, when it has none."""
        if store.newest(connection, tenant, layout.ROOT) is None:
            arguments = (self.trial_directory(tenant), self.builders, self.profiles, self.online(tenant), now)
            trial.found(connection, tenant, *arguments)
            log.warning("signed repository founded with keys for trial only", tenant=tenant, next="muster keys init")

    def keep(self, tenant: str, now: float) -> list[str]:
        """Sign what is due; return the roles that were signed."""
        signed: list[str] = []
        with self.database.begin() as connection:
            root = metadata.read(repository.require_root(connection, tenant), Root)
            self.settle(tenant, root.signed)  # what a crash after the commit left
            online = self.online(tenant)
            arguments = (self.trial_directory(tenant), self.builders, self.profiles, online, now)
            if trial.keep(connection, tenant, *arguments):
                return [layout.ROOT, layout.TARGETS, *layout.ONLINE]
            trial.retire(self.trial_directory(tenant), root)  # what a crash after a ceremony left
            expiry = {row.role: row.expires for row in store.roles(connection, tenant)}
            if layout.due(layout.SNAPSHOT, expiry[layout.SNAPSHOT], now):
                repository.sign_again(connection, tenant, online, now)
                signed = [*layout.ONLINE]
            elif layout.due(layout.TIMESTAMP, expiry[layout.TIMESTAMP], now):
                repository.sign_timestamp(connection, tenant, online, now)
                signed = [layout.TIMESTAMP]
        return signed

    async def run(self) -> None:
        """Look every minute, until cancelled."""
        while True:
            try:
                await asyncio.to_thread(self._keep_all)
            except ControllerError as error:
                log.warning("the signed repositories could not be kept fresh", error=str(error), code=error.code)
            await asyncio.sleep(LOOK_SECONDS)

    def _keep_all(self) -> None:
        with self.database.read() as connection:
            tenants = store.tenants(connection)
        for tenant in tenants:
            try:
                if signed := self.keep(tenant, time.time()):
                    log.info("metadata signed again", tenant=tenant, roles=signed)
            except ControllerError as error:  # one tenant's trouble is not another's
                log.warning("a signed repository could not be kept fresh", tenant=tenant, error=str(error))


def status(connection: Connection, tenant: str, keeper: Keeper) -> dict[str, Any]:
    """Return how a tenant's repository stands, in JSON: roles with versions and expiry, keys, and whether for trial."""
    data = store.newest(connection, tenant, layout.ROOT)
    if data is None:
        return {"tenant": tenant, "founded": False, "roles": [], "keys": [], "trial": False}
    root = metadata.read(data, Root)
    rows: Sequence[Any] = store.roles(connection, tenant)
    online = keeper.online(tenant)
    top = [role for role in layout.TOP if role in root.signed.roles]
    return {
        "tenant": tenant,
        "founded": True,
        "trial": trial.holds(keeper.trial_directory(tenant), root),
        "roles": [{"role": row.role, "version": row.version, "expires": row.expires} for row in rows],
        "keys": [
            {"role": role, "keyid": keyid, "threshold": root.signed.roles[role].threshold}
            for role in top
            for keyid in root.signed.roles[role].keyids
        ]
        + [{"role": "builder", "keyid": keyid, "threshold": 1} for keyid in _builders(connection, tenant)],
        "online": {role: online.public(role).to_dict() for role in layout.ONLINE},
    }


def _builders(connection: Connection, tenant: str) -> list[str]:
    """Return the ids of the keys that vouch for builds, as the top-level targets name them."""
    data = store.newest(connection, tenant, layout.TARGETS)
    delegations = None if data is None else metadata.read(data, Targets).signed.delegations
    roles = {} if delegations is None else delegations.roles or {}
    return list(
        dict.fromkeys(keyid for role in roles.values() if role.name != layout.SOFTWARE for keyid in role.keyids)
    )


def overdue(connection: Connection, tenant: str, now: float) -> list[tuple[str, float]]:
    """Return the roles that somebody with a key kept elsewhere must sign soon, with their expiry, the nearest first."""
    rows = store.roles(connection, tenant)
    found = [
        (row.role, row.expires)
        for row in rows
        if row.role not in layout.ONLINE and row.expires < now + (SOON if row.role in layout.TOP else 5 * layout.DAY)
    ]
    return sorted(found, key=lambda pair: pair[1])
