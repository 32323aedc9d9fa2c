"""How long to wait before the next attempt at the tunnel.

Invariant: pure; full jitter, so that a fleet that lost its gateway does not come back in step.
"""

from __future__ import annotations

from random import Random
from typing import Final

BASE: Final = 0.5
CAP: Final = 60.0


def delay(attempt: int, rng: Random) -> float:
    """Return seconds to wait after ``attempt`` failures in a row (from 0): evenly between 0 and a doubling bound."""
    return rng.uniform(0.0, min(CAP, BASE * 2.0 ** min(attempt, 16)))
