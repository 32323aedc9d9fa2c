from hypothesis import given, settings
from hypothesis import strategies as st

from agent.serving.admission import (
    Admitted,
    Asked,
    Bounds,
    Pace,
    QueueState,
    Rejected,
    admit,
    expected_wait,
    retry_header,
)


def pace(*runs: tuple[int, float]) -> Pace:
    made = Pace()
    for items, seconds in runs:
        made = made.observe(items, seconds)
    return made


def state(**more: object) -> QueueState:
    fields: dict[str, object] = {
        "bounds": Bounds(requests=4, items=10, bytes=1000),
        "pace": pace((1, 0.1)),
        "max_batch": 1,
        "requests": 0,
        "items": 0,
        "bytes": 0,
        "running_items": 0,
        "running_since": None,
    }
    return QueueState(**(fields | more))  # type: ignore[arg-type]


def test_idle_engine_admits_whatever_the_estimate_says() -> None:
    assert admit(state(pace=pace((1, 1000.0))), Asked(1, 1, deadline=0.001), 0.0) == Admitted(0.0)


def test_a_request_larger_than_the_bounds_is_told_to_be_smaller() -> None:
    for asked in (Asked(11, 1, 9.0), Asked(1, 1001, 9.0)):
        decision = admit(state(), asked, 0.0)
        assert isinstance(decision, Rejected)
        assert (decision.status, decision.retry_after) == (413, None)


def test_each_bound_rejects_with_429_and_a_time() -> None:
    for more in ({"requests": 4}, {"requests": 1, "items": 10}, {"requests": 1, "bytes": 1000}):
        decision = admit(state(**more), Asked(1, 1, 1e9), 0.0)
        assert isinstance(decision, Rejected)
        assert decision.status == 429
        assert decision.retry_after is not None


def test_a_wait_beyond_the_deadline_is_rejected_before_it_begins() -> None:
    busy = state(requests=3, items=3, running_items=1, running_since=0.0)
    assert abs(expected_wait(busy, 0.05) - 0.35) < 1e-9
    assert isinstance(admit(busy, Asked(1, 1, 0.05 + 0.46), 0.05), Admitted)
    late = admit(busy, Asked(1, 1, 0.05 + 0.44), 0.05)
    assert isinstance(late, Rejected)
    assert late.status == 429
    assert "450 ms" in late.reason


def test_batches_shorten_the_expected_wait() -> None:
    batched = state(requests=4, items=8, max_batch=4, pace=pace((1, 0.1), (4, 0.1), (4, 0.1)))
    assert expected_wait(batched, 0.0) < 0.3


def test_draining_is_503() -> None:
    decision = admit(state(draining=True), Asked(1, 1, 9.0), 0.0)
    assert isinstance(decision, Rejected)
    assert decision.status == 503


def test_pace_finds_the_line() -> None:
    found = pace(*[(n, 0.01 + 0.002 * n) for n in (1, 2, 4, 8) * 20])
    assert abs(found.seconds(16) - 0.042) < 0.003
    assert abs(found.seconds(1) - 0.012) < 0.003


def test_pace_of_one_size_is_careful_upwards_only() -> None:
    found = pace((4, 0.4), (4, 0.4))
    assert found.seconds(1) == found.seconds(4)
    assert abs(found.seconds(8) - 0.8) < 1e-9
    assert Pace().seconds(8) == 0.0


def test_pace_follows_a_change() -> None:
    found = pace(*[(1, 0.001)] * 200, *[(1, 0.1)] * 100)
    assert found.seconds(1) > 0.09


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(1, 64), st.floats(0, 10)), max_size=30),
    st.integers(1, 64),
    st.integers(0, 4),
    st.floats(0, 100),
)
def test_estimates_are_never_negative(runs: list[tuple[int, float]], items: int, waiting: int, now: float) -> None:
    found = state(
        pace=pace(*runs), max_batch=items, requests=waiting, items=waiting * 2, running_items=items, running_since=0.0
    )
    assert found.pace.seconds(items) >= 0.0
    assert expected_wait(found, now) >= 0.0


def test_retry_header_is_whole_seconds() -> None:
    assert [retry_header(value) for value in (0.0, 1.2, 1e9)] == ["1", "2", "3600"]
