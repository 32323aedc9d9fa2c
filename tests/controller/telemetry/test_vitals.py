"""How devices do right now, and the fleet over time."""

from __future__ import annotations

from pathlib import Path

import pytest

from controller.telemetry import vitals
from controller.telemetry.fleet_series import key_of, samples, traffic
from controller.telemetry.series import Series
from controller.telemetry.vitals import LatestVitals, Vitals, vitals_of
from wire.messages import Health, Window

NOW = 1_700_000_000.0


def window(name: str, total: float, start: float = NOW - 10, count: int = 5, **labels: str) -> Window:
    mean = total / count if count else 0.0
    return Window(
        name=name,
        labels=labels,
        start=start,
        seconds=10.0,
        count=count,
        total=total,
        minimum=mean,
        maximum=mean,
    )


def health(*windows: Window) -> Health:
    return Health(stream="stream-1", sequence=1, previous=0, windows=list(windows))


def test_rates_are_sums_over_the_window_and_percentiles_are_weighted_by_requests() -> None:
    found = vitals_of(
        [
            window("serving_requests", 900, build="a"),
            window("serving_requests", 100, build="b"),
            window("serving_errors", 10, build="a"),
            window("serving_p50_ms", 5 * 2.0, build="a"),
            window("serving_p50_ms", 5 * 12.0, build="b"),
            window("serving_p95_ms", 5 * 4.0, build="a"),
            window("serving_p95_ms", 5 * 40.0, build="b"),
            window("process_cpu", 5 * 0.25, process="agent"),
            window("process_cpu", 5 * 0.5, process="serving"),
            window("throttling", 5, cause="under_voltage"),
            window("throttling", 0, cause="throttled"),
        ],
        NOW,
    )
    assert found is not None
    assert found.requests_per_s == 100.0
    assert found.errors_per_s == 1.0
    assert found.p50_ms == pytest.approx(0.9 * 2 + 0.1 * 12)
    assert found.p95_ms == 40.0
    assert found.cpu == 0.75
    assert found.throttling == ("under_voltage",)


def test_only_the_newest_window_counts_and_what_was_not_measured_is_none() -> None:
    found = vitals_of([window("load", 50, start=NOW - 30), window("load", 5, start=NOW - 20)], NOW)
    assert found == Vitals(at=NOW, load=1.0)
    assert vitals_of([], NOW) is None
    assert vitals_of([window("load", 0, count=0)], NOW) == Vitals(at=NOW)


def test_vitals_go_when_they_do_not_hold_any_more() -> None:
    latest = LatestVitals()
    latest.take("d-1", health(window("load", 5)), NOW)
    assert latest.of("d-1", NOW + vitals.STALE) is not None
    assert latest.of("d-1", NOW + vitals.STALE + 1) is None
    assert latest.all(["d-1", "d-2"], NOW + 1).keys() == {"d-1"}
    latest.forget_old(NOW + vitals.STALE + 1)
    assert latest.of("d-1", NOW) is None


def test_vitals_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vitals, "MAX_DEVICES", 2)
    latest = LatestVitals()
    for device in ("d-1", "d-2", "d-3"):
        latest.take(device, health(window("load", 5)), NOW)
    assert latest.all(["d-1", "d-2", "d-3"], NOW).keys() == {"d-1", "d-2"}
    latest.take("d-1", health(window("load", 10)), NOW)
    held = latest.of("d-1", NOW)
    assert held is not None
    assert held.load == 2.0


def test_a_fleet_is_summed_up_without_devices_that_did_not_measure() -> None:
    found = traffic([Vitals(NOW, 100.0, 1.0, 2.0, 9.0), Vitals(NOW, 300.0, 0.0, 4.0, 5.0), Vitals(NOW)])
    assert (found.reporting, found.requests_per_s, found.errors_per_s, found.p95_ms) == (3, 400.0, 1.0, 9.0)
    assert found.p50_ms == pytest.approx(3.5)
    assert traffic([]).requests_per_s is None
    assert traffic([Vitals(NOW, 0.0, 0.0, 3.0, 4.0)]).p50_ms is None  # of no request there is no median


def test_samples_of_tenants_are_kept_apart_and_come_back(tmp_path: Path) -> None:
    latest = LatestVitals()
    latest.take("d-1", health(window("serving_requests", 100)), NOW)
    latest.take("d-2", health(window("serving_requests", 500)), NOW)
    series = Series(tmp_path / "series.db")
    for key, windows in samples({"a": ["d-1"], "b": ["d-2"], "c": []}, latest, NOW, NOW):
        series.add(key, windows, NOW)

    def kept(tenant: str, name: str) -> list[float | None]:
        found = series.query(key_of(tenant), name, NOW - 60, NOW + 60, 10)
        return [point.mean for entry in found for point in entry["points"]]

    assert kept("a", "requests_per_s") == [10.0]
    assert kept("b", "requests_per_s") == [50.0]
    assert kept("c", "requests_per_s") == []
    assert kept("c", "reporting") == [0.0]
    series.close()


@pytest.mark.parametrize("change", [{"total": 1.7e308}, {"total": 1e300, "seconds": 1e-300}, {"total": 1e30}])
def test_one_device_with_impossible_figures_spoils_no_sum(change: dict[str, float]) -> None:
    fields = {"name": "serving_requests", "labels": {}, "start": NOW, "seconds": 10.0, "count": 1, "total": 5.0}
    good, bad = Window(**fields), Window(**fields | change)
    latest = LatestVitals()
    latest.take("d-a", health(bad, good), NOW)
    latest.take("d-b", health(bad), NOW)
    latest.take("d-c", health(good), NOW)
    summed = traffic(list(latest.all(["d-a", "d-b", "d-c"], NOW).values()))
    assert (summed.reporting, summed.requests_per_s) == (2, 1.0)


def test_what_a_device_says_of_its_causes_is_bounded() -> None:
    long = window("throttling", 5, cause="x" * 100_000)
    assert vitals_of([long], NOW) is None
