"""Is a stage good enough to go on, must it wait, or must the rollout go back?

Invariant: ``Go`` is never said while more devices have failed than the rule allows, nor before the wanted share of the
reached devices has finished; and once nobody is awaited any more and the soak is over the answer is ``Go`` or
``Back``, never ``Hold``. Devices that are away are counted apart: they neither fail a stage nor stall it, unless there
is nobody else to tell whether the release is good. Does not change anything: the plan draws the consequences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from controller.rollouts.model import ExecutionView, Fleet, Rollout, Stage
from controller.rollouts.policy import Policy


class Seen(StrEnum):
    """How one device of a stage stands.

    away: offline for longer than the policy waits, or back only after its time. left: revoked, or a newer rollout
    has it, or no build fits any more. overdue: was reached, has not finished in its time; counts as failed. pending:
    at work, or waiting for its turn.
    """

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    OVERDUE = "overdue"
    PENDING = "pending"
    AWAY = "away"
    LEFT = "left"


@dataclass(frozen=True, slots=True)
class Observations:
    """What is known of a stage. ``settled``: when the last device that was awaited had finished or lost its time."""

    standing: Mapping[str, Seen]
    settled: float | None
    faults: tuple[str, ...] = ()

    def count(self, *standings: Seen) -> int:
        """Return how many devices stand so."""
        return sum(standing in standings for standing in self.standing.values())


@dataclass(frozen=True, slots=True)
class Go:
    """The stage is good."""

    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Hold:
    """Wait."""

    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Back:
    """The stage is not good. ``failures``: how many devices failed, to be forgiven if an operator goes on anyhow."""

    reasons: tuple[str, ...]
    failures: int


def judge(stage: Stage, seen: Observations, policy: Policy, proven: bool, now: float) -> Go | Hold | Back:
    """Judge ``stage`` by ``policy``. ``proven``: a device of an earlier stage runs the release already."""
    gate = policy.gate
    failures = seen.count(Seen.FAILED, Seen.OVERDUE)
    failed = max(0, failures - stage.forgiven)
    executed = max(failed, seen.count(Seen.SUCCEEDED) + failures - stage.forgiven)
    pending, away = seen.count(Seen.PENDING), seen.count(Seen.AWAY)
    over = executed > 0 and failed * 100 > gate.max_failed_percent * executed
    share = f"{failed} of {executed} finished devices failed"
    if gate.max_failed is not None and failed > gate.max_failed:
        return Back((f"{failed} devices failed, at most {gate.max_failed} may", *seen.faults), failures)
    if over and (executed >= gate.min_executed or pending == 0):
        return Back((f"{share}, at most {gate.max_failed_percent:g} % may", *seen.faults), failures)
    finished = seen.count(Seen.SUCCEEDED) + failures
    if finished + pending == 0:
        return _nobody(stage, away, policy, proven, now)
    if pending and finished * 100 < gate.quorum_percent * (finished + pending):
        return Hold((f"{finished} of {finished + pending} reached devices have finished", *_away(away)))
    if over:
        return Hold((f"{share}; judged once {gate.min_executed} or all have finished",))
    soaked = now - (seen.settled if seen.settled is not None else stage.started)
    if soaked < policy.soak:
        return Hold((f"soaking for {policy.soak:g} s, {soaked:.0f} s so far", *_away(away)))
    return Go((share, *_away(away), *((f"{pending} still at work are watched on",) if pending else ())))


def observe(
    stage: Stage,
    rollout: Rollout,
    fleet: Fleet,
    executions: Mapping[str, Mapping[str, ExecutionView]],
    lost: frozenset[str],
    now: float,
) -> Observations:
    """Look at the devices of ``stage``, those carried from earlier ones included.

    executions: of this rollout, by device and component. lost: devices without an execution that can get none.
    """
    standing: dict[str, Seen] = {}
    settled: list[float] = []
    needed = len(rollout.components)
    # A device that a stage begins with gets some time to show itself; one that is carried on had that before.
    for device, since in (*((d, stage.started) for d in stage.devices), *((d, 0.0) for d in stage.carried)):
        known = list(executions.get(device, {}).values())
        standing[device] = _standing(device, known, needed, stage, rollout, fleet, lost, since, now)
        if device in stage.overdue:  # what it says later does not prolong the soak, nor does who was away
            settled.extend(stage.due(rollout.policy.deadline, execution.created) for execution in known)
        elif standing[device] in (Seen.SUCCEEDED, Seen.FAILED) and device not in stage.missed:
            settled.extend(execution.updated for execution in known if execution.finished)
    return Observations(standing, max(settled, default=None), _faults(standing))


def is_away(device: str, fleet: Fleet, since: float, policy: Policy, now: float) -> bool:
    """Whether ``device`` has been offline for as long as ``policy`` waits, counted from ``since`` at the earliest."""
    view = fleet.devices.get(device)
    if view is None or view.online:
        return view is None
    return now - max(view.last_seen or since, since) >= policy.offline.skip_after


def _standing(
    device: str,
    known: Sequence[ExecutionView],
    needed: int,
    stage: Stage,
    rollout: Rollout,
    fleet: Fleet,
    lost: frozenset[str],
    since: float,
    now: float,
) -> Seen:
    if any(execution.failed for execution in known):
        return Seen.FAILED
    if any(execution.withdrawn for execution in known):
        return Seen.LEFT
    if len(known) == needed and all(execution.succeeded for execution in known):
        return Seen.SUCCEEDED
    view = fleet.devices.get(device)
    if view is None or view.revoked or device in lost:
        return Seen.LEFT
    if device in stage.overdue:
        return Seen.OVERDUE
    if device in stage.missed or is_away(device, fleet, since, rollout.policy, now):
        return Seen.AWAY
    return Seen.PENDING


def _nobody(stage: Stage, away: int, policy: Policy, proven: bool, now: float) -> Go | Hold | Back:
    if not away:
        return Go(("nobody is left in this stage",))
    if proven:
        return Go((f"all {away} devices of this stage are away; earlier stages have proven the release",))
    if stage.age(now) < policy.deadline:
        return Hold((f"all {away} devices of this stage are away, and nothing is proven yet",))
    return Back((f"none of {away} devices could be reached in {policy.deadline:g} s: nothing is proven",), 0)


def _away(away: int) -> tuple[str, ...]:
    return (f"{away} away, they catch up when they return",) if away else ()


def _faults(standing: Mapping[str, Seen]) -> tuple[str, ...]:
    bad = [f"{device} {word}" for device, word in standing.items() if word in (Seen.FAILED, Seen.OVERDUE)]
    return (f"among them {', '.join(sorted(bad)[:3])}",) if bad else ()
