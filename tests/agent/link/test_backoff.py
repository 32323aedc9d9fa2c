from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from agent.link.backoff import Limits, delay


@given(attempt=st.integers(-3, 10_000), seed=st.integers(0, 2**32))
def test_every_wait_lies_within_its_limits(attempt: int, seed: int) -> None:
    limits = Limits(first=0.2, most=7.0, least=0.1)
    assert 0.1 <= delay(attempt, random.Random(seed), limits) <= 7.0


def test_ceilings_double_up_to_the_largest() -> None:
    class Highest:
        def random(self) -> float:
            return 1.0

    limits = Limits(first=1.0, most=10.0, least=0.0)
    assert [delay(n, Highest(), limits) for n in range(6)] == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]


def test_a_fleet_does_not_come_back_at_one_instant() -> None:
    rng = random.Random(7)
    waits = [delay(8, rng) for _ in range(500)]
    assert max(sum(low <= wait < low + 3 for wait in waits) for low in range(0, 30, 3)) < 100
