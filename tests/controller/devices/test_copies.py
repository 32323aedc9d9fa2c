"""A copied identity is seen; a device that restarts, swaps networks or loses its broker is not suspected."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.devices.copies import RETURNS, WITHIN, Copies, History, follow, judge

NOW = 1_790_000_000.0
Told = tuple[str, int, bool]


def seen(*told: Told, every: float = 1.0) -> tuple[History, float]:
    history, now = None, NOW
    for boot, session, online in told:
        now += every
        history = follow(history, boot, session, online, now)
    assert history is not None
    return history, now


def test_two_machines_with_one_identity_are_seen_within_a_few_swaps() -> None:
    swaps = [("a", 7, True), ("b", 7, True), ("a", 7, False), ("a", 8, True), ("b", 8, True), ("a", 9, True)]
    history, now = seen(*swaps)
    copied = judge(history, now)
    assert copied is not None
    assert "2 machines" in copied.reason
    assert copied.since > NOW
    assert judge(history, now + WITHIN) is None  # one of the two was switched off


def test_two_agents_on_one_machine_are_seen_though_their_starts_are_the_same() -> None:
    lockstep = [("a", n, online) for n in range(5, 9) for online in (True, False, True)]
    history, now = seen(*lockstep)
    copied = judge(history, now)
    assert copied is not None
    assert "one machine" in copied.reason
    history, now = seen(*[("a", n, True) for pair in zip(range(50, 55), range(5, 10), strict=True) for n in pair])
    assert judge(history, now) is not None


@pytest.mark.parametrize(
    "told",
    [
        [("a", n, online) for n in range(20) for online in (True, False)],  # a bad network
        [(f"boot-{n}", n, online) for n in range(20) for online in (True, False)],  # it restarts all the time
        [("a", n, True) for n in range(20)],  # taken over by its own next connection
        [("a", 3, True)] * 20,  # the same message, told again by the broker
        [("a", 4, True), ("a", 3, False), ("a", 4, True)] * 1,  # the last will of an older connection is late
        [("a", 3, True), ("b", 4, True), ("a", 3, True), ("b", 5, True)],  # a killed broker brought an old one back
    ],
)
def test_what_a_single_machine_does_is_not_suspected(told: list[Told]) -> None:
    history, now = seen(*told)
    assert judge(history, now) is None


@given(st.integers(0, 2**32), st.integers(1, 60))
def test_one_machine_is_never_suspected_whatever_it_goes_through(seed: int, steps: int) -> None:
    rng = random.Random(seed)
    history, boot, now = None, 0, NOW
    for session in range(1, steps + 1):
        if rng.random() < 0.3:
            boot += 1
        for _ in range(rng.randint(1, 3)):
            history = follow(history, f"boot-{boot}", session, True, now)
        if rng.random() < 0.5:
            history = follow(history, f"boot-{boot}", session, False, now)
        now += rng.random()
    assert history is not None
    assert history.returns == ()


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 9), st.booleans()), max_size=100))
def test_what_is_kept_is_bounded(told: list[Told]) -> None:
    if told:
        history, _ = seen(*told)
        assert len(history.starts) <= 4
        assert len(history.returns) <= RETURNS


def test_each_device_has_its_own_history() -> None:
    copies = Copies()
    for n in range(6):
        copies.note("d-1", "ab"[n % 2], n, True, NOW + n)
        copies.note("d-2", f"boot-{n}", n, True, NOW + n)
    assert set(copies.all(NOW + 10)) == {"d-1"}
    assert copies.all(NOW + 2 * WITHIN) == {}
