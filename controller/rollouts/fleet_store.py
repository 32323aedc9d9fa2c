"""Reads the fleet for the plan: all devices of a tenant in a few statements, never one by one.

Invariant: changes nothing. What a device says of its hardware is decoded once and kept until it says something
new: facts are large and change seldom.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from sqlalchemy import Connection, bindparam, select

from controller.builds import store as builds_store
from controller.database.tables import desired_items, devices, executions, rollouts
from controller.devices.presence import PresenceState, presence
from controller.rollouts.model import BuildView, DeviceView, Fleet, Platform, Standing
from wire.execution import SUCCESSES, ExecutionState

PUBLISHED: Final = "published"
CHUNK: Final = 500
MAX_BUILDS: Final = 500  # of one model version, the newest
_Signature = tuple[Any, ...]


class FleetReader:
    """Reads fleets; keeps decoded platforms between reads. Several threads may read at the same time."""

    def __init__(self) -> None:
        self._platforms: dict[str, tuple[_Signature, Platform]] = {}

    def read(self, connection: Connection, tenant: str, models: Iterable[tuple[str, int]], now: float) -> Fleet:
        """Return the fleet of ``tenant`` with the published builds of ``models`` (name, version)."""
        d = devices.c
        rows = connection.execute(
            select(d.id, d.name, d.tags, d.online, d.last_seen, d.revoked, d.profile, d.facts["at"].as_float())
            .where(d.tenant == tenant)
            .order_by(d.id)
        ).all()
        platforms = self._platforms_of(connection, {row.id: tuple(row)[6:] for row in rows})
        standing = _standings(connection, tenant)
        views = {
            row.id: DeviceView(
                id=row.id,
                name=row.name,
                tags=frozenset(row.tags),
                platform=platforms[row.id],
                online=presence(row.last_seen, row.online, now).state is not PresenceState.LOST,
                last_seen=row.last_seen,
                revoked=row.revoked is not None,
                standing=standing.get(row.id, {}),
            )
            for row in rows
        }
        return Fleet(devices=views, builds=_builds(connection, tenant, models))

    def _platforms_of(self, connection: Connection, signatures: Mapping[str, _Signature]) -> dict[str, Platform]:
        kept = {device: self._platforms.get(device) for device in signatures}
        found = {device: entry[1] for device, entry in kept.items() if entry and entry[0] == signatures[device]}
        stale = [device for device in signatures if device not in found]
        statement = select(devices.c.id, devices.c.facts).where(devices.c.id.in_(bindparam("ids", expanding=True)))
        for start in range(0, len(stale), CHUNK):
            for row in connection.execute(statement, {"ids": stale[start : start + CHUNK]}):
                signature = signatures[row.id]
                found[row.id] = platform(signature[0], row.facts)
                self._platforms[row.id] = (signature, found[row.id])
        return found


def platform(profile: str | None, facts: Mapping[str, Any] | None) -> Platform:
    """Return what ``facts`` (wire Facts as builtins; from a device, so anything may be missing) say of the platform."""
    facts = facts or {}
    hardware = facts.get("facts")
    arch = hardware.get("arch") or hardware.get("machine") if isinstance(hardware, dict) else None
    runtimes = {
        (str(row["name"]), str(row["version"]))
        for row in facts.get("runtimes", [])
        if row.get("name") and row.get("version") and row.get("usable", True)
    }
    return Platform(profile or "unknown", arch if isinstance(arch, str) else "", tuple(sorted(runtimes)))


def _standings(connection: Connection, tenant: str) -> dict[str, dict[str, Standing]]:
    i, e, r = desired_items.c, executions.c, rollouts.c
    rows = connection.execute(
        select(i.device, i.component, i.build, e.state, r.created, r.id)
        .select_from(desired_items)
        .join(executions, e.id == i.execution)
        .join(rollouts, r.id == e.rollout)
        .where(r.tenant == tenant)
    )
    found: dict[str, dict[str, Standing]] = {}
    for device, component, build, state, created, rollout in rows:
        in_place = ExecutionState(state) in SUCCESSES
        found.setdefault(device, {})[component] = Standing(build, (created, rollout), in_place)
    return found


def _builds(
    connection: Connection, tenant: str, models: Iterable[tuple[str, int]]
) -> dict[tuple[str, int], tuple[BuildView, ...]]:
    found: dict[tuple[str, int], tuple[BuildView, ...]] = {}
    for model, version in set(models):
        rows = builds_store.builds_of(
            connection, tenant, model=model, number=version, verdict=PUBLISHED, limit=MAX_BUILDS
        )
        found[model, version] = tuple(
            BuildView(
                id=row.id,
                profile=row.target["profile"],
                arch=tuple(row.target["arch"]),
                runtime=row.target["runtime"],
                min_runtime=row.target["min_runtime"],
                precision=row.precision,
                created=row.created,
            )
            for row in rows
        )
    return found
