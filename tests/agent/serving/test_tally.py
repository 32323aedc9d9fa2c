from agent.serving.metrics import Metrics, ModelFigures
from agent.serving.tally import WINDOW, Histogram, Recent, Tally


def test_recent_forgets_after_two_windows() -> None:
    recent = Recent()
    for number in range(1, 101):
        recent.add(number / 1000, 1000.0)
    found = recent.percentiles(1001.0)
    assert found.p50_ms is not None
    assert abs(found.p50_ms - 50) < 2
    assert found.p99_ms is not None
    assert abs(found.p99_ms - 99) < 3
    assert recent.percentiles(1000.0 + WINDOW).p50_ms is not None
    assert recent.percentiles(1000.0 + 2 * WINDOW + 1).p50_ms is None


def test_nothing_measured_is_none() -> None:
    assert Recent().percentiles(5.0).p95_ms is None


def test_a_long_pause_does_not_keep_old_values() -> None:
    recent = Recent()
    recent.add(9.0, 1000.0)
    recent.add(0.001, 1000.0 + 10 * WINDOW)
    found = recent.percentiles(1000.0 + 10 * WINDOW)
    assert found.p99_ms is not None
    assert found.p99_ms < 2


def test_histogram_counts_up_to_and_including_its_bounds() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 9.0):
        histogram.add(value)
    assert (histogram.counts, histogram.total) == ([2, 1, 1], 12.0)


def test_exposition_is_cumulative() -> None:
    tally = Tally()
    tally.answered(0.0007)
    tally.answered(99.0)
    tally.refused("deadline")
    text = Metrics(lambda: [ModelFigures("m", tally, 2, 5)]).render().decode()
    assert 'muster_serving_latency_seconds_bucket{le="0.001",model="m"} 1.0' in text
    assert 'muster_serving_latency_seconds_bucket{le="30.0",model="m"} 1.0' in text
    assert 'muster_serving_latency_seconds_bucket{le="+Inf",model="m"} 2.0' in text
    assert 'muster_serving_requests_total{model="m",outcome="deadline"} 1.0' in text
    assert 'muster_serving_queue_rows{model="m"} 5.0' in text
    assert "process_resident_memory_bytes" in text
