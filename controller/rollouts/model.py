"""What a rollout is, as values: the release, its stages, its executions, and the fleet as the plan sees it.

Invariant: plain frozen data and the table of states. What happens next is decided in `plan.py` and `gate.py`.
Times are seconds since 1970-01-01 UTC.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from controller.rollouts.policy import Policy, Selector
from wire.execution import FAILURES, SUCCESSES, TERMINAL, WITHDRAWN, ExecutionState

PREFIX: Final = "model:"


class RolloutState(StrEnum):
    """Where a rollout stands."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELED = "CANCELED"
    SUPERSEDED = "SUPERSEDED"
    ROLLING_BACK = "ROLLING_BACK"
    ROLLED_BACK = "ROLLED_BACK"


S = RolloutState
NEXT: Final[dict[RolloutState, frozenset[RolloutState]]] = {
    S.PENDING: frozenset({S.RUNNING, S.PAUSED, S.CANCELED, S.ROLLING_BACK}),
    S.RUNNING: frozenset({S.PAUSED, S.SUCCEEDED, S.FAILED, S.CANCELED, S.SUPERSEDED, S.ROLLING_BACK}),
    S.PAUSED: frozenset({S.RUNNING, S.CANCELED, S.ROLLING_BACK}),
    S.SUCCEEDED: frozenset({S.ROLLING_BACK}),
    S.FAILED: frozenset({S.ROLLING_BACK}),
    S.CANCELED: frozenset({S.ROLLING_BACK}),
    S.SUPERSEDED: frozenset({S.ROLLING_BACK}),
    S.ROLLING_BACK: frozenset({S.ROLLED_BACK}),
    S.ROLLED_BACK: frozenset(),
}
LIVE: Final = frozenset({S.PENDING, S.RUNNING, S.PAUSED, S.ROLLING_BACK})
CONCLUDED: Final = frozenset(S) - LIVE


class Wanted(StrEnum):
    """What an operator asked for."""

    RUN = "run"
    PAUSE = "pause"
    ABORT = "abort"
    ROLLBACK = "rollback"


_LEADS_TO: Final = {
    Wanted.RUN: S.RUNNING,
    Wanted.PAUSE: S.PAUSED,
    Wanted.ABORT: S.CANCELED,
    Wanted.ROLLBACK: S.ROLLING_BACK,
}
_FINAL: Final = {Wanted.ABORT: "aborted", Wanted.ROLLBACK: "rolled back"}  # what begins with them is not taken back


def order(state: RolloutState, before: Wanted, asked: Wanted) -> tuple[bool, str]:
    """Return whether ``asked`` is new to a rollout in ``state`` that was ordered ``before``, and why it cannot be.

    What was ordered before may not have been carried out yet, so that it counts more than the state.
    """
    if before is asked and (asked in _FINAL or state in LIVE):
        return False, ""
    if before in _FINAL and state in LIVE and not (before is Wanted.ABORT and asked is Wanted.ROLLBACK):
        return False, f"it is being {_FINAL[before]}"
    undone = state in LIVE and state is _LEADS_TO[asked]
    if not undone and _LEADS_TO[asked] not in NEXT[state]:
        return False, f"it is {state} and cannot become {_LEADS_TO[asked]}"
    if state is S.PENDING and asked is Wanted.ROLLBACK:
        return False, "it has not begun: abort it"
    return True, ""


