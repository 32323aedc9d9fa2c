"""Carries out what the plan asks, inside one transaction of the caller's.

Invariant: what a device shall do and the signed assignment that says so are written together, or not at all; an item
that is replaced ends its unfinished execution in the same transaction. Sends nothing: the loop publishes what has
been committed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import msgspec
from sqlalchemy import Connection

from controller.rollouts import desired_store, store
from controller.rollouts.assign import reissue
from controller.rollouts.model import NEXT, Rollout, RolloutState, Stage, StageState, Wanted
from controller.rollouts.steps import (
    Assign,
    Conclude,
    ExpireStage,
    FinishStage,
    JoinStage,
    Move,
    StartStage,
    Step,
    Withdraw,
)
from wire.envelope import PrivateKey
from wire.execution import ExecutionState


def carry_out(
    connection: Connection,
    rollout: Rollout,
    steps: Sequence[Step],
    *,
    key: PrivateKey,
    new_id: Callable[[str], str],
    now: float,
) -> None:
    """Store the effect of ``steps`` on ``rollout``. ``new_id``: from a prefix to a fresh id."""
    _progress(connection, rollout, steps, now)
    assigns = [step for step in steps if isinstance(step, Assign)]
    withdrawals = [step for step in steps if isinstance(step, Withdraw)]
    touched = _assign(connection, rollout, assigns, new_id, now)
    touched |= _withdraw(connection, rollout, withdrawals, new_id, now)
    reissue(connection, touched, key, now)


def next_stages(rollout: Rollout, steps: Sequence[Step], now: float) -> tuple[Stage, ...]:
    """Return the stages of ``rollout`` after ``steps``."""
    stages = list(rollout.stages)
    for step in steps:
        if isinstance(step, StartStage):
            begun = Stage(step.number, step.devices, step.carried, StageState.RUNNING, now, reasons=step.reasons)
            stages.append(begun)
        elif isinstance(step, JoinStage):
            joined = stages[step.number]
            stages[step.number] = replace(joined, devices=(*joined.devices, *step.devices))
        elif isinstance(step, ExpireStage):
            late = stages[step.number]
            stages[step.number] = replace(late, overdue=late.overdue | step.overdue, missed=late.missed | step.missed)
        elif isinstance(step, FinishStage):
            finished = replace(stages[step.number], state=step.state, finished=now, reasons=step.reasons)
            stages[step.number] = finished
        elif isinstance(step, Move) and stages and stages[-1].state is StageState.RUNNING:
            stages[-1] = _paused_or_resumed(stages[-1], step, now)
    return tuple(stages)


def _paused_or_resumed(stage: Stage, step: Move, now: float) -> Stage:
    if step.state is RolloutState.PAUSED:
        return replace(stage, paused_since=now, forgiven=max(stage.forgiven, step.failures), reasons=step.reasons)
    if step.state is RolloutState.RUNNING and stage.paused_since is not None:
        if stage.overdue or stage.missed:  # an operator wants it to go on: everybody gets the whole time again
            again = replace(stage, overdue=frozenset(), missed=frozenset(), paused=now - stage.started)
            return replace(again, paused_since=None, reasons=step.reasons)
        paused = stage.paused + now - stage.paused_since
        return replace(stage, paused=paused, paused_since=None, reasons=step.reasons)
    return stage


def _progress(connection: Connection, rollout: Rollout, steps: Sequence[Step], now: float) -> None:
    if all(isinstance(step, Assign | Withdraw) for step in steps):
        return
    state, wanted = rollout.state, rollout.wanted
    reasons: tuple[str, ...] | None = None
    for step in steps:
        if isinstance(step, Move | Conclude):
            assert step.state in NEXT[state], f"{state} does not lead to {step.state}"
            state, reasons = step.state, step.reasons
        elif isinstance(step, FinishStage):
            reasons = step.reasons
    if state is RolloutState.PAUSED:
        wanted = Wanted.PAUSE
    elif state is RolloutState.ROLLING_BACK:
        wanted = Wanted.ROLLBACK
    stages = next_stages(rollout, steps, now)
    store.save_progress(connection, rollout, state=state, wanted=wanted, stages=stages, reasons=reasons, now=now)


def _assign(
    connection: Connection, rollout: Rollout, steps: Sequence[Assign], new_id: Callable[[str], str], now: float
) -> set[str]:
    held = desired_store.generations(connection, sorted({step.device for step in steps}))
    policy = msgspec.to_builtins(rollout.policy.device)
    executions: list[dict[str, Any]] = []
    desired: list[dict[str, Any]] = []
    replaced: list[str] = []
    for step in steps:
        generation, former = held.get((step.device, step.component), (0, None))
        if former is not None:
            replaced.append(former)
        # What is in place keeps its generation, so that the device, which has finished it, does nothing.
        generation += 0 if step.in_place else 1
        state = ExecutionState.SKIPPED if step.in_place else ExecutionState.IDLE
        row = _execution(rollout, step.device, step.component, step.build, step.stage, generation, step.why, state, now)
        row["id"] = new_id("e")
        executions.append(row)
        desired.append(_desired(row, policy))
    store.end_executions(connection, replaced, ExecutionState.SUPERSEDED, (f"rollout {rollout.id} is newer",), now)
    store.add_executions(connection, executions)
    desired_store.save_desired(connection, desired)
    return {step.device for step in steps if not step.in_place}


def _withdraw(
    connection: Connection, rollout: Rollout, steps: Sequence[Withdraw], new_id: Callable[[str], str], now: float
) -> set[str]:
    names = sorted({step.device for step in steps})
    held = desired_store.generations(connection, names)
    previous = desired_store.previous_builds(connection, names)
    policy = msgspec.to_builtins(rollout.policy.device)
    executions: list[dict[str, Any]] = []
    replaced: list[str] = []
    for step in steps:
        place = (step.device, step.component)
        generation, former = held[place]
        replaced.append(former)
        build = previous.get(place)
        why = (*step.reasons, f"back to {build}" if build is not None else "nothing worked before it: removed")
        state, number = ExecutionState.IDLE, store.REVERTING
        row = _execution(rollout, step.device, step.component, build, number, generation + 1, why, state, now)
        row["id"] = new_id("e")
        executions.append(row)
    reasons = steps[0].reasons if steps else ()
    store.end_executions(connection, replaced, ExecutionState.CANCELED, reasons, now)
    store.add_executions(connection, executions)
    desired_store.save_desired(connection, [_desired(row, policy) for row in executions])
    return set(names)


def _execution(
    rollout: Rollout,
    device: str,
    component: str,
    build: str | None,
    stage: int,
    generation: int,
    why: Sequence[str],
    state: ExecutionState,
    now: float,
) -> dict[str, Any]:
    return {
        "tenant": rollout.tenant,
        "rollout": rollout.id,
        "stage": stage,
        "device": device,
        "component": component,
        "generation": generation,
        "build": build,
        "why": list(why),
        "state": state.value,
        "created": now,
        "updated": now,
    }


def _desired(row: dict[str, Any], policy: Any) -> dict[str, Any]:
    kept = {name: row[name] for name in ("device", "component", "generation", "build")}
    return kept | {"execution": row["id"], "policy": policy}
