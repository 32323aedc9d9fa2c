"""How long to wait before the next attempt at the tunnel.

Invariant: pure; full jitter, so that a fleet that lost its gateway does not come back in step.
"""

from __future__ import annotations

from typing import Final, Protocol

BASE: Final = 0.5
CAP: Final = 60.0


class Rng(Protocol):
    """The part of ``random.Random`` that is used here."""

    def random(self) -> float:
        """Return a number from 0 up to 1, without 1."""


def delay(attempt: int, rng: Rng) -> float:
    """Return seconds to wait after ``attempt`` failures in a row (from 0): evenly between 0 and a doubling bound."""
    return rng.random() * min(CAP, BASE * 2.0 ** min(attempt, 16))
