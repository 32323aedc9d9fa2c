"""When a build on probation is proven, and when it is guilty."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.updates.probation import MAX_ERROR_SHARE, MIN_ERRORS, Guilty, Proven, Watch, Watched, judge
from wire.assignment import Policy

POLICY = Policy(probation=10)


def test_proven_after_the_soak_with_traffic_and_an_acknowledged_report() -> None:
    assert judge(Watched(10, 5, 0, 0, True), POLICY) == Proven()
    assert judge(Watched(10, 0, 0, 1, True), POLICY) == Proven()


def test_each_thing_that_is_missing_is_named() -> None:
    for seen, word in (
        (Watched(9.9, 5, 0, 1, True), "soak"),
        (Watched(10, 0, 0, 0, True), "probe"),
        (Watched(10, 5, 0, 0, False), "acknowledged"),
    ):
        verdict = judge(seen, POLICY)
        assert isinstance(verdict, Watch)
        assert word in verdict.reason


def test_offline_ok_does_without_the_acknowledgement() -> None:
    assert judge(Watched(10, 5, 0, 0, False), Policy(probation=10, offline_ok=True)) == Proven()


def test_errors_convict_at_once_but_one_unlucky_request_does_not() -> None:
    verdict = judge(Watched(0.1, 10, 3, 0, False), POLICY)
    assert isinstance(verdict, Guilty)
    assert verdict.code == "error_rate"
    assert not isinstance(judge(Watched(0.1, 2, 2, 0, True), POLICY), Guilty)
    assert judge(Watched(10, 1000, 50, 0, True), POLICY) == Proven()


@given(st.floats(0, 100), st.integers(0, 1000), st.integers(0, 1000), st.integers(0, 10), st.booleans(), st.booleans())
def test_nothing_is_proven_that_lacks_something(
    seconds: float, requests: int, errors: int, probes: int, acknowledged: bool, offline: bool
) -> None:
    errors = min(errors, requests)
    verdict = judge(Watched(seconds, requests, errors, probes, acknowledged), Policy(probation=10, offline_ok=offline))
    if verdict == Proven():
        assert seconds >= 10
        assert requests > errors or probes
        assert acknowledged or offline
        assert errors < MIN_ERRORS or errors <= MAX_ERROR_SHARE * requests
