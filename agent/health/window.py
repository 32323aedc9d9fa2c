"""Time series over fixed windows: values and `now` in, wire windows out.

Invariant: every window has the same length and begins at a multiple of it, so that the windows of a fleet lie side by
side; the number of series in a window and of finished windows waiting is bounded, and what was left out is counted.
Count, total, minimum and maximum are exact; percentiles come from a sketch whose error is at most 1 % of the value.
Does not know what is measured, nor when to send.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Any, Final

from ddsketch import LogCollapsingLowestDenseDDSketch

from wire.messages import Window

ACCURACY: Final = 0.01
MAX_SERIES: Final = 256
MAX_FINISHED: Final = 512  # what one Health message may hold (wire 4.8)
LARGEST: Final = 1e18  # no sensor means more; keeps sums finite
_BINS: Final = 1024  # at 1 %, values over nine decades keep the accuracy; below them the lowest are merged

Labels = tuple[tuple[str, str], ...]


class Windows:
    """Collects samples of one window at a time. Times are seconds since 1970-01-01 UTC, ``seconds`` the length.

    dropped: samples that were not taken since the start (not finite, or one series too many), and finished windows
    that nobody took in time.
    """

    def __init__(self, seconds: float, max_series: int = MAX_SERIES, max_finished: int = MAX_FINISHED) -> None:
        if not seconds > 0:
            raise ValueError(f"a window of {seconds} seconds is not possible")
        self._seconds = seconds
        self._max_series = max_series
        self._finished: deque[Window] = deque(maxlen=max_finished)
        self._series: dict[tuple[str, Labels], _Series] = {}
        self._start: float | None = None
        self.dropped = 0

    def add(self, name: str, value: float, now: float, labels: Mapping[str, str] | None = None) -> None:
        """Count ``value`` in the window that ``now`` lies in. A clock set back ends the running window early."""
        self._turn(now)
        if not abs(value) <= LARGEST:
            self.dropped += 1
            return
        key = (name, tuple(sorted((labels or {}).items())))
        series = self._series.get(key)
        if series is None:
            if len(self._series) >= self._max_series:
                self.dropped += 1
                return
            series = self._series[key] = _Series()
        series.add(float(value))

    def take(self, now: float) -> tuple[Window, ...]:
        """Return the windows that are over at ``now``, oldest first, each once."""
        self._turn(now)
        finished = tuple(self._finished)
        self._finished.clear()
        return finished

    def _turn(self, now: float) -> None:
        start = math.floor(now / self._seconds) * self._seconds
        if start == self._start:
            return
        for (name, labels), series in self._series.items():
            self.dropped += len(self._finished) == self._finished.maxlen
            self._finished.append(series.window(name, labels, self._start or 0.0, self._seconds))
        self._series.clear()
        self._start = start


class _Series:
    """The samples of one series in one window."""

    __slots__ = ("_high", "_low", "_sketch")

    def __init__(self) -> None:
        self._sketch: Any = LogCollapsingLowestDenseDDSketch(ACCURACY, _BINS)
        self._low = math.inf
        self._high = -math.inf

    def add(self, value: float) -> None:
        self._sketch.add(value)
        self._low = min(self._low, value)
        self._high = max(self._high, value)

    def window(self, name: str, labels: Labels, start: float, seconds: float) -> Window:
        return Window(
            name=name,
            labels=dict(labels),
            start=start,
            seconds=seconds,
            count=int(self._sketch.count),
            total=float(self._sketch.sum),
            minimum=self._low,
            maximum=self._high,
            p50=self._percentile(0.5),
            p95=self._percentile(0.95),
            p99=self._percentile(0.99),
        )

    def _percentile(self, share: float) -> float:
        # The sketch may answer up to 1 % beyond what was ever seen, which would read as nonsense.
        return min(max(float(self._sketch.get_quantile_value(share)), self._low), self._high)
