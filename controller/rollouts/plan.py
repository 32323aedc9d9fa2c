"""What happens next in a rollout.

Invariant, whatever the fleet does: no device gets a build before its stage has begun; none while the rollout is
paused; no stage begins before the gate let the one before it pass; what a newer rollout has taken is left alone; and
with a running clock every rollout concludes, because each device has a deadline and those that are away are not
waited for. Reads no clock and does nothing: it returns steps, ``effects.py`` does them, and it is asked again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from controller.rollouts.candidates import Fit, Unfit, candidates, in_order, stage_size
from controller.rollouts.gate import Back, Hold, Observations, Seen, is_away, judge, observe
from controller.rollouts.model import (
    CONCLUDED,
    ExecutionView,
    Fleet,
    Rollout,
    RolloutState,
    Stage,
    StageState,
    Wanted,
)
from controller.rollouts.policy import takes_rest
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

MAX_CHANGES: Final = 1000  # of devices' items in one answer, so that carrying it out never holds a lock for long


def advance(rollout: Rollout, fleet: Fleet, now: float) -> list[Step]:
    """Return what is to be done now, empty when there is nothing but waiting. Ask again after doing it."""
    state, wanted = rollout.state, rollout.wanted
    if state is RolloutState.ROLLING_BACK:
        return _roll_back(rollout, fleet, now)
    if state is RolloutState.ROLLED_BACK:
        return []
    if wanted is Wanted.ROLLBACK:
        return [Move(RolloutState.ROLLING_BACK, ("an operator asked for it",))]
    if state in CONCLUDED:
        return _tend(rollout, fleet) if state is RolloutState.SUCCEEDED else []
    if wanted is Wanted.ABORT:
        return _abandon(rollout, RolloutState.CANCELED, ("an operator asked for it",))
    if wanted is Wanted.PAUSE:
        asked = Move(RolloutState.PAUSED, ("an operator asked for it",))
        return [] if state is RolloutState.PAUSED else [asked]
    if state is not RolloutState.RUNNING:
        return [Move(RolloutState.RUNNING, ("started" if state is RolloutState.PENDING else "resumed",))]
    return _run(_Look(rollout, fleet, now))


def index(executions: Iterable[ExecutionView]) -> dict[str, dict[str, ExecutionView]]:
    """Return the executions that bring a release, by device and component."""
    found: dict[str, dict[str, ExecutionView]] = {}
    for execution in executions:
        if not execution.reverting:
            found.setdefault(execution.device, {})[execution.component] = execution
    return found


def look(rollout: Rollout, fleet: Fleet, now: float) -> tuple[Observations, str, tuple[str, ...]] | None:
    """Return how the newest stage stands, the gate's verdict ("go", "hold", "back") and why; None before a stage."""
    if not rollout.stages:
        return None
    view, stage = _Look(rollout, fleet, now), rollout.stages[-1]
    seen = view.observe(stage)
    if stage.state is not StageState.RUNNING:
        return seen, "go" if stage.state is StageState.PASSED else "back", stage.reasons
    verdict = judge(stage, seen, rollout.policy, view.proven(), now)
    return seen, type(verdict).__name__.lower(), verdict.reasons


@dataclass
class _Look:
    """One rollout seen at one moment, with what several questions need."""

    rollout: Rollout
    fleet: Fleet
    now: float
    executions: dict[str, dict[str, ExecutionView]] = field(init=False)

    def __post_init__(self) -> None:
        self.executions = index(self.rollout.executions)

    def waiting(self, stage: Stage) -> dict[str, Fit | Unfit]:
        """Return what those devices of ``stage`` would get that lack an execution."""
        needed = len(self.rollout.components)
        lacking = (
            self.fleet.devices[device]
            for device in (*stage.devices, *stage.carried)
            if device in self.fleet.devices and len(self.executions.get(device, ())) < needed
        )
        found = candidates(self.rollout, self.fleet, lacking)
        return {entry.device.id: entry for entry in found}

    def observe(self, stage: Stage, waiting: Mapping[str, Fit | Unfit] | None = None) -> Observations:
        waiting = self.waiting(stage) if waiting is None else waiting
        needed = len(self.rollout.components)
        lost = frozenset(
            device
            for device in (*stage.devices, *stage.carried)
            if len(self.executions.get(device, ())) < needed and not isinstance(waiting.get(device), Fit)
        )
        return observe(stage, self.rollout, self.fleet, self.executions, lost, self.now)

    def proven(self) -> bool:
        """Whether a device of an earlier stage runs the release."""
        needed = len(self.rollout.components)
        earlier = (device for stage in self.rollout.stages[:-1] for device in stage.devices)
        given = (self.executions.get(device, {}).values() for device in earlier)
        return any(len(each) == needed and all(e.succeeded for e in each) for each in given)


