"""The statistics against values known from elsewhere."""

from __future__ import annotations

import math
import random

import pytest

from controller.builds.figures import Latency, largest_loss, slowdown, wilson


@pytest.mark.parametrize(
    ("right", "samples", "low", "high"),
    [(448, 450, 0.9839, 0.9988), (450, 450, 0.9915, 1.0), (0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634)],
)
def test_wilson(right: int, samples: int, low: float, high: float) -> None:
    assert wilson(right, samples) == pytest.approx((low, high), abs=1e-4)


def test_wilson_covers_the_truth_as_often_as_it_says() -> None:
    rng = random.Random(7)
    hits = 0
    for _ in range(2000):
        low, high = wilson(sum(rng.random() < 0.9 for _ in range(100)), 100)
        hits += low <= 0.9 <= high
    assert 0.93 <= hits / 2000 <= 0.97


def test_the_largest_loss() -> None:
    assert largest_loss(0, 0, 450) == pytest.approx(3 / 450)  # the rule of three
    assert largest_loss(4, 1, 450) == pytest.approx(3 / 450 + 1.644854 * math.sqrt((5 / 450 - (3 / 450) ** 2) / 450))
    assert largest_loss(0, 9, 450) == pytest.approx(3 / 450), "more rows gained than lost is no proof of a gain"


def test_slowdown_pairs_rounds_so_that_a_slow_phase_of_the_machine_cancels_out() -> None:
    phases = [1.0] * 20 + [3.0] * 20
    baseline = Latency(1, 1, 40, tuple(phases))
    candidate = Latency(1, 1, 40, tuple(0.7 * phase for phase in phases))
    ratio = slowdown(candidate, baseline)
    assert ratio.median == pytest.approx(0.7)
    assert ratio.noise == pytest.approx(0, abs=1e-9)


def test_the_noise_of_a_slowdown_is_half_an_interval_of_its_median() -> None:
    rng = random.Random(11)

    def rounds() -> Latency:
        return Latency(1, 1, 60, tuple(rng.gauss(1, 0.05) for _ in range(60)))

    found = [slowdown(rounds(), rounds()) for _ in range(300)]
    covered = sum(abs(ratio.median - 1) <= ratio.noise for ratio in found) / len(found)
    assert covered >= 0.9
