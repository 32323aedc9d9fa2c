"""Windows stored once, rolled up, bounded, asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.errors import UnavailableError
from controller.telemetry import series as module
from controller.telemetry.series import Series
from wire.messages import Health, Window

NOW = 1_800_000_000.0
DEVICE = "d-" + "a" * 26


def window(start: float, value: float = 1.0, count: int = 1, name: str = "memory", **labels: str) -> Window:
    return Window(
        name=name,
        labels=labels,
        start=start,
        seconds=10.0,
        count=count,
        total=value * count,
        minimum=value,
        maximum=value,
        p50=value,
        p95=value,
        p99=value,
    )


def health(sequence: int, *windows: Window, stream: str = "stream-1") -> Health:
    return Health(stream=stream, sequence=sequence, previous=sequence - 1, windows=list(windows))


def test_a_message_that_comes_twice_is_stored_once(series: Series) -> None:
    message = health(1, window(NOW - 60, 2.0, count=3))
    series.write([(DEVICE, message), (DEVICE, message)], NOW)
    series.write([(DEVICE, message)], NOW)
    for step in (10, 60, 3600):
        (found,) = series.query(DEVICE, "memory", NOW - 7200, NOW, step)
        assert [point.count for point in found["points"]] == [3], f"step {step}"
    assert series.counts["repeated"] == 2


def test_a_new_stream_of_the_same_device_is_not_a_repetition(series: Series) -> None:
    series.write([(DEVICE, health(5, window(NOW - 60)))], NOW)
    series.write([(DEVICE, health(1, window(NOW - 50), stream="stream-2"))], NOW)
    (found,) = series.query(DEVICE, "memory", NOW - 100, NOW, 1)
    assert len(found["points"]) == 2


def test_labels_make_series_of_their_own(series: Series) -> None:
    series.write([(DEVICE, health(1, window(NOW - 60, model="a"), window(NOW - 60, 5.0, model="b")))], NOW)
    found = series.query(DEVICE, "memory", NOW - 100, NOW, 60)
    assert [(entry["labels"], entry["points"][0].mean) for entry in found] == [({"model": "a"}, 1), ({"model": "b"}, 5)]
    assert series.names(DEVICE) == ["memory"]
    assert series.query("d-" + "b" * 26, "memory", NOW - 100, NOW, 60) == []


@settings(max_examples=25, deadline=None)
@given(
    values=st.lists(
        st.tuples(st.integers(0, 7000), st.floats(-100, 100, width=32), st.integers(1, 50)), min_size=1, max_size=40
    )
)
def test_rolled_up_or_raw_the_sums_agree(
    tmp_path_factory: pytest.TempPathFactory, values: list[tuple[int, float, int]]
) -> None:
    series = Series(tmp_path_factory.mktemp("series") / "series.db")
    starts: dict[float, tuple[float, int]] = {NOW - 7200 + offset: (value, count) for offset, value, count in values}
    for sequence, (start, (value, count)) in enumerate(starts.items(), 1):  # in any order, each its own message
        series.write([(DEVICE, health(sequence, window(start, value, count)))], NOW)
    for step in (1, 60, 3600):
        (found,) = series.query(DEVICE, "memory", NOW - 7200 - 3600, NOW + 1, step)
        points = found["points"]
        assert sum(point.count for point in points) == sum(count for _, count in starts.values())
        assert sum(point.mean * point.count for point in points) == pytest.approx(
            sum(value * count for value, count in starts.values()), abs=1e-6
        )
        assert sum(point.p50 * point.count for point in points) == pytest.approx(
            sum(value * count for value, count in starts.values()), abs=1e-6
        )
        assert min(point.minimum for point in points) == min(value for value, _ in starts.values())
        assert max(point.p95 for point in points) == max(value for value, _ in starts.values())
    series.close()


def test_a_value_that_was_not_measured_stays_unknown(series: Series) -> None:
    empty = Window(name="memory", labels={}, start=NOW - 60, seconds=10, count=0, total=0)
    series.write([(DEVICE, health(1, empty))], NOW)
    for step in (1, 60):
        (found,) = series.query(DEVICE, "memory", NOW - 120, NOW, step)
        (point,) = found["points"]
        assert (point.count, point.mean, point.p50, point.maximum) == (0, None, None, None)


def test_old_windows_go_and_roll_ups_stay(series: Series) -> None:
    series.write([(DEVICE, health(1, window(NOW)))], NOW)
    series.prune(NOW + 2 * 86_400)
    assert series.query(DEVICE, "memory", NOW - 60, NOW + 60, 1)[0]["points"] == []
    assert len(series.query(DEVICE, "memory", NOW - 60, NOW + 60, 60)[0]["points"]) == 1
    series.prune(NOW + 8 * 86_400)
    assert series.query(DEVICE, "memory", NOW - 60, NOW + 60, 60)[0]["points"] == []
    assert len(series.query(DEVICE, "memory", NOW - 3600, NOW + 60, 3600)[0]["points"]) == 1


def test_the_file_is_bounded(tmp_path: Path) -> None:
    series = Series(tmp_path / "series.db", max_bytes=200_000)
    for sequence in range(1, 21):
        windows = [window(NOW - sequence * 3600 + second) for second in range(300)]
        series.write([(DEVICE, health(sequence, *windows))], NOW)
    series.prune(NOW)
    (found,) = series.query(DEVICE, "memory", NOW - 86_400, NOW, 10)
    assert found["points"], "the newest are kept"
    assert found["points"][0].start > NOW - 12.1 * 3600, "the raw windows of a day do not fit"
    series.close()


def test_a_wrong_clock_and_too_many_series_are_refused_and_counted(
    series: Series, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_SERIES", 2)
    wrong = [window(12.0), window(NOW + 10 * 86_400)]
    many = [window(NOW - 60, name=f"n{number}") for number in range(5)]
    series.write([(DEVICE, health(1, *wrong, *many))], NOW)
    assert series.counts == {"wrong_clock": 2, "too_many_series": 3, "stored": 2}


def impossible() -> list[Window]:
    base = {"name": "memory", "labels": {}, "start": NOW - 60, "seconds": 10.0, "count": 1, "total": 1.0}
    changes: list[dict[str, Any]] = [
        {"total": 1.7e308},
        {"count": 2**63},
        {"seconds": 1e-300},
        {"maximum": -1e300},
        {"p50": 1e300},
        {"labels": {"build": "x" * 100_000}},
        {"labels": {"y" * 100_000: ""}},
    ]
    return [Window(**base | change) for change in changes]


@pytest.mark.parametrize("one", impossible(), ids=range(7))
def test_impossible_figures_are_refused_and_counted(series: Series, one: Window) -> None:
    series.write([(DEVICE, health(1, one, window(NOW - 60)))], NOW)
    assert series.counts == {"impossible": 1, "stored": 1}


def test_series_that_are_silent_go_and_make_room_for_those_of_new_builds(
    series: Series, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_SERIES", 20)
    day, sequence = 86_400.0, 0
    for number in range(40):  # a model that is trained again each night
        now = NOW + number * day
        sequence += 1
        windows = [window(now - 60, name=name, build=f"b-{number}") for name in ("p50", "p95")]
        series.write([(DEVICE, health(sequence, *windows))], now)
        found = series.query(DEVICE, "p50", now - 120, now, 10)
        assert {entry["labels"]["build"]: len(entry["points"]) for entry in found}.get(f"b-{number}") == 1, number
    assert series.counts["too_many_series"] == 0
    last = NOW + 200 * day
    series.write([(DEVICE, health(sequence + 1, window(last - 60, name="new")))], last)
    series.prune(last)
    assert series.names(DEVICE) == ["new"], "what has no points any more is no series"


def test_roll_ups_are_bounded_too(tmp_path: Path) -> None:
    series = Series(tmp_path / "series.db", max_bytes=150_000)
    for day in range(29, -1, -1):
        windows = [window(NOW - day * 86_400 - number * 3600, name=f"n{number}") for number in range(1, 24)]
        windows += [window(NOW - day * 86_400 - minute * 60) for minute in range(1, 400)]
        series.write([(DEVICE, health(30 - day, *windows))], NOW)
    series.prune(NOW)
    (found,) = series.query(DEVICE, "memory", NOW - 30 * 86_400, NOW, 3600)
    assert found["points"], "the newest are kept"
    assert series.used() < 150_000
    series.close()


def test_points_of_one_answer_are_bounded(series: Series, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_POINTS", 10)
    series.write([(DEVICE, health(1, *(window(NOW - 500 + 10 * n) for n in range(50))))], NOW)
    (found,) = series.query(DEVICE, "memory", NOW - 500, NOW, 1)
    assert len(found["points"]) <= 11
    assert found["step"] == 50


def test_a_closed_file_says_what_is_wrong(tmp_path: Path) -> None:
    series = Series(tmp_path / "series.db")
    series.close()
    with pytest.raises(UnavailableError, match=r"series\.db"):
        series.write([(DEVICE, health(1, window(NOW)))], NOW)
