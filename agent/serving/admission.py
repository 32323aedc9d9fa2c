"""May one more request wait for a model? Bounds in requests, rows and bytes, and the wait that must be expected.

Invariant: pure. What waits for one model never exceeds its bounds, and an engine with nothing to do admits every
request that fits them, so that a wrong estimate can never lock a model. Does not queue (`batching.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import msgspec

_FORGET: Final = 0.95  # weight of the past after one more run: about the last 20 runs count


class Bounds(msgspec.Struct, frozen=True):
    """What may wait for one model at most, the running batch not counted."""

    requests: int = 256
    items: int = 4096
    bytes: int = 64 * 1024**2


class Pace(msgspec.Struct, frozen=True):
    """How long a run takes for its number of rows: sums of a least-squares line that forgets. Times in seconds."""

    weight: float = 0.0
    n: float = 0.0
    t: float = 0.0
    nn: float = 0.0
    nt: float = 0.0

    def observe(self, items: int, seconds: float) -> Pace:
        """Return the pace after one more run of ``items`` rows."""
        return Pace(
            self.weight * _FORGET + 1.0,
            self.n * _FORGET + items,
            self.t * _FORGET + seconds,
            self.nn * _FORGET + items * items,
            self.nt * _FORGET + items * seconds,
        )

    def seconds(self, items: int) -> float:
        """Return how long one run of ``items`` rows should take; 0 before the first run was seen."""
        if self.weight == 0.0:
            return 0.0
        mean_n, mean_t = self.n / self.weight, self.t / self.weight
        spread = self.nn / self.weight - mean_n * mean_n
        if spread <= 1e-9 * max(1.0, mean_n * mean_n):
            # Only one size was ever seen: a larger run takes at most proportionally longer, a smaller one no longer.
            return mean_t * max(1.0, items / max(mean_n, 1.0))
        slope = (self.nt / self.weight - mean_n * mean_t) / spread
        slope = min(max(slope, 0.0), mean_t / max(mean_n, 1.0))
        return max(mean_t + slope * (items - mean_n), 0.0)


class QueueState(msgspec.Struct, frozen=True):
    """What stands before a new request. running_since: when the engine began its batch, None while it is idle."""

    bounds: Bounds
    pace: Pace
    max_batch: int
    requests: int
    items: int
    bytes: int
    running_items: int
    running_since: float | None
    draining: bool = False


class Asked(msgspec.Struct, frozen=True):
    """A request as admission sees it. deadline: an instant of the same clock as ``now``."""

    items: int
    bytes: int
    deadline: float


@dataclass(frozen=True, slots=True)
class Admitted:
    """The request may wait; ``wait``: how long it should take until its run begins, seconds."""

    wait: float


@dataclass(frozen=True, slots=True)
class Rejected:
    """The request must not wait. status: of HTTP; retry_after: seconds until it is worth another try, or None."""

    reason: str
    status: int
    retry_after: float | None


_AT_ONCE: Final = Admitted(0.0)


def expected_wait(state: QueueState, now: float) -> float:
    """Return how long a request that arrives now should wait until its run begins, seconds."""
    wait = 0.0
    if state.running_since is not None:
        wait = max(state.pace.seconds(state.running_items) - (now - state.running_since), 0.0)
    full, rest = divmod(state.items, max(state.max_batch, 1))
    wait += full * state.pace.seconds(max(state.max_batch, 1))
    return wait + (state.pace.seconds(rest) if rest else 0.0)


def admit(state: QueueState, request: Asked, now: float) -> Admitted | Rejected:
    """Decide whether ``request`` may join the queue described by ``state`` at ``now``."""
    bounds = state.bounds
    if state.draining:
        return Rejected("this build is being unloaded", 503, 1.0)
    if request.items > bounds.items or request.bytes > bounds.bytes:
        return Rejected(
            f"{request.items} rows of {request.bytes} bytes in one request; at most {bounds.items} rows and "
            f"{bounds.bytes} bytes are taken: send fewer rows at a time",
            413,
            None,
        )
    if state.running_since is None and state.requests == 0:
        return _AT_ONCE
    wait = expected_wait(state, now)
    if state.requests >= bounds.requests:
        return Rejected(f"{state.requests} requests wait already, at most {bounds.requests} may", 429, wait)
    if state.items + request.items > bounds.items:
        return Rejected(f"{state.items} rows wait already, at most {bounds.items} may", 429, wait)
    if state.bytes + request.bytes > bounds.bytes:
        return Rejected(f"{state.bytes} bytes of inputs wait already, at most {bounds.bytes} may", 429, wait)
    left = request.deadline - now
    if wait + state.pace.seconds(request.items) > left:
        return Rejected(
            f"the answer would take about {1000 * (wait + state.pace.seconds(request.items)):.0f} ms, the deadline "
            f"leaves {max(1000 * left, 0):.0f} ms",
            429,
            wait,
        )
    return Admitted(wait)


def retry_header(seconds: float) -> str:
    """Return ``seconds`` as a Retry-After header wants them: whole, at least 1."""
    return str(max(1, math.ceil(min(seconds, 3600.0))))
