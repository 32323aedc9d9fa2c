"""How each device does right now: the newest windows of its health, in memory.

Invariant: a device's vitals are those of its newest report; after ``STALE`` seconds without one they are not told any
more, for they are no longer true. What was not measured is None. At most ``MAX_DEVICES`` are held, each a few numbers.
Nothing is read from a disk: after a restart of the controller the next report fills them again.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from controller.telemetry.plausible import plausible
from wire.messages import Health, Window

STALE: Final = 90.0  # seconds
MAX_DEVICES: Final = 200_000


@dataclass(frozen=True, slots=True)
class Vitals:
    """One device. ``at``: when the report came, seconds since 1970. Rates are over the report's window.

    p50_ms is weighted by requests over the device's builds, p95_ms is the largest of them. cpu: cores used by agent and
    serving together. throttling: the causes that held during the window, None where the board does not tell.
    """

    at: float
    requests_per_s: float | None = None
    errors_per_s: float | None = None
    p50_ms: float | None = None
    p95_ms: float | None = None
    queued: float | None = None
    cpu: float | None = None
    load: float | None = None
    memory_available_bytes: float | None = None
    disk_free_bytes: float | None = None
    temperature_celsius: float | None = None
    throttling: tuple[str, ...] | None = None


SORTABLE: Final = frozenset(Vitals.__dataclass_fields__) - {"at", "throttling"}


class LatestVitals:
    """The vitals of all devices. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[str, Vitals] = {}

    def take(self, device: str, health: Health, now: float) -> None:
        """Take over what a report says."""
        found = vitals_of(health.windows, now)
        if found is None:
            return
        with self._lock:
            if device in self._held or len(self._held) < MAX_DEVICES:
                self._held[device] = found

    def of(self, device: str, now: float) -> Vitals | None:
        """Return a device's vitals, None when there are none that still hold."""
        found = self._held.get(device)
        return found if found is not None and now - found.at <= STALE else None

    def all(self, devices: Iterable[str], now: float) -> dict[str, Vitals]:
        """Return the vitals that still hold of those ``devices`` that have any."""
        with self._lock:
            found = ((device, self._held.get(device)) for device in devices)
            return {device: vitals for device, vitals in found if vitals is not None and now - vitals.at <= STALE}

    def forget_old(self, now: float) -> None:
        """Drop what does not hold any more."""
        with self._lock:
            for device in [device for device, vitals in self._held.items() if now - vitals.at > STALE]:
                del self._held[device]


def vitals_of(windows: Iterable[Window], now: float) -> Vitals | None:
    """Return what the newest of ``windows`` say; None when there are none that can be true."""
    newest: dict[str, list[Window]] = {}
    for window in filter(plausible, windows):
        held = newest.get(window.name)
        if held is None or window.start > held[0].start:
            newest[window.name] = [window]
        elif window.start == held[0].start:
            held.append(window)
    if not newest:
        return None
    return Vitals(
        at=now,
        requests_per_s=_rate(newest, "serving_requests"),
        errors_per_s=_rate(newest, "serving_errors"),
        p50_ms=_weighted_median(newest),
        p95_ms=_largest(newest, "serving_p95_ms"),
        queued=_sum(newest, "serving_queued"),
        cpu=_sum(newest, "process_cpu"),
        load=_sum(newest, "load"),
        memory_available_bytes=_sum(newest, "memory_available_bytes"),
        disk_free_bytes=_sum(newest, "disk_free_bytes"),
        temperature_celsius=_largest(newest, "temperature_celsius"),
        throttling=_throttling(newest),
    )


def as_json(vitals: Vitals | None) -> dict[str, Any] | None:
    """Return ``vitals`` for a reader."""
    return None if vitals is None else asdict(vitals)


def _mean(window: Window) -> float | None:
    return window.total / window.count if window.count else None


def _rate(newest: Mapping[str, list[Window]], name: str) -> float | None:
    """Counts are sent as what was added: their total over the window's length is the rate."""
    windows = newest.get(name)
    return None if windows is None else sum(window.total / window.seconds for window in windows)


def _sum(newest: Mapping[str, list[Window]], name: str) -> float | None:
    means = [mean for window in newest.get(name, ()) if (mean := _mean(window)) is not None]
    return sum(means) if means else None


def _largest(newest: Mapping[str, list[Window]], name: str) -> float | None:
    return max((window.maximum for window in newest.get(name, ()) if window.maximum is not None), default=None)


def _weighted_median(newest: Mapping[str, list[Window]]) -> float | None:
    requests = {window.labels.get("build"): window.total for window in newest.get("serving_requests", ())}
    rows = [
        (mean, requests.get(window.labels.get("build"), 0.0))
        for window in newest.get("serving_p50_ms", ())
        if (mean := _mean(window)) is not None
    ]
    weight = sum(share for _, share in rows)
    if not rows:
        return None
    return sum(mean * share for mean, share in rows) / weight if weight else max(mean for mean, _ in rows)


def _throttling(newest: Mapping[str, list[Window]]) -> tuple[str, ...] | None:
    windows = newest.get("throttling")
    if windows is None:
        return None
    return tuple(sorted(window.labels.get("cause", "?") for window in windows if window.maximum))
