"""What a plan asks to be done, as values.

Invariant: plain frozen data, each with its reasons; who carries a step out (`effects.py`) decides nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from controller.rollouts.model import RolloutState, StageState


@dataclass(frozen=True, slots=True)
class Assign:
    """Give ``device`` this build of ``component``. in_place: it runs it already; a success, nothing is sent."""

    device: str
    component: str
    build: str
    stage: int
    why: tuple[str, ...]
    in_place: bool = False


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Take the component back to the last build that worked on the device before this rollout, or remove it."""

    device: str
    component: str
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StartStage:
    """Begin a stage with these devices, and watch on those ``carried`` from before."""

    number: int
    devices: tuple[str, ...]
    carried: tuple[str, ...]
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class JoinStage:
    """Take more devices into the running stage: those that are new, or in place of those that are gone."""

    number: int
    devices: tuple[str, ...]
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ExpireStage:
    """The time of these devices is over: ``overdue`` had been reached and had not finished, ``missed`` were away."""

    number: int
    overdue: frozenset[str]
    missed: frozenset[str]


@dataclass(frozen=True, slots=True)
class FinishStage:
    """The gate has decided."""

    number: int
    state: StageState
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Move:
    """The rollout goes into a state that is not its last. failures: of the stage, forgiven when it is resumed."""

    state: RolloutState
    reasons: tuple[str, ...]
    failures: int = 0


@dataclass(frozen=True, slots=True)
class Conclude:
    """The rollout is over."""

    state: RolloutState
    reasons: tuple[str, ...]


Step = Assign | Withdraw | StartStage | JoinStage | ExpireStage | FinishStage | Move | Conclude
