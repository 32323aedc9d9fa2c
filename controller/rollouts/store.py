"""Statements on releases, rollouts and executions.

Invariant: an execution that has ended never changes state again; every transition is kept with its time, those that
the controller makes itself too; what a device says of an execution that is not its own changes nothing. Decides
nothing else: `plan.py` does. What is desired of devices stands in `desired_store.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, Row, bindparam, case, func, insert, select, update
from sqlalchemy.dialects.sqlite import insert as upsert

from controller.database.tables import devices, execution_events, executions, releases, rollouts
from controller.rollouts.model import LIVE, ExecutionView, Rollout, RolloutState, Stage, Wanted
from controller.rollouts.policy import Policy, Selector
from wire.execution import TERMINAL, ExecutionState
from wire.messages import ExecutionReport

REVERTING: Final = -1  # the stage of an execution that takes a device back
MAX_FIGURES: Final = 64  # of one execution
MAX_EVENTS: Final = 256  # of one execution; later transitions move its state and are not listed
MAX_CONTINUOUS: Final = 32
CHUNK: Final = 500  # ids in one statement
CONTROLLER: Final = "controller"  # stream and origin of transitions that the controller makes
AnyRow = Row[Any]


class Recorded(Enum):
    """What became of a report. NOTED: kept as an event; the state stays, as it is final or the word is not known."""

    MOVED = "moved"
    NOTED = "noted"
    REPEATED = "repeated"
    FOREIGN = "foreign"


# releases and rollouts ----------------------------------------------------------------------------------------------


def add_release(
    connection: Connection, *, release: str, tenant: str, name: str, models: Mapping[str, int], now: float
) -> None:
    """Store a new release."""
    connection.execute(insert(releases).values(id=release, tenant=tenant, name=name, models=dict(models), created=now))


def find_release(connection: Connection, tenant: str, name: str) -> AnyRow | None:
    """Return a tenant's release by its id or name."""
    by_either = (releases.c.id == name) | (releases.c.name == name)
    return connection.execute(select(releases).where(releases.c.tenant == tenant, by_either).limit(1)).one_or_none()


def releases_of(connection: Connection, tenant: str, limit: int) -> Sequence[AnyRow]:
    """Return a tenant's releases, the newest first."""
    statement = select(releases).where(releases.c.tenant == tenant)
    return connection.execute(statement.order_by(releases.c.created.desc(), releases.c.id).limit(limit)).all()


def next_moment(connection: Connection, tenant: str, now: float) -> float:
    """Return when a rollout that is made now counts as made: after all others, also when the clock went back."""
    newest = connection.scalar(select(func.max(rollouts.c.created)).where(rollouts.c.tenant == tenant))
    return now if newest is None else max(now, newest + 0.001)


def add_rollout(
    connection: Connection,
    *,
    rollout: str,
    tenant: str,
    release: str,
    selector: Selector,
    policy: Policy,
    now: float,
) -> None:
    """Store a new rollout in PENDING, the newest of its tenant."""
    connection.execute(
        insert(rollouts).values(
            id=rollout,
            tenant=tenant,
            release=release,
            selector=msgspec.to_builtins(selector),
            policy=msgspec.to_builtins(policy),
            state=RolloutState.PENDING.value,
            wanted=Wanted.RUN.value,
            stage=0,
            stages=[],
            reasons=[],
            created=next_moment(connection, tenant, now),
            updated=now,
        )
    )


def find_rollout(connection: Connection, tenant: str, rollout: str) -> AnyRow | None:
    """Return a tenant's rollout with ``release_name`` and ``models``."""
    return connection.execute(_rollouts().where(rollouts.c.tenant == tenant, rollouts.c.id == rollout)).one_or_none()


def rollouts_of(connection: Connection, tenant: str, limit: int) -> Sequence[AnyRow]:
    """Return a tenant's rollouts as ``find_rollout`` does, the newest first."""
    statement = _rollouts().where(rollouts.c.tenant == tenant)
    return connection.execute(statement.order_by(rollouts.c.created.desc(), rollouts.c.id).limit(limit)).all()


def rollouts_to_plan(connection: Connection) -> Sequence[AnyRow]:
    """Return the rollouts about which something may be to do, the newest first.

    Those under way, concluded ones that an operator wants back, and the newest ``MAX_CONTINUOUS`` succeeded ones that
    go on with devices that come later.
    """
    goes_back = (rollouts.c.wanted == Wanted.ROLLBACK.value) & (rollouts.c.state != RolloutState.ROLLED_BACK.value)
    under_way = rollouts.c.state.in_([state.value for state in LIVE])
    goes_on = (rollouts.c.state == RolloutState.SUCCEEDED.value) & rollouts.c.policy["continuous"].as_boolean()
    newest_first = (rollouts.c.created.desc(), rollouts.c.id.desc())
    due = connection.execute(_rollouts().where(under_way | goes_back)).all()
    continuous = _rollouts().where(goes_on & ~goes_back).order_by(*newest_first).limit(MAX_CONTINUOUS)
    return sorted([*due, *connection.execute(continuous).all()], key=lambda row: (row.created, row.id), reverse=True)


