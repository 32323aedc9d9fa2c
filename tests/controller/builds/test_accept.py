"""The gate's tables: what is accepted, what is refused and with which words, and which build is chosen."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.builds.accept import LIMITS, Accepted, Refused, accept, choose
from controller.builds.figures import Latency, Measured
from controller.builds.recipe import Optimization

BALANCED = LIMITS[Optimization.BALANCED]


def latency(p50_us: float, *, noise: float = 0.0, rounds: int = 40) -> Latency:
    """A latency whose rounds lie ``noise`` (a share) around the median, alternating."""
    times = tuple(p50_us / 1000 * (1 + noise * (-1) ** n) for n in range(rounds))
    return Latency(p50_us / 1000, p50_us / 800, rounds * 100, times)


def build(precision: str, kib: float, batch1: float, batch8: float, right: int = 448, **changes: Any) -> Measured:
    made = Measured(
        precision=precision,
        size_bytes=int(kib * 1024),
        finite=True,
        samples=450,
        right=right,
        lost=0,
        gained=0,
        difference=0.01,
        tolerance=1.0,
        batch1=latency(batch1),
        batch8=latency(batch8),
        golden_ms=0.1,
        memory_bytes=10_000_000,
        peak_memory_bytes=70_000_000,
    )
    return dataclasses.replace(made, **changes)


CNN_32 = build("fp32", 592, 20.5, 95)

MEASURED = [  # as measured on a processor with int8 dot products
    ("CNN 32/64", CNN_32, build("int8", 156, 14.4, 49), None),
    (
        "CNN 16/32",
        build("fp32", 150, 9.6, 31, right=437),
        build("int8", 44, 11.2, 29, right=436),
        "one row: median 11.2",
    ),
    ("MLP 64", build("fp32", 19, 4.5, 5.0, right=434), build("int8", 8, 6.1, 6.6, right=434), "one row: median 6.1 µs"),
    ("MLP 512", build("fp32", 653, 10.5, 20.6, right=440), build("int8", 179, 10.8, 14.3, right=440), None),
]


@pytest.mark.parametrize(("name", "baseline", "candidate", "refusal"), MEASURED, ids=[row[0] for row in MEASURED])
def test_measured_networks(name: str, baseline: Measured, candidate: Measured, refusal: str | None) -> None:
    verdict = accept(baseline, candidate, BALANCED)
    if refusal is None:
        assert isinstance(verdict, Accepted), verdict
    else:
        assert isinstance(verdict, Refused)
        assert refusal in verdict.reasons[0]
        assert not verdict.noisy


GOOD = build("int8", 156, 14.4, 49)
CASES = [
    ("nan", {"finite": False}, "NaN"),
    ("accuracy just kept", {"right": 444, "lost": 4}, None),  # 448 × 0.99 = 443.5
    ("accuracy just lost", {"right": 443, "lost": 5}, "less than the asked 99%"),
    ("no labels", {"right": None, "samples": 0}, "accuracy cannot be judged"),
    ("few labels", {"right": 49, "samples": 49}, "at least 50 are needed"),
    ("slower at one row", {"batch1": latency(22.0)}, "one row"),
    ("slower at eight rows only", {"batch8": latency(110.0)}, "eight rows"),
    ("within five per cent", {"batch1": latency(21.4)}, None),
    ("slower within the noise", {"batch1": latency(22.0, noise=0.2)}, None),
    ("fixed batch size", {"batch8": None}, None),
    ("not smaller", {"size_bytes": 592 * 1024}, "not smaller"),
]


@pytest.mark.parametrize(("name", "changes", "refusal"), CASES, ids=[case[0] for case in CASES])
def test_each_condition(name: str, changes: dict[str, Any], refusal: str | None) -> None:
    verdict = accept(CNN_32, dataclasses.replace(GOOD, **changes), BALANCED)
    if refusal is None:
        assert isinstance(verdict, Accepted), verdict
    else:
        assert isinstance(verdict, Refused)
        assert len(verdict.reasons) == 1, "only what was not fulfilled is a reason to refuse"
        assert refusal in verdict.reasons[0]


def test_a_busy_machine_is_a_reason_to_measure_again_and_never_to_accept() -> None:
    noisy = dataclasses.replace(GOOD, batch1=latency(20.5, noise=0.9))
    assert accept(CNN_32, noisy, BALANCED) == Refused(
        (
            "one row: median 20.5 µs against 20.5 µs of FP32, 1.00 times its time (± 0.52, 40 rounds): "
            "the noise is too great to judge speed",
        ),
        noisy=True,
    )
    worse = dataclasses.replace(noisy, finite=False)
    verdict = accept(CNN_32, worse, BALANCED)
    assert isinstance(verdict, Refused)
    assert not verdict.noisy, "measuring again does not help a build that gives NaN"
    few = dataclasses.replace(GOOD, batch1=latency(14, rounds=3), batch8=None)
    short = dataclasses.replace(CNN_32, batch1=latency(20, rounds=3))
    assert accept(short, few, BALANCED) == Refused(("one row: too few rounds were measured to judge speed",), True)


def test_acceptance_says_what_so_few_rows_cannot_rule_out() -> None:
    certain = accept(CNN_32, GOOD, BALANCED)
    assert isinstance(certain, Accepted)
    assert "a larger loss than allowed is ruled out" in " ".join(certain.reasons)
    unsure = accept(CNN_32, dataclasses.replace(GOOD, right=445, lost=4, gained=1), BALANCED)
    assert isinstance(unsure, Accepted)
    assert "cannot rule out a loss of 1.48 points, 1.00 are allowed" in " ".join(unsure.reasons)


def test_aggressive_takes_a_larger_loss_but_not_any() -> None:
    worse = dataclasses.replace(GOOD, right=440, lost=8)
    assert isinstance(accept(CNN_32, worse, BALANCED), Refused)
    assert isinstance(accept(CNN_32, worse, LIMITS[Optimization.AGGRESSIVE]), Accepted)
    much = dataclasses.replace(GOOD, right=438, lost=10)
    assert isinstance(accept(CNN_32, much, LIMITS[Optimization.AGGRESSIVE]), Refused)


def test_the_baseline_must_only_be_finite() -> None:
    assert isinstance(accept(CNN_32, CNN_32, BALANCED), Accepted)
    broken = dataclasses.replace(CNN_32, finite=False)
    assert isinstance(accept(broken, broken, BALANCED), Refused)


CHOICES = [
    ("alone", [CNN_32], Optimization.BALANCED, "fp32", "the only build"),
    ("faster", [CNN_32, GOOD], Optimization.BALANCED, "int8", "the fastest for one row of 2"),
    ("same speed, smaller", [CNN_32, build("int8", 156, 20.5, 95)], Optimization.BALANCED, "int8", "and the smallest"),
    ("slower within noise", [CNN_32, build("int8", 156, 21.0, 95)], Optimization.BALANCED, "int8", "within 5 %"),
    (
        "smallest, though slower",
        [CNN_32, build("int8", 156, 14, 49), build("int8-percentile", 100, 19, 60)],
        Optimization.AGGRESSIVE,
        "int8-percentile",
        "the smallest of 3",
    ),
    ("none asked", [CNN_32, GOOD], Optimization.NONE, "fp32", "no optimisation"),
    ("equal in all", [build("int8", 592, 20.5, 95), CNN_32], Optimization.BALANCED, "fp32", "within 5 %"),
]


@pytest.mark.parametrize(("name", "builds", "optimization", "best", "word"), CHOICES, ids=[row[0] for row in CHOICES])
def test_choice(name: str, builds: list[Measured], optimization: Optimization, best: str, word: str) -> None:
    chosen, why = choose(builds, optimization)
    assert chosen.precision == best
    assert word in why


measured = st.builds(
    build,
    st.sampled_from(["int8", "int8-percentile"]),
    st.floats(1, 2000),
    st.floats(1, 1000),
    st.floats(1, 1000),
    st.integers(0, 450),
    finite=st.booleans(),
)


@given(measured)
@settings(max_examples=200)
def test_nothing_accepted_breaks_the_promise(candidate: Measured) -> None:
    verdict = accept(CNN_32, candidate, BALANCED)
    assert verdict.reasons
    assert all("\n" not in reason and reason for reason in verdict.reasons)
    assert CNN_32.right is not None
    assert candidate.right is not None
    if isinstance(verdict, Accepted):
        assert candidate.finite
        assert candidate.right >= 0.99 * CNN_32.right
        assert candidate.batch1.p50_ms <= 1.0501 * CNN_32.batch1.p50_ms
        assert candidate.size_bytes < CNN_32.size_bytes


@given(st.lists(measured, min_size=1, max_size=6), st.sampled_from(Optimization), st.randoms())
@settings(max_examples=100)
def test_the_choice_does_not_depend_on_the_order(builds: list[Measured], optimization: Optimization, rng: Any) -> None:
    builds = [CNN_32, *builds]
    chosen, _ = choose(builds, optimization)
    rng.shuffle(builds)
    again, _ = choose(builds, optimization)
    assert dataclasses.replace(chosen, right=0, finite=True) == dataclasses.replace(again, right=0, finite=True)