def _run(view: _Look) -> list[Step]:
    rollout, now = view.rollout, view.now
    if not rollout.stages or rollout.stages[-1].state is StageState.PASSED:
        return _begin_stage(view)
    stage = rollout.stages[-1]
    if stage.state is StageState.FAILED:
        return _abandon(rollout, RolloutState.FAILED, stage.reasons)
    waiting = view.waiting(stage)
    seen = view.observe(stage, waiting)
    late = _out_of_time(view, stage, seen)
    if late or (late := _in_place_of_the_gone(view, stage, seen)):
        return late
    verdict = judge(stage, seen, rollout.policy, view.proven(), now)
    if isinstance(verdict, Back):
        return _go_back(rollout, stage, verdict)
    if isinstance(verdict, Hold):
        return [*_newcomers(view, stage), *_assign(view, stage, seen, waiting)]
    # Everybody gets the items before the stage ends: those that are away find them when they return.
    given = _assign(view, stage, seen, waiting)
    if given or any(how is Seen.PENDING and isinstance(waiting.get(d), Fit) for d, how in seen.standing.items()):
        return given
    return [FinishStage(stage.number, StageState.PASSED, verdict.reasons)]


def _go_back(rollout: Rollout, stage: Stage, verdict: Back) -> list[Step]:
    action = rollout.policy.gate.on_failure
    if action == "pause":
        return [Move(RolloutState.PAUSED, verdict.reasons, failures=verdict.failures)]
    failed = FinishStage(stage.number, StageState.FAILED, verdict.reasons)
    return [failed, Move(RolloutState.ROLLING_BACK, verdict.reasons)] if action == "rollback" else [failed]


def _untaken(view: _Look) -> tuple[list[Fit], int]:
    """Return the devices that would get the release and are in no stage yet, in order, and how many are in one."""
    taken = {device for stage in view.rollout.stages for device in stage.devices}
    if len(taken) >= len(view.fleet.devices):
        return [], len(taken)
    found = candidates(view.rollout, view.fleet, (d for d in view.fleet.devices.values() if d.id not in taken))
    return in_order((entry for entry in found if isinstance(entry, Fit)), view.now), len(taken)


def _begin_stage(view: _Look) -> list[Step]:
    rollout = view.rollout
    taken = {device for stage in rollout.stages for device in stage.devices}
    number = len(rollout.stages)
    found = candidates(rollout, view.fleet, (d for d in view.fleet.devices.values() if d.id not in taken))
    fits = in_order((entry for entry in found if isinstance(entry, Fit)), view.now)
    if number == len(rollout.policy.stages) or not fits:
        newer = sum(isinstance(entry, Unfit) and entry.newer for entry in found)
        return [_conclusion(view, newer, len(found) - len(fits) - newer)]
    rule = rollout.policy.stages[number]
    chosen = fits[: stage_size(rule, len(taken) + len(fits), len(fits))]
    carried: tuple[str, ...] = ()
    if rollout.stages:
        standing = view.observe(rollout.stages[-1]).standing
        carried = tuple(device for device, how in standing.items() if how in (Seen.AWAY, Seen.PENDING))
    reasons = (f"{len(chosen)} of {len(taken) + len(fits)} devices",)
    return [StartStage(number, tuple(fit.device.id for fit in chosen), carried, reasons)]


