"""What happened to the requests of one model: counts, a histogram of latencies, and recent percentiles.

Invariant: memory does not grow with requests; recording costs about two microseconds. Percentiles are of the last one
to two minutes (a relative error of 1 %), None where nothing was measured. Does not publish anything (`metrics.py`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from typing import Final

import msgspec
from ddsketch import LogCollapsingLowestDenseDDSketch

LATENCY_BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
BATCH_BUCKETS: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
WINDOW: Final = 60.0


class Percentiles(msgspec.Struct, frozen=True):
    """Milliseconds, None where nothing was measured."""

    p50_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None


class Histogram:
    """Counts by upper bound, the last one without a bound, and the sum of values."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        """Count ``value``."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class Recent:
    """Percentiles of the last one to two windows."""

    def __init__(self) -> None:
        self._begun = 0.0
        self._now = _sketch()
        self._before = _sketch()

    def add(self, seconds: float, now: float) -> None:
        """Record a latency at the instant ``now`` (seconds of any steady clock)."""
        if now - self._begun >= WINDOW:
            self._turn(now)
        self._now.add(seconds)

    def percentiles(self, now: float) -> Percentiles:
        """Return the percentiles at ``now``."""
        if now - self._begun >= WINDOW:
            self._turn(now)
        both = _sketch()
        both.merge(self._before)
        both.merge(self._now)
        values = [both.get_quantile_value(share) for share in (0.5, 0.95, 0.99)]
        return Percentiles(*(None if value is None else round(1000 * value, 4) for value in values))

    def _turn(self, now: float) -> None:
        self._before = self._now if now - self._begun < 2 * WINDOW else _sketch()
        self._now = _sketch()
        self._begun = now


class Tally:
    """Everything that is counted for one model, over all of its builds."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.latency = Histogram(LATENCY_BUCKETS)
        self.batch = Histogram(BATCH_BUCKETS)

    def answered(self, seconds: float) -> None:
        """Count a request with a result after ``seconds``."""
        self.outcomes["ok"] += 1
        self.latency.add(seconds)

    def refused(self, code: str) -> None:
        """Count a request without a result, by the code of its refusal."""
        self.outcomes[code] += 1


def _sketch() -> LogCollapsingLowestDenseDDSketch:
    return LogCollapsingLowestDenseDDSketch(relative_accuracy=0.01, bin_limit=512)
