"""Is a stage good enough to go on, must it wait, or must the rollout go back?

Invariant: ``Go`` is never said while more devices have failed than the rule allows, nor before the wanted share of the
reached devices has finished, nor on no evidence at all; and once the deadline has passed (plus the soak) the answer is
``Go`` or ``Back``, never ``Hold``. Devices that are away are counted apart: they neither fail a stage nor stall it.
Does not change anything: the plan draws the consequences.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from controller.rollouts.model import ExecutionView, Fleet, Rollout, Stage
from controller.rollouts.policy import Policy


class Seen(StrEnum):
    """How one device of a stage stands.

    away: offline for longer than the policy waits, or back only after the deadline. left: revoked, or a newer rollout
    has it, or no build fits any more. overdue: was reached, has not finished by the deadline; counts as failed.
    """

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    OVERDUE = "overdue"
    PENDING = "pending"
    AWAY = "away"
    LEFT = "left"


@dataclass(frozen=True, slots=True)
class Observations:
    """What is known of a stage. ``last_finished``: when the newest of its executions ended."""

    standing: Mapping[str, Seen]
    last_finished: float | None
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
    closing = stage.started + stage.paused + policy.deadline  # what comes later must not prolong the soak
    finished_at = seen.last_finished if seen.last_finished is not None else stage.started
    since = closing if seen.count(Seen.OVERDUE) else min(finished_at, closing)
    if now - since < policy.soak:
        return Hold((f"soaking for {policy.soak:g} s, {now - since:.0f} s so far", *_away(away)))
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
    finished: list[float] = []
    needed = len(rollout.components)
    for device in (*stage.devices, *stage.carried):
        of_device = executions.get(device, {})
        standing[device] = _standing(device, of_device.values(), needed, stage, rollout, fleet, lost, now)
        if standing[device] in (Seen.SUCCEEDED, Seen.FAILED):
            finished.extend(execution.updated for execution in of_device.values() if execution.finished)
    return Observations(standing, max(finished, default=None), _faults(standing))


def is_away(device: str, fleet: Fleet, since: float, policy: Policy, now: float) -> bool:
    """Whether ``device`` has been offline for as long as ``policy`` waits, counted from ``since`` at the earliest."""
    view = fleet.devices.get(device)
    if view is None or view.online:
        return view is None
    return now - max(view.last_seen or since, since) >= policy.offline.skip_after


def _standing(
    device: str,
    of_device: Iterable[ExecutionView],
    needed: int,
    stage: Stage,
    rollout: Rollout,
    fleet: Fleet,
    lost: frozenset[str],
    now: float,
) -> Seen:
    known = list(of_device)
    if any(execution.failed for execution in known):
        return Seen.FAILED
    if any(execution.withdrawn for execution in known):
        return Seen.LEFT
    if len(known) == needed and all(execution.succeeded for execution in known):
        return Seen.SUCCEEDED
    view = fleet.devices.get(device)
    if view is None or view.revoked or device in lost:
        return Seen.LEFT
    if stage.expired is not None:
        return Seen.OVERDUE if device in stage.expired else Seen.AWAY
    if is_away(device, fleet, stage.started, rollout.policy, now):
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