def rollout_view(row: AnyRow, found: Iterable[ExecutionView]) -> Rollout:
    """Return the value behind a row of ``find_rollout`` and its executions."""
    return Rollout(
        id=row.id,
        tenant=row.tenant,
        created=row.created,
        models=row.models,
        selector=msgspec.convert(row.selector, Selector),
        policy=msgspec.convert(row.policy, Policy),
        state=RolloutState(row.state),
        wanted=Wanted(row.wanted),
        stages=tuple(msgspec.convert(row.stages, list[Stage])),
        executions=tuple(found),
    )


def set_wanted(connection: Connection, rollout: str, wanted: Wanted, now: float) -> None:
    """Note what an operator asks for; the loop acts on it."""
    connection.execute(update(rollouts).where(rollouts.c.id == rollout).values(wanted=wanted.value, updated=now))


def save_progress(
    connection: Connection,
    rollout: Rollout,
    *,
    state: RolloutState,
    wanted: Wanted,
    stages: Sequence[Stage],
    reasons: Sequence[str] | None,
    now: float,
) -> None:
    """Store where a rollout stands. ``reasons`` None keeps those that are there."""
    values: dict[str, Any] = {
        "concluded": None if state in LIVE else now,
        "state": state.value,
        "stage": max(0, len(stages) - 1),
        "stages": msgspec.to_builtins([*stages]),
        "updated": now,
    }
    if wanted is not rollout.wanted:
        values["wanted"] = wanted.value
    if reasons is not None:
        values["reasons"] = list(reasons)
    connection.execute(update(rollouts).where(rollouts.c.id == rollout.id).values(values))


def mark_trouble(connection: Connection, rollout: str, words: str, now: float) -> None:
    """Note on a rollout that it could not be planned."""
    connection.execute(update(rollouts).where(rollouts.c.id == rollout).values(reasons=[words], updated=now))


def count_by_state(connection: Connection) -> dict[str, int]:
    """Return how many rollouts are in each state, over all tenants."""
    rows = connection.execute(select(rollouts.c.state, func.count()).group_by(rollouts.c.state))
    return {row[0]: row[1] for row in rows}


# executions ---------------------------------------------------------------------------------------------------------


def execution_views(connection: Connection, rollout: str) -> list[ExecutionView]:
    """Return a rollout's executions as the plan sees them."""
    e = executions.c
    rows = connection.execute(
        select(e.id, e.device, e.component, e.build, e.state, e.created, e.updated, e.stage).where(e.rollout == rollout)
    )
    return [
        ExecutionView(id_, device, component, build, ExecutionState(state), created, updated, stage == REVERTING)
        for id_, device, component, build, state, created, updated, stage in rows
    ]


def executions_page(
    connection: Connection, rollout: str, *, after: str, limit: int, state: str | None
) -> Sequence[AnyRow]:
    """Return a rollout's executions in the order of their ids, with ``device_name``."""
    statement = select(executions, devices.c.name.label("device_name")).join(devices)
    statement = statement.where(executions.c.rollout == rollout, executions.c.id > after)
    if state is not None:
        statement = statement.where(executions.c.state == state)
    return connection.execute(statement.order_by(executions.c.id).limit(limit)).all()


def executions_of_device(connection: Connection, tenant: str, device: str, limit: int) -> Sequence[AnyRow]:
    """Return a device's executions as ``executions_page`` does, the newest first."""
    statement = select(executions, devices.c.name.label("device_name")).join(devices)
    mine = (executions.c.tenant == tenant) & (executions.c.device == device)
    newest_first = (executions.c.created.desc(), executions.c.id.desc())
    return connection.execute(statement.where(mine).order_by(*newest_first).limit(limit)).all()


def inconsistent_devices(connection: Connection, tenant: str) -> int:
    """Return how many devices have a component whose newest execution could neither finish nor go back."""
    newest = func.max(executions.c.created).over(partition_by=(executions.c.device, executions.c.component))
    ranked = select(executions.c.device, executions.c.state, executions.c.created, newest.label("newest"))
    found = ranked.where(executions.c.tenant == tenant).subquery()
    bad = (found.c.created == found.c.newest) & (found.c.state == ExecutionState.INCONSISTENT.value)
    return connection.execute(select(func.count(found.c.device.distinct())).where(bad)).scalar_one()


def execution_counts(connection: Connection, rollout_ids: Iterable[str] | None = None) -> dict[str, dict[str, int]]:
    """Return per rollout how many executions are in each state."""
    e = executions.c
    statement = select(e.rollout, e.state, func.count()).group_by(e.rollout, e.state)
    if rollout_ids is not None:
        statement = statement.where(e.rollout.in_(list(rollout_ids)))
    found: dict[str, dict[str, int]] = {}
    for rollout, state, count in connection.execute(statement):
        found.setdefault(rollout, {})[state] = count
    return found


