"""The fleet as a whole over time: one sample every ten seconds for each tenant, kept like a device's series.

Invariant: a sample sums up the vitals that hold at that moment and says how many devices told them; a tenant sees its
own fleet only, for the series' key is made from the tenant and cannot be a device's id. Percentiles of different
devices cannot be added up: p50_ms is weighted by requests, p95_ms is that of the worst device, and both say so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from controller.telemetry.vitals import LatestVitals, Vitals
from wire.messages import Window

STEP: Final = 10.0
NAMES: Final = ("reporting", "requests_per_s", "errors_per_s", "p50_ms", "p95_ms")


@dataclass(frozen=True, slots=True)
class Traffic:
    """A fleet at one moment. ``reporting``: devices whose vitals hold."""

    reporting: int
    requests_per_s: float | None
    errors_per_s: float | None
    p50_ms: float | None
    p95_ms: float | None


def key_of(tenant: str) -> str:
    """Return the name under which a tenant's fleet is kept among the devices."""
    return f"fleet:{tenant}"


def traffic(vitals: Sequence[Vitals]) -> Traffic:
    """Sum up devices."""
    requests = [one.requests_per_s for one in vitals if one.requests_per_s is not None]
    errors = [one.errors_per_s for one in vitals if one.errors_per_s is not None]
    medians = [(one.p50_ms, one.requests_per_s or 0.0) for one in vitals if one.p50_ms is not None]
    weight = sum(share for _, share in medians)
    return Traffic(
        reporting=len(vitals),
        requests_per_s=sum(requests) if requests else None,
        errors_per_s=sum(errors) if errors else None,
        p50_ms=sum(median * share for median, share in medians) / weight if weight else None,
        p95_ms=max((one.p95_ms for one in vitals if one.p95_ms is not None), default=None),
    )


def samples(
    tenants: Mapping[str, Sequence[str]], latest: LatestVitals, now: float, start: float
) -> list[tuple[str, list[Window]]]:
    """Return a window of each name for each tenant's fleet; ``tenants``: device ids by tenant."""
    found = []
    for tenant, devices in tenants.items():
        summed = traffic(list(latest.all(devices, now).values()))
        values = ((name, getattr(summed, name)) for name in NAMES)
        windows = [_window(name, float(value), start) for name, value in values if value is not None]
        found.append((key_of(tenant), windows))
    return found


def _window(name: str, value: float, start: float) -> Window:
    return Window(name=name, labels={}, start=start, seconds=STEP, count=1, total=value, minimum=value, maximum=value)