class StageState(StrEnum):
    """A stage that has begun."""

    RUNNING = "RUNNING"
    PASSED = "PASSED"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage that has begun.

    carried: devices of earlier stages that had not finished and are watched on here. overdue: devices that had been
    reached and had not finished when their time was over; missed: those that were away then. paused: seconds that do
    not count against anybody's time; paused_since: set while the rollout is paused. forgiven: failures an operator
    resumed over.
    """

    number: int
    devices: tuple[str, ...]
    carried: tuple[str, ...]
    state: StageState
    started: float
    finished: float | None = None
    overdue: frozenset[str] = frozenset()
    missed: frozenset[str] = frozenset()
    paused: float = 0.0
    paused_since: float | None = None
    forgiven: int = 0
    reasons: tuple[str, ...] = ()

    def age(self, now: float, since: float = 0.0) -> float:
        """Return the seconds since the start, or since a later moment, without the stage's pauses."""
        until = self.paused_since if self.paused_since is not None else now
        return max(0.0, until - self.due(0.0, since))

    def due(self, seconds: float, since: float = 0.0) -> float:
        """Return when ``seconds`` after the start, or after a later moment, are over."""
        return max(self.started, since) + self.paused + seconds


@dataclass(frozen=True, slots=True)
class ExecutionView:
    """One execution. created: when the device was given it; reverting: it takes the device back to what it ran."""

    id: str
    device: str
    component: str
    build: str | None
    state: ExecutionState
    created: float
    updated: float
    reverting: bool = False

    @property
    def finished(self) -> bool:
        """Whether nothing further will be heard that counts."""
        return self.state in TERMINAL

    @property
    def succeeded(self) -> bool:
        """Whether the device runs the build."""
        return self.state in SUCCESSES

    @property
    def failed(self) -> bool:
        """Whether the device did not get there."""
        return self.state in FAILURES

    @property
    def withdrawn(self) -> bool:
        """Whether the controller, or something newer, took it back."""
        return self.state in WITHDRAWN


@dataclass(frozen=True, slots=True)
class Platform:
    """What decides which build fits. runtimes: (name, version), sorted."""

    profile: str
    arch: str
    runtimes: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class BuildView:
    """A published build of one model version."""

    id: str
    profile: str
    arch: tuple[str, ...]
    runtime: str
    min_runtime: str
    precision: str
    created: float


@dataclass(frozen=True, slots=True)
class Standing:
    """What the controller wants of one component on one device now.

    owner: (created, id) of the newest rollout that touched it. in_place: its execution succeeded.
    """

    build: str | None
    owner: tuple[float, str]
    in_place: bool


@dataclass(frozen=True, slots=True)
class DeviceView:
    """One device of the tenant. ``standing``: by component."""

    id: str
    name: str
    tags: frozenset[str]
    platform: Platform
    online: bool
    last_seen: float | None
    revoked: bool
    standing: Mapping[str, Standing]


@dataclass(frozen=True, slots=True)
class Fleet:
    """The tenant's fleet as read in one consistent look.

    builds: published, by (model, version). claimed: (device, component) that a newer live rollout selects.
    """

    devices: Mapping[str, DeviceView]
    builds: Mapping[tuple[str, int], tuple[BuildView, ...]]
    claimed: frozenset[tuple[str, str]] = frozenset()


@dataclass(frozen=True, slots=True)
class Rollout:
    """A release on its way. ``models``: name to version. ``stages``: those that have begun."""

    id: str
    tenant: str
    created: float
    models: Mapping[str, int]
    selector: Selector
    policy: Policy
    state: RolloutState
    wanted: Wanted
    stages: tuple[Stage, ...]
    executions: tuple[ExecutionView, ...]

    @property
    def order(self) -> tuple[float, str]:
        """What makes one rollout newer than another."""
        return (self.created, self.id)

    @property
    def components(self) -> tuple[str, ...]:
        """The components that this rollout sets, in order."""
        return tuple(PREFIX + name for name in sorted(self.models))

    def version_of(self, component: str) -> tuple[str, int]:
        """Return (model, version) for one of its components."""
        name = component.removeprefix(PREFIX)
        return (name, self.models[name])


def selects(selector: Selector, device: DeviceView) -> bool:
    """Whether ``device`` fits ``selector`` (a revoked one never does)."""
    return (
        not device.revoked
        and (not selector.devices or device.id in selector.devices or device.name in selector.devices)
        and device.tags.issuperset(selector.tags)
        and (not selector.profiles or device.platform.profile in selector.profiles)
    )
