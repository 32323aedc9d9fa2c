"""How many devices a stage takes, and in which order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.rollouts.candidates import Fit, in_order, stage_size
from controller.rollouts.model import DeviceView, Platform
from controller.rollouts.policy import Share

NOW = 1_000_000.0


@pytest.mark.parametrize(
    ("share", "total", "left", "size"),
    [
        ({"count": 3}, 10, 10, 3),
        ({"count": 3}, 10, 2, 2),
        ({"percent": 10}, 10, 10, 1),
        ({"percent": 10}, 11, 11, 2),  # rounded up
        ({"percent": 10}, 3, 3, 1),  # at least one
        ({"percent": 0.01}, 3, 3, 1),
        ({"percent": 50}, 10, 9, 5),  # of all, not of those left
        ({"percent": 100}, 10, 4, 4),
        ({"percent": 0.07}, 10_000, 10_000, 7),  # and not what binary fractions make of it
        ({"percent": 1.1}, 3000, 3000, 33),
        ({"rest": True}, 10, 4, 4),
    ],
)
def test_stage_size(share: dict[str, float], total: int, left: int, size: int) -> None:
    assert stage_size(Share(**share), total, left) == size  # type: ignore[arg-type]


@given(st.integers(1, 100_000), st.integers(1, 10_000))
def test_a_percentage_is_rounded_up_exactly(total: int, hundredths: int) -> None:
    assert stage_size(Share(percent=hundredths / 100), total, total) == -(-total * hundredths // 10_000)


def test_those_that_are_there_come_first() -> None:
    def fit(name: str, online: bool, seen: float | None) -> Fit:
        view = DeviceView(name, name, frozenset(), Platform("x", "y", ()), online, seen, False, {})
        return Fit(view, {})

    never, week = fit("a", False, None), fit("b", False, NOW - 7 * 86_400)
    hour, minute = fit("c", False, NOW - 7200), fit("d", False, NOW - 60)
    here, there = fit("e", True, NOW), fit("f", True, NOW - 30)
    assert in_order([never, week, hour, minute, there, here], NOW) == [here, there, minute, hour, never, week]
