"""Delivered once (wire 4.2): whatever is lost, repeated or resent, each message is taken once and in order."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.devices.sequence import Duplicate, Fresh, Gap, Held, judge


@pytest.mark.parametrize(
    ("held", "message", "verdict"),
    [
        (Held(None, 0), ("s", 1, 0), Fresh(1)),
        (Held(None, 0), ("s", 7, 6), Fresh(7)),  # this controller lost its memory: the stream is new to it
        (Held("s", 3), ("s", 4, 3), Fresh(4)),
        (Held("s", 3), ("s", 9, 3), Fresh(9)),  # the device had to drop what lay between
        (Held("s", 3), ("s", 9, 0), Fresh(9)),
        (Held("s", 3), ("s", 3, 2), Duplicate(3)),
        (Held("s", 3), ("s", 1, 0), Duplicate(3)),
        (Held("s", 3), ("s", 5, 4), Gap(3)),
        (Held("s", 3), ("t", 1, 0), Fresh(1)),
        (Held("s", 3), ("t", 2, 1), Fresh(2)),
    ],
)
def test_table(held: Held, message: tuple[str, int, int], verdict: Fresh | Duplicate | Gap) -> None:
    assert judge(held, *message) == verdict


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 12), st.integers(0, 2**32), st.floats(0, 0.8))
def test_over_a_bad_line_everything_arrives_once_and_in_order(number: int, seed: int, loss: float) -> None:
    rng = random.Random(seed)
    waiting = list(range(1, number + 1))
    held, stored = Held(None, 0), []
    for _ in range(2_000):
        if not waiting:
            break
        first = waiting[0]
        for sequence in list(waiting):
            if rng.random() < loss:
                continue
            verdict = judge(held, "stream", sequence, 0 if sequence == 1 else sequence - 1)
            if isinstance(verdict, Fresh):
                # a stream that is new may begin anywhere; the device always sends its oldest again first
                if not stored and sequence != first:
                    continue
                stored.append(sequence)
                held = Held("stream", sequence)
            if not isinstance(verdict, Gap) and rng.random() >= loss:
                waiting = [later for later in waiting if later > verdict.acknowledge]
    assert stored == list(range(1, number + 1))


@settings(max_examples=100)
@given(st.integers(0, 50), st.integers(1, 60), st.integers(0, 59))
def test_nothing_is_taken_twice_or_before_its_predecessor(stored: int, sequence: int, previous: int) -> None:
    verdict = judge(Held("s", stored), "s", sequence, previous)
    if isinstance(verdict, Fresh):
        assert sequence > stored
        assert previous <= stored
    else:
        assert sequence <= stored or previous > stored