def _conclusion(view: _Look, newer: int, unfit: int) -> Conclude:
    rollout = view.rollout
    words = ("run it", "failed", "have not finished", "will get it when they return", "left to newer rollouts")
    counts = dict.fromkeys(words, 0)
    for device in {device for stage in rollout.stages for device in stage.devices}:
        of_device = view.executions.get(device, {}).values()
        if any(execution.failed for execution in of_device):
            counts["failed"] += 1
        elif any(execution.withdrawn for execution in of_device):
            newer += 1
        elif of_device and all(execution.succeeded for execution in of_device):
            counts["run it"] += 1
        elif of_device:
            here = device in view.fleet.devices and view.fleet.devices[device].online
            counts["have not finished" if here else "will get it when they return"] += 1
    counts["left to newer rollouts"] = newer
    reasons = [f"{count} {text}" for text, count in counts.items() if count]
    if unfit:
        reasons.append(f"{unfit} have no fitting build")
    everybody = sum(counts.values())
    if newer and newer * 2 >= everybody:
        return Conclude(RolloutState.SUPERSEDED, tuple(reasons))
    if counts["run it"]:
        return Conclude(RolloutState.SUCCEEDED, tuple(reasons))
    if everybody == 0 and rollout.policy.continuous and _covers_all(rollout):
        return Conclude(RolloutState.SUCCEEDED, ("no device fits yet; those that come get it", *reasons))
    return Conclude(RolloutState.FAILED, ("no device runs it", *reasons))


def _out_of_time(view: _Look, stage: Stage, seen: Observations) -> list[Step]:
    """Note whose time is over. Who still waits for a turn has not been given anything: its time has not begun."""
    gone: dict[Seen, set[str]] = {Seen.PENDING: set(), Seen.AWAY: set()}
    for device, how in seen.standing.items():
        of_device = view.executions.get(device)
        if how in gone and of_device and device not in stage.missed:
            given = max(execution.created for execution in of_device.values())
            if stage.age(view.now, given) >= view.rollout.policy.deadline:
                gone[how].add(device)
    if not any(gone.values()):
        return []
    return [ExpireStage(stage.number, frozenset(gone[Seen.PENDING]), frozenset(gone[Seen.AWAY]))]


def _in_place_of_the_gone(view: _Look, stage: Stage, seen: Observations) -> list[Step]:
    """When nobody of a stage can tell whether the release is good, and nobody has told before, others shall."""
    rule, away = view.rollout.policy.stages[stage.number], seen.count(Seen.AWAY)
    if takes_rest(rule) or away + seen.count(Seen.LEFT) < len(seen.standing) or view.proven():
        return []
    fits, taken = _untaken(view)
    if away:  # nothing is won by waiting for others that are away too
        fits = [fit for fit in fits if fit.device.online]
    names = tuple(fit.device.id for fit in fits[: stage_size(rule, taken + len(fits), len(fits))])
    return [JoinStage(stage.number, names, (f"{len(names)} in place of those that are gone",))] if names else []


def _newcomers(view: _Look, stage: Stage) -> list[Step]:
    rollout = view.rollout
    last = stage.number == len(rollout.policy.stages) - 1
    young = stage.age(view.now) < rollout.policy.deadline  # else a fleet that grows would never let it conclude
    if not (last and young and _covers_all(rollout) and rollout.policy.continuous):
        return []
    fits, _ = _untaken(view)
    names = tuple(fit.device.id for fit in fits[:MAX_CHANGES])
    return [JoinStage(stage.number, names, (f"{len(names)} came after the stage began",))] if names else []


def _assign(view: _Look, stage: Stage, seen: Observations, waiting: Mapping[str, Fit | Unfit]) -> list[Step]:
    # Who missed its time and came back is not counted: nobody watches it any more, so it could hold its place for ever.
    slots = view.rollout.policy.max_in_flight - sum(
        how is Seen.PENDING and view.fleet.devices[device].online and _at_work(view.executions.get(device, {}))
        for device, how in seen.standing.items()
    )
    steps: list[Step] = []
    for device, how in seen.standing.items():
        fit = waiting.get(device)
        if how not in (Seen.PENDING, Seen.AWAY) or not isinstance(fit, Fit) or len(steps) >= MAX_CHANGES:
            continue
        given = view.executions.get(device, {})
        wanted = [_give(fit, c, stage.number) for c in view.rollout.components if c not in given]
        works = fit.device.online and not _at_work(given) and not all(step.in_place for step in wanted)
        if works and slots <= 0:
            continue
        slots -= works
        steps.extend(wanted)
    return steps


