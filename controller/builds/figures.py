"""What was measured of one build, and the statistics that a gate needs of it.

Invariant: plain values; a figure that was not measured is None. Does not measure (`benchmark.py`) nor judge
(`accept.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

MIN_ROUNDS: Final = 4  # below, a spread says nothing
_Z: Final = 1.959964  # of a two-sided 95 % interval


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds of one run at one batch size. ``rounds``: the median of each interleaved round, in round order.

    The n-th rounds of all builds of one measurement lie beside each other in time, so they compare pairwise.
    """

    p50_ms: float
    p95_ms: float
    runs: int
    rounds: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Measured:
    """One build, measured together with the FP32 baseline in the same processes.

    right: held-out rows answered rightly, of ``samples``; None when there are no labels that fit. lost, gained: rows
    that only the baseline, only this build got right. difference: the largest difference of an output from the
    baseline's, as a share of the range of the baseline's outputs. tolerance: what a device may differ from the golden
    outputs, absolute. memory_bytes: what loading and running it added to a bare process; peak_memory_bytes: in total.
    golden_ms: 95th percentile of one pass over the golden rows. batch8: None when the model's batch size is fixed.
    """

    precision: str
    size_bytes: int
    finite: bool
    samples: int
    right: int | None
    lost: int
    gained: int
    difference: float
    tolerance: float
    batch1: Latency
    batch8: Latency | None
    golden_ms: float
    memory_bytes: int
    peak_memory_bytes: int

    @property
    def accuracy(self) -> float | None:
        """Share of held-out rows answered rightly, 0 to 1."""
        return None if self.right is None or self.samples == 0 else self.right / self.samples


def wilson(right: int, samples: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share of ``right`` in ``samples`` (at least 1)."""
    share = right / samples
    scale = 1 + _Z**2 / samples
    middle = (share + _Z**2 / (2 * samples)) / scale
    half = _Z * math.sqrt(share * (1 - share) / samples + _Z**2 / (4 * samples**2)) / scale
    return max(0.0, middle - half), min(1.0, middle + half)


def largest_loss(lost: int, gained: int, samples: int) -> float:
    """Return the loss of accuracy, as a share of the rows, that 95 % confidence cannot rule out.

    Paired, one-sided: the same rows were answered by both. With no row lost it is the rule of three.
    """
    change = (lost - gained) / samples
    variance = (lost + gained) / samples - change**2
    normal = change + 1.644854 * math.sqrt(max(variance, 0.0) / samples)
    return max(normal, 3.0 / samples) if lost <= gained else normal


@dataclass(frozen=True, slots=True)
class Ratio:
    """Time of a build over the baseline's: below 1 is faster. noise: half a 95 % interval of that median."""

    median: float
    noise: float


def slowdown(candidate: Latency, baseline: Latency) -> Ratio:
    """Return how much time ``candidate`` takes relative to ``baseline``, round by round.

    The noise is that of a median, 1.82 x interquartile range / sqrt(rounds), which a few disturbed rounds do not move.
    """
    ratios = sorted(mine / base for mine, base in zip(candidate.rounds, baseline.rounds, strict=True))
    noise = 1.82 * (_quantile(ratios, 0.75) - _quantile(ratios, 0.25)) / math.sqrt(len(ratios))
    return Ratio(_quantile(ratios, 0.5), noise if len(ratios) >= MIN_ROUNDS else math.inf)


def _quantile(ordered: list[float], share: float) -> float:
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])
