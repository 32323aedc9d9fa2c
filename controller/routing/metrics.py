"""The gateway's own figures, for Prometheus.

Invariant: the number of series is bounded: labels are tenants and models that exist, statuses and outcomes. Measures
nothing itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE: Final = b"text/plain; version=0.0.4; charset=utf-8"
_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_MAX_SERIES: Final = 5_000


class Metrics:
    """One set of figures, independent of any other in this process."""

    def __init__(self, bytes_held: Callable[[], float]) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "muster_gateway_requests",
            "Inference requests answered",
            ["tenant", "model", "status"],
            registry=self._registry,
        )
        self._attempts = Counter(
            "muster_gateway_attempts", "Tries with a device, by how they ended", ["outcome"], registry=self._registry
        )
        self.seconds = Histogram(
            "muster_gateway_request_seconds",
            "From the first byte of a request to its answer",
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self.tunnels = Gauge("muster_gateway_tunnels", "Devices with an open tunnel", registry=self._registry)
        self.in_flight = Gauge(
            "muster_gateway_requests_in_flight", "Requests without an answer", registry=self._registry
        )
        self.late_answers = Counter(
            "muster_gateway_late_answers", "Answers that nobody waited for any more", registry=self._registry
        )
        self.suspects = Counter("muster_gateway_suspects", "Times a device became suspect", registry=self._registry)
        Gauge("muster_gateway_body_bytes", "Bytes of bodies held", registry=self._registry).set_function(bytes_held)
        self._request_series: dict[tuple[str, str, int], Counter] = {}
        self._attempt_series: dict[str, Counter] = {}

    def request(self, tenant: str, model: str, status: int) -> None:
        """Count one request by the status it was answered with, 499 where the client had gone.

        tenant, model: empty where they were not known or do not exist."""
        key = (tenant, model, status)
        series = self._request_series.get(key)
        if series is None:
            if len(self._request_series) >= _MAX_SERIES:
                key = (tenant, "", status)
            series = self._request_series[key] = self._requests.labels(key[0], key[1], str(status))
        series.inc()

    def attempt(self, outcome: str) -> None:
        """Count one try."""
        series = self._attempt_series.get(outcome)
        if series is None:
            series = self._attempt_series[outcome] = self._attempts.labels(outcome)
        series.inc()

    def page(self, tenant: str) -> bytes:
        """Return the figures that ``tenant`` may see as text: those of the whole gateway, and its own."""
        seen = f'tenant="{tenant}"'.encode(), b'tenant=""'  # the second: refused before it was known whose they are
        lines = generate_latest(self._registry).split(b"\n")
        return b"\n".join(line for line in lines if b'tenant="' not in line or any(one in line for one in seen))