def _tend(rollout: Rollout, fleet: Fleet) -> list[Step]:
    """After success: devices that fit now and have nothing from this rollout or a newer one get the release."""
    if not (rollout.policy.continuous and rollout.wanted is Wanted.RUN and _covers_all(rollout)):
        return []
    ours, at_work = rollout.order, 0
    lacking = []
    for device in fleet.devices.values():
        standings = [device.standing.get(c) for c in rollout.components]
        if any(s is None or s.owner < ours for s in standings):
            lacking.append(device)
        elif device.online and any(s is not None and s.owner == ours and not s.in_place for s in standings):
            at_work += 1
    fits = (entry for entry in candidates(rollout, fleet, lacking) if isinstance(entry, Fit))
    number = max(0, len(rollout.policy.stages) - 1)
    room = min(MAX_CHANGES, max(0, rollout.policy.max_in_flight - at_work))
    return [_give(fit, c, number) for fit in islice(fits, room) for c in rollout.components if _open(fit, c, ours)]


def _abandon(rollout: Rollout, state: RolloutState, reasons: tuple[str, ...]) -> list[Step]:
    unfinished = (e for e in rollout.executions if not e.finished and not e.reverting)
    steps: list[Step] = [Withdraw(e.device, e.component, reasons) for e in islice(unfinished, MAX_CHANGES)]
    return steps or [Conclude(state, reasons)]


def _roll_back(rollout: Rollout, fleet: Fleet, now: float) -> list[Step]:
    reverting = {(e.device, e.component): e for e in rollout.executions if e.reverting}
    steps: list[Step] = []
    for device, of_device in index(rollout.executions).items():
        for component, execution in of_device.items():
            if (device, component) in reverting or not _ours(rollout, fleet, execution):
                continue
            steps.append(Withdraw(device, component, ("the rollout goes back",)))
    if steps:
        return steps[:MAX_CHANGES]
    policy, awaited, away = rollout.policy, 0, 0
    for execution in reverting.values():
        view = fleet.devices.get(execution.device)
        if execution.finished or view is None or view.revoked:
            continue
        if is_away(execution.device, fleet, execution.updated, policy, now):
            away += 1
        elif now - execution.updated < policy.deadline:
            awaited += 1
    if awaited:
        return []
    back = sum(execution.succeeded for execution in reverting.values())
    failed = sum(execution.failed for execution in reverting.values())
    words = {"are back": back, "failed to go back": failed, "go back when they return": away}
    words["have not answered"] = sum(not e.finished for e in reverting.values()) - away
    reasons = tuple(f"{count} {text}" for text, count in words.items() if count) or ("nothing to take back",)
    return [Conclude(RolloutState.ROLLED_BACK, reasons)]


def _ours(rollout: Rollout, fleet: Fleet, execution: ExecutionView) -> bool:
    """Whether what ``execution`` brought is to be taken back: not what was there before, nor what went to others."""
    view = fleet.devices.get(execution.device)
    standing = view.standing.get(execution.component) if view is not None else None
    brought = execution.state not in ("SKIPPED", "SUPERSEDED", "CANCELED")
    return brought and standing is not None and standing.owner == rollout.order


def _give(fit: Fit, component: str, stage: int) -> Assign:
    choice, standing = fit.builds[component], fit.device.standing.get(component)
    if standing is not None and standing.in_place and standing.build == choice.build:
        why = (*choice.reasons, "already installed")
        return Assign(fit.device.id, component, choice.build, stage, why, in_place=True)
    return Assign(fit.device.id, component, choice.build, stage, choice.reasons)


def _open(fit: Fit, component: str, ours: tuple[float, str]) -> bool:
    standing = fit.device.standing.get(component)
    return standing is None or standing.owner < ours


def _at_work(of_device: Mapping[str, ExecutionView]) -> bool:
    return any(not execution.finished for execution in of_device.values())


def _covers_all(rollout: Rollout) -> bool:
    return takes_rest(rollout.policy.stages[-1])