def find_execution(connection: Connection, tenant: str, execution: str) -> AnyRow | None:
    """Return one execution of a tenant, with ``device_name``."""
    statement = select(executions, devices.c.name.label("device_name")).join(devices)
    return connection.execute(
        statement.where(executions.c.id == execution, executions.c.tenant == tenant)
    ).one_or_none()


def events_of(connection: Connection, execution: str) -> Sequence[AnyRow]:
    """Return the transitions of an execution, in order."""
    statement = select(execution_events).where(execution_events.c.execution == execution)
    return connection.execute(statement.order_by(execution_events.c.id)).all()


def add_executions(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Store new executions, and the controller's own event for each."""
    if not rows:
        return
    connection.execute(insert(executions), [dict(row) for row in rows])
    connection.execute(
        insert(execution_events),
        [_own_event(row["id"], 1, row["state"], row["why"], row["created"]) for row in rows],
    )


def end_executions(
    connection: Connection, ids: Sequence[str], state: ExecutionState, reasons: Sequence[str], now: float
) -> None:
    """Note that the controller took these executions back; those that have ended stay as they are."""
    e = executions.c
    for start in range(0, len(ids), CHUNK):
        unfinished = e.id.in_(ids[start : start + CHUNK]) & e.state.not_in([ended.value for ended in TERMINAL])
        ended = connection.scalars(
            update(executions).where(unfinished).values(state=state.value, updated=now).returning(e.id)
        ).all()
        if ended:
            events = [_own_event(id_, 2, state.value, reasons, now) for id_ in ended]
            connection.execute(upsert(execution_events).on_conflict_do_nothing(), events)


_FIND = select(
    executions.c.device,
    executions.c.component,
    executions.c.generation,
    executions.c.state,
    executions.c.figures,
    select(func.count()).where(execution_events.c.execution == executions.c.id).scalar_subquery().label("events"),
).where(executions.c.id == bindparam("b_id"))
_EVENT = upsert(execution_events).on_conflict_do_nothing()
_MOVE = (
    update(executions)
    .where(executions.c.id == bindparam("b_id"))
    .values(
        state=bindparam("b_state"),
        updated=bindparam("b_now"),
        fault=case(
            (bindparam("b_has_fault"), bindparam("b_fault", type_=executions.c.fault.type)), else_=executions.c.fault
        ),
        figures=bindparam("b_figures", type_=executions.c.figures.type),
    )
)


def record_report(connection: Connection, device: str, report: ExecutionReport, received: float) -> Recorded:
    """Store the transition that ``device`` reports and move its execution there.

    A report on an execution that is unknown, another device's, of another component or generation changes nothing.
    """
    row = connection.execute(_FIND, {"b_id": report.execution}).one_or_none()
    if row is None or (row.device, row.component, row.generation) != (device, report.component, report.generation):
        return Recorded.FOREIGN
    fault = msgspec.to_builtins(report.fault) if report.fault is not None else None
    if row.events < MAX_EVENTS:
        event = {
            "execution": report.execution,
            "stream": report.stream,
            "sequence": report.sequence,
            "at": report.at,
            "received": received,
            "origin": report.origin[:24],
            "state": report.state[:24],
            "detail": report.detail,
            "fault": fault,
        }
        if connection.execute(_EVENT, event).rowcount == 0:
            return Recorded.REPEATED
    known = report.state in ExecutionState.__members__ and report.state != ExecutionState.IDLE
    if ExecutionState(row.state) in TERMINAL or not known:
        return Recorded.NOTED
    connection.execute(
        _MOVE,
        {
            "b_id": report.execution,
            "b_state": report.state,
            "b_now": received,
            "b_has_fault": fault is not None,
            "b_fault": fault,
            "b_figures": _merged(row.figures or {}, report.figures) or None,
        },
    )
    return Recorded.MOVED


def _merged(held: dict[str, float], told: dict[str, float]) -> dict[str, float]:
    """Names come from the device: no more than so many are kept, the first ones."""
    room = MAX_FIGURES - len(held)
    fresh = [name for name in told if name not in held][: max(room, 0)]
    return held | {name: value for name, value in told.items() if name in held or name in fresh}


def _rollouts() -> Any:
    return select(rollouts, releases.c.name.label("release_name"), releases.c.models).join(releases)


def _own_event(execution: str, sequence: int, state: str, reasons: Any, now: float) -> dict[str, Any]:
    words = reasons.get("reasons", []) if isinstance(reasons, dict) else reasons
    return {
        "execution": execution,
        "stream": CONTROLLER,
        "sequence": sequence,
        "at": now,
        "received": now,
        "origin": CONTROLLER,
        "state": state,
        "detail": "; ".join(words)[:4096],
        "fault": None,
    }
