"""Which builds are worth trying for a target.

Invariant: FP32 is always tried first, for it is what every other build is judged against; INT8 only when there are
calibration rows to learn ranges from and held-out labels to judge it by. Does not convert or measure anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Optimization(StrEnum):
    """How much a target may trade. NONE: FP32 alone. AGGRESSIVE: more accuracy for less size and time."""

    NONE = "none"
    BALANCED = "balanced"
    AGGRESSIVE = "aggressive"


class Calibration(StrEnum):
    """How the range of an activation is taken from the calibration rows: all of it, or without the rarest values."""

    MINMAX = "minmax"
    PERCENTILE = "percentile"


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """What the check found out about an uploaded model and its data.

    calibration, heldout: rows in the data file. labelled: held-out rows have labels that fit the first output.
    """

    calibration: int
    heldout: int
    labelled: bool


@dataclass(frozen=True, slots=True)
class Step:
    """One candidate to build. precision: its name, at most 16 characters; calibration: None for FP32."""

    precision: str
    calibration: Calibration | None
    why: str


FP32 = "fp32"
MIN_CALIBRATION = 16


def recipe(facts: SourceFacts, optimization: Optimization) -> list[Step]:
    """Return the candidates to build for a source with ``facts``, the baseline first."""
    steps = [Step(FP32, None, "the model as it was trained: the measure for the others")]
    if optimization is Optimization.NONE or facts.calibration < MIN_CALIBRATION or not facts.labelled:
        return steps
    steps.append(Step("int8", Calibration.MINMAX, f"ranges from all values of {facts.calibration} calibration rows"))
    if optimization is Optimization.AGGRESSIVE:
        steps.append(
            Step("int8-percentile", Calibration.PERCENTILE, "ranges without the rarest values, so finer steps")
        )
    return steps


def left_out(facts: SourceFacts, optimization: Optimization) -> str:
    """Return why INT8 is not tried, or an empty text when it is."""
    if optimization is Optimization.NONE:
        return "INT8 was not tried: the target asks for no optimisation"
    if facts.calibration < MIN_CALIBRATION:
        return f"INT8 was not tried: it needs {MIN_CALIBRATION} calibration rows, the data file has {facts.calibration}"
    if not facts.labelled:
        return "INT8 was not tried: without held-out rows and labels nobody can tell what it costs in accuracy"
    return ""
