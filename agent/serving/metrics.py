"""The process's figures in the Prometheus text format, names ``muster_serving_*``.

Invariant: figures are read when somebody asks, so that a request pays nothing for them beyond its tally; the labels are
loaded models and known outcomes, never a client's text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

import msgspec
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from agent.serving.tally import Histogram, Tally

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class ModelFigures(msgspec.Struct, frozen=True):
    """What is published for one model; ``name`` "" holds requests that named no served model."""

    name: str
    tally: Tally
    queued: int
    queued_items: int


class Metrics(Collector):
    """``read`` gives the figures of every model at the moment of a scrape."""

    def __init__(self, read: Callable[[], Iterable[ModelFigures]]) -> None:
        self._read = read
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def render(self) -> bytes:
        """Return the text that a scraper reads."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Yield the metric families (called by the registry)."""
        requests = CounterMetricFamily(
            "muster_serving_requests", "Requests by model and outcome.", labels=["model", "outcome"]
        )
        latency = HistogramMetricFamily(
            "muster_serving_latency_seconds", "From a request's arrival to its answer.", labels=["model"]
        )
        batch = HistogramMetricFamily("muster_serving_batch_rows", "Rows that one run took.", labels=["model"])
        queued = GaugeMetricFamily("muster_serving_queue_requests", "Requests that wait.", labels=["model"])
        items = GaugeMetricFamily("muster_serving_queue_rows", "Rows that wait.", labels=["model"])
        for figures in self._read():
            for outcome, count in sorted(figures.tally.outcomes.items()):
                requests.add_metric([figures.name, outcome], count)
            latency.add_metric([figures.name], _buckets(figures.tally.latency), figures.tally.latency.total)
            batch.add_metric([figures.name], _buckets(figures.tally.batch), figures.tally.batch.total)
            queued.add_metric([figures.name], figures.queued)
            items.add_metric([figures.name], figures.queued_items)
        yield from (requests, latency, batch, queued, items)


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    buckets: list[tuple[str, float]] = []
    count = 0
    for bound, more in zip([*map(str, histogram.bounds), "+Inf"], histogram.counts, strict=True):
        count += more
        buckets.append((bound, float(count)))
    return buckets
