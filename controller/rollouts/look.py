"""Everything the plan wants to know about a tenant's rollouts, read at one moment.

Invariant: reads only; what is read over one connection is one consistent state of the database.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import msgspec
from sqlalchemy import Connection

from controller.rollouts import store
from controller.rollouts.candidates import claims
from controller.rollouts.fleet_store import FleetReader
from controller.rollouts.model import CONCLUDED, Fleet, Rollout, Wanted


def open_rollouts(connection: Connection) -> tuple[list[Rollout], dict[str, Exception]]:
    """Return the rollouts about which something may be to do, the newest first, without their executions.

    And those that cannot be read, such as those that a newer version of this program wrote, with the reason.
    """
    found: list[Rollout] = []
    unreadable: dict[str, Exception] = {}
    for row in store.rollouts_to_plan(connection):
        try:
            found.append(store.rollout_view(row, ()))
        except (msgspec.ValidationError, ValueError) as error:
            unreadable[row.id] = error
    return found, unreadable


def with_executions(connection: Connection, rollout: Rollout) -> Rollout:
    """Return ``rollout`` as it stands now with the executions its plan needs."""
    row = store.find_rollout(connection, rollout.tenant, rollout.id)
    fresh = rollout if row is None else store.rollout_view(row, ())
    if fresh.state in CONCLUDED and fresh.wanted is not Wanted.ROLLBACK:
        return fresh  # what it gave is in the fleet's standings; its history may be long
    return replace(fresh, executions=tuple(store.execution_views(connection, rollout.id)))


def fleet_of(
    connection: Connection, reader: FleetReader, tenant: str, rollouts: Iterable[Rollout], now: float
) -> Fleet:
    """Return the fleet of ``tenant`` with the builds that ``rollouts`` may choose from."""
    models = {model for rollout in rollouts for model in rollout.models.items()}
    return reader.read(connection, tenant, models, now)


def with_claims(fleet: Fleet, rollout: Rollout, others: Iterable[Rollout]) -> Fleet:
    """Return ``fleet`` as ``rollout`` sees it: with what newer ones under way will take."""
    claimed = claims(rollout, others, fleet)
    return replace(fleet, claimed=claimed) if claimed else fleet
