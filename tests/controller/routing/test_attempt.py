"""What to try next: pure, so tables and properties."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.routing.attempt import (
    MIN_PATIENCE,
    MIN_TRY,
    GiveUp,
    Outcome,
    Tried,
    Try,
    next_attempt,
    outcome_of,
    patience,
)
from controller.routing.choose import Candidate


def candidate(device: str, *, p99: float | None = 0.01, full: bool = False, score: float = 0.001) -> Candidate:
    return Candidate(device, score, 0, 0, False, full, p99)


A, B, C = candidate("a"), candidate("b"), candidate("c")


@pytest.mark.parametrize(
    ("tried", "ranked", "now", "expected"),
    [
        ([], [A, B], 0.0, ("a", 0.3)),
        ([], [candidate("a", p99=0.5), B], 0.0, ("a", 1.5)),
        ([], [candidate("a", p99=None), B], 0.0, ("a", 1.0)),
        ([], [candidate("a", score=0.8), B], 0.0, ("a", 2.4)),  # slower by its own word than the model's others
        ([], [candidate("a", p99=9.0), B], 0.0, ("a", 5.0)),  # half, so that b fits
        ([], [A, B], 9.8, ("a", 0.1)),
        ([], [A], 2.0, ("a", 8.0)),  # the last one has all that is left
        ([("a", Outcome.TIMEOUT)], [A, B], 0.3, ("b", 9.7)),
        ([("a", Outcome.LOST)], [A, B], 0.0, ("b", 10.0)),
        ([], [candidate("a", full=True), B], 0.0, ("b", 10.0)),
        ([], [], 0.0, 503),
        ([], [candidate("a", full=True)], 0.0, 429),
        ([("a", Outcome.SATURATED)], [A], 0.0, 429),
        ([("a", Outcome.LOST), ("b", Outcome.SATURATED)], [A, B], 0.0, 429),
        ([("a", Outcome.LOST)], [A], 0.0, 503),
        ([("a", Outcome.UNAVAILABLE)], [A], 0.0, 503),
        ([("a", Outcome.BROKEN)], [A], 0.0, 502),
        ([("a", Outcome.TIMEOUT)], [A], 5.0, 504),
        ([("a", Outcome.AWAY)], [A, B], 0.0, ("b", 10.0)),
        ([("a", Outcome.AWAY)], [A], 0.0, 503),
        ([("a", Outcome.LOST), ("b", Outcome.LOST)], [A, B, C], 0.0, 502),  # the request may be what kills them
        ([("a", Outcome.AWAY), ("b", Outcome.AWAY)], [A, B, C], 0.0, ("c", 10.0)),
        ([("a", Outcome.FAILED)], [A, B, C], 0.0, ("b", 0.3)),
        ([("a", Outcome.FAILED), ("b", Outcome.FAILED)], [A, B, C], 0.0, 500),
        ([], [A], 10.0, 504),
        ([], [A], 11.0, 504),
    ],
)
def test_table(tried, ranked, now, expected):
    step = next_attempt([Tried(*one) for one in tried], ranked, now, deadline=10.0)
    if isinstance(expected, int):
        assert isinstance(step, GiveUp)
        assert step.status == expected
        assert (step.retry_after is not None) == (expected in (429, 503))
    else:
        assert isinstance(step, Try)
        assert (step.device, pytest.approx(step.timeout)) == expected


def test_the_reason_tells_what_was_tried():
    step = next_attempt([Tried("a", Outcome.LOST)], [A], 0.0, 10.0)
    assert isinstance(step, GiveUp)
    assert "a lost" in step.reason


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (200, Outcome.ANSWERED),
        (400, Outcome.ANSWERED),
        (413, Outcome.ANSWERED),
        (422, Outcome.ANSWERED),
        (500, Outcome.FAILED),
        (404, Outcome.UNAVAILABLE),
        (429, Outcome.SATURATED),
        (502, Outcome.UNAVAILABLE),
        (503, Outcome.UNAVAILABLE),
        (504, Outcome.TIMEOUT),
    ],
)
def test_only_a_devices_own_trouble_is_worth_another_device(status, outcome):
    assert outcome_of(status) is outcome


def test_patience_is_never_shorter_than_a_hiccup():
    assert patience(0.001, 0.001) == MIN_PATIENCE
    assert patience(2.0, 0.001) == 6.0
    assert patience(0.001, 2.0) == 6.0


_FAILURES = st.sampled_from([one for one in Outcome if one is not Outcome.ANSWERED])


@settings(max_examples=200, deadline=None)
@given(
    fulls=st.lists(st.tuples(st.booleans(), st.one_of(st.none(), st.floats(0, 30))), max_size=10),
    outcomes=st.lists(st.tuples(_FAILURES, st.floats(0, 1)), min_size=10, max_size=10),
    seconds=st.floats(0, 60),
    start=st.floats(0, 1e6),
)
def test_fail_over_ends_within_the_deadline_and_asks_nobody_twice(fulls, outcomes, seconds, start):
    ranked = [candidate(f"d{number}", full=full, p99=p99) for number, (full, p99) in enumerate(fulls)]
    tried: list[Tried] = []
    now, deadline = start, start + seconds
    for outcome, share in outcomes:
        step = next_attempt(tried, ranked, now, deadline)
        if isinstance(step, GiveUp):
            break
        assert now < deadline
        assert step.device not in {one.device for one in tried}
        assert not next(one for one in ranked if one.device == step.device).full
        assert 0 < step.timeout <= step.limit <= deadline - now
        left = [one for one in ranked if one.device not in {t.device for t in tried} and not one.full]
        if len(left) > 1:
            assert deadline - now - step.limit >= step.limit - 1e-9  # one more try fits
        now += step.limit if outcome is Outcome.TIMEOUT else step.limit * share
        tried.append(Tried(step.device, outcome))
    step = next_attempt(tried, ranked, now, deadline)
    assert isinstance(step, GiveUp)
    if now > deadline - MIN_TRY:
        assert step.status == 504
