"""The gate: may a candidate be published, and which of the accepted ones shall be?

Invariant: a candidate is accepted only when its outputs are finite, it kept the asked share of the baseline's accuracy,
it is not slower than the baseline beyond the measured noise, and it is smaller; each of these is told as a sentence
with its numbers, also on acceptance. FP32 alone is a fine outcome. Does not measure; trusts the figures it is given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from controller.builds.figures import Latency, Measured, largest_loss, slowdown, wilson
from controller.builds.recipe import FP32, Optimization


@dataclass(frozen=True, slots=True)
class GateLimits:
    """accuracy: share of the baseline's accuracy to keep. slower: share of time that may be added, besides the noise.

    noise: with more than this a measurement says nothing. samples: held-out rows below which accuracy says nothing.
    """

    accuracy: float
    slower: float = 0.05
    noise: float = 0.15
    samples: int = 50


LIMITS: Final = {
    Optimization.NONE: GateLimits(accuracy=0.99),
    Optimization.BALANCED: GateLimits(accuracy=0.99),
    Optimization.AGGRESSIVE: GateLimits(accuracy=0.98),
}
SAME_SPEED: Final = 0.05


@dataclass(frozen=True, slots=True)
class Accepted:
    """Why the candidate may be published."""

    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Refused:
    """Why it must not be. ``noisy``: only because the machine was too busy to tell; measuring again may help."""

    reasons: tuple[str, ...]
    noisy: bool = False


@dataclass(frozen=True, slots=True)
class _Finding:
    passed: bool
    sentence: str
    noisy: bool = False


def accept(baseline: Measured, candidate: Measured, limits: GateLimits) -> Accepted | Refused:
    """Judge ``candidate`` against ``baseline``, the FP32 build measured in the same processes.

    The baseline itself (the same precision) must only be finite.
    """
    findings = [_finite(candidate)]
    if candidate.precision == baseline.precision:
        findings.append(_Finding(True, "it is the model as trained, the measure for other builds"))
    else:
        findings.append(_accuracy(baseline, candidate, limits))
        findings.append(_speed("one row", baseline.batch1, candidate.batch1, limits))
        if baseline.batch8 is not None and candidate.batch8 is not None:
            findings.append(_speed("eight rows", baseline.batch8, candidate.batch8, limits))
        findings.append(_size(baseline, candidate))
    refusals = [finding for finding in findings if not finding.passed]
    if not refusals:
        return Accepted(tuple(finding.sentence for finding in findings))
    return Refused(tuple(finding.sentence for finding in refusals), noisy=all(finding.noisy for finding in refusals))


def choose(accepted: Sequence[Measured], optimization: Optimization) -> tuple[Measured, str]:
    """Return which of ``accepted`` (at least one, all measured together) to publish, and why.

    Order when balanced: fastest for one row (within 5 % is the same), then smallest. Aggressive: smallest (within 5 %),
    then fastest. With no optimisation: FP32. Equal in all: the more precise.
    """
    precise = next((build for build in accepted if build.precision == FP32), None)
    if len(accepted) == 1:
        return accepted[0], "it is the only build that the gate accepted"
    if optimization is Optimization.NONE and precise is not None:
        return precise, "the target asks for no optimisation"

    def by_time(build: Measured) -> float:
        return build.batch1.p50_ms

    def by_size(build: Measured) -> float:
        return build.size_bytes

    first, second = (by_size, by_time) if optimization is Optimization.AGGRESSIVE else (by_time, by_size)
    least = min(first(build) for build in accepted)
    close = [build for build in accepted if first(build) <= least * (1 + SAME_SPEED)]
    best = min(close, key=lambda build: (second(build), first(build), build.precision != FP32, *_last_resort(build)))
    words = {by_time: "the fastest for one row", by_size: "the smallest"}
    others = f" of {len(accepted)} accepted builds"
    if len(close) == 1:
        return best, f"it is {words[first]}{others} ({_facts(best)})"
    return best, f"it is among {words[first]} (within 5 %) and {words[second]} of these{others} ({_facts(best)})"


def _last_resort(build: Measured) -> tuple[str, float]:
    """What decides between builds that are equal in all that matters, so that their order never does."""
    return build.precision, build.batch8.p50_ms if build.batch8 is not None else math.inf


def _facts(build: Measured) -> str:
    return f"{build.batch1.p50_ms * 1000:.1f} µs, {build.size_bytes / 1024:.0f} KiB"


def _finite(candidate: Measured) -> _Finding:
    if candidate.finite:
        return _Finding(True, "no output is NaN or infinite")
    return _Finding(False, "an output is NaN or infinite: such a build must never reach a device")


def _accuracy(baseline: Measured, candidate: Measured, limits: GateLimits) -> _Finding:
    before, after, samples = baseline.accuracy, candidate.accuracy, candidate.samples
    if before is None or after is None or candidate.right is None or samples < limits.samples:
        return _Finding(
            False,
            f"accuracy cannot be judged: {samples if after is not None else 0} labelled held-out rows, "
            f"at least {limits.samples} are needed",
        )
    least = limits.accuracy * before
    low, high = wilson(candidate.right, samples)
    measured = f"{after:.2%} (95 % interval {low:.2%} to {high:.2%}, {samples} rows) against {before:.2%} of FP32"
    if after < least:
        return _Finding(False, f"accuracy is {measured}: less than the asked {limits.accuracy:.0%} of it ({least:.2%})")
    loss = largest_loss(candidate.lost, candidate.gained, samples)
    allowed = before - least
    certainty = (
        "a larger loss than allowed is ruled out"
        if loss <= allowed
        else f"so few rows cannot rule out a loss of {loss * 100:.2f} points, {allowed * 100:.2f} are allowed"
    )
    return _Finding(
        True, f"accuracy is {measured}, {candidate.lost} rows lost and {candidate.gained} gained; {certainty}"
    )


def _speed(rows: str, baseline: Latency, candidate: Latency, limits: GateLimits) -> _Finding:
    ratio = slowdown(candidate, baseline)
    measured = (
        f"{rows}: median {candidate.p50_ms * 1000:.1f} µs against {baseline.p50_ms * 1000:.1f} µs of FP32, "
        f"{ratio.median:.2f} times its time"
    )
    if math.isinf(ratio.noise):
        return _Finding(False, f"{rows}: too few rounds were measured to judge speed", noisy=True)
    measured += f" (± {ratio.noise:.2f}, {len(candidate.rounds)} rounds)"
    if ratio.median - ratio.noise > 1 + limits.slower:
        return _Finding(False, f"{measured}: slower by more than {limits.slower:.0%} and the noise")
    if ratio.noise > limits.noise:
        return _Finding(False, f"{measured}: the noise is too great to judge speed", noisy=True)
    return _Finding(True, f"{measured}: not slower beyond {limits.slower:.0%} and the noise")


def _size(baseline: Measured, candidate: Measured) -> _Finding:
    share = candidate.size_bytes / baseline.size_bytes
    measured = f"{candidate.size_bytes / 1024:.0f} KiB against {baseline.size_bytes / 1024:.0f} KiB of FP32"
    if share >= 1:
        return _Finding(False, f"{measured}: not smaller")
    return _Finding(True, f"{measured}: {1 / share:.1f} times smaller")
