"""Windows: exact sums, percentiles within 1 %, aligned, bounded."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.health.window import ACCURACY, Windows
from wire.messages import Window


def test_a_window_is_handed_out_once_when_it_is_over() -> None:
    windows = Windows(10)
    windows.add("load", 2.0, 1003.0)
    windows.add("load", 4.0, 1009.9)
    assert windows.take(1009.9) == ()
    (window,) = windows.take(1010.0)
    assert (window.name, window.start, window.seconds) == ("load", 1000.0, 10)
    assert (window.count, window.total, window.minimum, window.maximum) == (2, 6.0, 2.0, 4.0)
    assert windows.take(1011.0) == ()


def test_windows_begin_at_multiples_of_their_length() -> None:
    windows = Windows(7.5)
    windows.add("load", 1, 100.0)
    windows.add("load", 1, 113.0)
    assert [window.start for window in windows.take(200.0)] == [97.5, 112.5]


def test_a_clock_set_back_ends_the_running_window() -> None:
    windows = Windows(10)
    windows.add("load", 1, 5000.0)
    windows.add("load", 2, 100.0)
    assert [(w.start, w.total) for w in windows.take(100.0)] == [(5000.0, 1.0)]
    assert [(w.start, w.total) for w in windows.take(110.0)] == [(100.0, 2.0)]


def test_labels_make_series_in_any_order() -> None:
    windows = Windows(10)
    windows.add("p", 1, 0.0, {"a": "1", "b": "2"})
    windows.add("p", 2, 0.0, {"b": "2", "a": "1"})
    windows.add("p", 3, 0.0, {"a": "1"})
    assert [(w.labels, w.count) for w in windows.take(10.0)] == [({"a": "1", "b": "2"}, 2), ({"a": "1"}, 1)]


def test_series_and_waiting_windows_are_bounded_and_counted() -> None:
    windows = Windows(10, max_series=2, max_finished=3)
    for name in ("a", "b", "c", "a"):
        windows.add(name, 1, 0.0)
    assert windows.dropped == 1
    windows.add("a", 1, 10.0)
    windows.add("b", 1, 10.0)
    assert [(w.name, w.start) for w in windows.take(20.0)] == [("b", 0.0), ("a", 10.0), ("b", 10.0)]
    assert windows.dropped == 2


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e300])
def test_what_is_no_measurement_is_left_out(value: float) -> None:
    windows = Windows(10)
    windows.add("load", value, 0.0)
    assert (windows.take(10.0), windows.dropped) == ((), 1)


def test_a_length_must_be_positive() -> None:
    for seconds in (0, -1, math.nan):
        with pytest.raises(ValueError, match="not possible"):
            Windows(seconds)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.one_of(st.floats(0.01, 1e6), st.floats(-1e6, -0.01), st.just(0.0)), min_size=1, max_size=200))
def test_percentiles_are_within_one_percent(values: list[float]) -> None:
    windows = Windows(60)
    for value in values:
        windows.add("x", value, 30.0)
    (window,) = windows.take(60.0)
    ordered = sorted(values)
    assert window.count == len(values)
    assert window.total == pytest.approx(math.fsum(values), abs=1e-3)
    assert (window.minimum, window.maximum) == (ordered[0], ordered[-1])
    for share, found in ((0.5, window.p50), (0.95, window.p95), (0.99, window.p99)):
        rank = share * (len(ordered) - 1)
        around = ordered[math.floor(rank)], ordered[math.ceil(rank)]
        assert found is not None
        assert any(abs(found - exact) <= ACCURACY * abs(exact) * 1.001 for exact in around)
    assert window.minimum <= window.p50 <= window.p95 <= window.p99 <= window.maximum
    assert msgspec.json.decode(msgspec.json.encode(window), type=Window) == window
