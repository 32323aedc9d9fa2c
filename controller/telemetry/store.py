"""Counts over a tenant's devices, rollouts and executions, for the metrics.

Invariant: changes nothing, and owns no table.
"""

from __future__ import annotations

from collections import Counter

from sqlalchemy import Connection, func, select

from controller.database.tables import devices, executions, rollouts
from controller.devices.presence import presence


def devices_by_presence(connection: Connection, tenant: str, now: float) -> Counter[str]:
    """Return how many devices that are not revoked are in each state of presence."""
    rows = connection.execute(
        select(devices.c.last_seen, devices.c.online).where(devices.c.tenant == tenant, devices.c.revoked.is_(None))
    )
    return Counter(presence(row.last_seen, row.online, now).state.value for row in rows)


def rollouts_by_state(connection: Connection, tenant: str) -> dict[str, int]:
    """Return how many rollouts are in each state."""
    r = rollouts.c
    rows = connection.execute(select(r.state, func.count()).where(r.tenant == tenant).group_by(r.state))
    return {row[0]: row[1] for row in rows}


def executions_by_state(connection: Connection, tenant: str) -> dict[str, int]:
    """Return how many executions are in each state."""
    e = executions.c
    rows = connection.execute(select(e.state, func.count()).where(e.tenant == tenant).group_by(e.state))
    return {row[0]: row[1] for row in rows}
