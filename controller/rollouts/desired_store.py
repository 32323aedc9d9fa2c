"""Statements on what is desired of devices, and on the signed assignments made from it.

Invariant: a component's generation only grows, an assignment's number only grows. Decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Connection, Row, bindparam, func, or_, select, update
from sqlalchemy.dialects.sqlite import insert as upsert

from controller.database.tables import assignments, builds, desired_items, devices, executions, rollouts
from controller.rollouts.model import RolloutState
from wire.execution import SUCCESSES

CHUNK: Final = 500  # device ids in one statement


def desired_of(connection: Connection, wanted: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Return the desired items of devices that are not revoked, each with the manifest of its build."""
    d = desired_items.c
    columns = (d.component, d.generation, d.execution, d.build, builds.c.manifest_sha256, builds.c.manifest_size)
    statement = (
        select(d.device, *columns, d.policy)
        .join(devices, devices.c.id == d.device)
        .join(builds, builds.c.id == d.build, isouter=True)
        .where(devices.c.revoked.is_(None), d.device.in_(bindparam("ids", expanding=True)))
        .order_by(d.device, d.component)
    )
    found: dict[str, list[dict[str, Any]]] = {}
    for chunk in _chunks(wanted):
        for row in connection.execute(statement, {"ids": chunk}).mappings():
            fields = dict(row)
            found.setdefault(fields.pop("device"), []).append(fields)
    return found


def generations(connection: Connection, wanted: Sequence[str]) -> dict[tuple[str, str], tuple[int, str]]:
    """Return (generation, execution) by device and component."""
    d = desired_items.c
    statement = select(d.device, d.component, d.generation, d.execution).where(
        d.device.in_(bindparam("ids", expanding=True))
    )
    return {
        (row.device, row.component): (row.generation, row.execution)
        for chunk in _chunks(wanted)
        for row in connection.execute(statement, {"ids": chunk})
    }


def save_desired(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Store what is desired of a component of a device, in place of what was."""
    if not rows:
        return
    statement = upsert(desired_items)
    new = statement.excluded
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=["device", "component"],
            set_={"generation": new.generation, "execution": new.execution, "build": new.build, "policy": new.policy},
        ),
        [dict(row) for row in rows],
    )


def previous_builds(connection: Connection, wanted: Sequence[str]) -> dict[tuple[str, str], str | None]:
    """Return the build that last worked on each device and component.

    What came with a rollout that goes back, or went, does not count, even where the way back was never finished.
    """
    e = executions.c
    taken_back = [RolloutState.ROLLING_BACK.value, RolloutState.ROLLED_BACK.value]
    newest = (
        select(e.device, e.component, e.build, func.max(e.generation))
        .join(rollouts, rollouts.c.id == e.rollout)
        .where(
            e.state.in_([state.value for state in SUCCESSES]),
            or_(e.stage < 0, rollouts.c.state.not_in(taken_back)),
            e.device.in_(bindparam("ids", expanding=True)),
        )
        .group_by(e.device, e.component)  # SQLite: the plain columns come from the row with the maximum
    )
    return {
        (row.device, row.component): row.build
        for chunk in _chunks(wanted)
        for row in connection.execute(newest, {"ids": chunk})
    }


def assignment_numbers(connection: Connection, wanted: Sequence[str]) -> dict[str, int]:
    """Return the number of each device's newest assignment."""
    statement = select(assignments.c.device, assignments.c.number).where(
        assignments.c.device.in_(bindparam("ids", expanding=True))
    )
    return {
        row.device: row.number for chunk in _chunks(wanted) for row in connection.execute(statement, {"ids": chunk})
    }


def save_assignments(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Store signed assignments in place of the devices' former ones."""
    if not rows:
        return
    statement = upsert(assignments)
    new = statement.excluded
    changed = {name: new[name] for name in ("epoch", "number", "envelope", "issued", "expires", "published")}
    connection.execute(
        statement.on_conflict_do_update(index_elements=["device"], set_=changed), [dict(row) for row in rows]
    )


def unpublished(connection: Connection, limit: int) -> list[tuple[str, int, bytes]]:
    """Return (device, number, envelope) of assignments that have not been sent."""
    a = assignments.c
    statement = select(a.device, a.number, a.envelope).where(a.published.is_(None)).order_by(a.device).limit(limit)
    return [(row.device, row.number, row.envelope) for row in connection.execute(statement)]


def mark_published(connection: Connection, sent: Sequence[tuple[str, int]], now: float) -> None:
    """Note which assignments were sent; one that was replaced meanwhile stays to be sent."""
    if sent:
        statement = (
            update(assignments)
            .where(assignments.c.device == bindparam("b_device"), assignments.c.number == bindparam("b_number"))
            .values(published=bindparam("b_now"))
        )
        connection.execute(statement, [{"b_device": d, "b_number": n, "b_now": now} for d, n in sent])


def publish_all_again(connection: Connection) -> None:
    """Mark the assignments of all devices that are not revoked as still to be sent."""
    active = select(devices.c.id).where(devices.c.revoked.is_(None))
    connection.execute(update(assignments).where(assignments.c.device.in_(active)).values(published=None))


def expiring(connection: Connection, before: float, limit: int) -> list[str]:
    """Return devices, not revoked, whose assignment expires before then."""
    statement = (
        select(assignments.c.device)
        .join(devices, devices.c.id == assignments.c.device)
        .where(assignments.c.expires < before, devices.c.revoked.is_(None))
        .limit(limit)
    )
    return list(connection.scalars(statement))


def find_assignment(connection: Connection, device: str) -> Row[Any] | None:
    """Return the newest signed assignment of a device."""
    return connection.execute(select(assignments).where(assignments.c.device == device)).one_or_none()


def _chunks(names: Sequence[str]) -> Iterator[list[str]]:
    for start in range(0, len(names), CHUNK):
        yield list(names[start : start + CHUNK])
