"""How long to wait before the next attempt: exponential, with full jitter.

Invariant: the wait lies between ``least`` and ``most`` seconds, and a fleet that lost its broker at the same instant
does not come back at the same instant. Does not sleep and draws nothing of its own: ``rng`` is an argument.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol


class Rng(Protocol):
    """The part of ``random.Random`` that is used here."""

    def random(self) -> float:
        """Return a number from 0 up to 1, without 1."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds. first: the ceiling of the first wait; most: of any wait; least: no wait is shorter."""

    first: float = 0.5
    most: float = 30.0
    least: float = 0.05


DEFAULT: Final = Limits()
_DOUBLINGS: Final = 32  # enough to reach any ceiling, few enough to stay a float


def delay(attempt: int, rng: Rng, limits: Limits = DEFAULT) -> float:
    """Return the seconds to wait after failure number ``attempt`` (from 0) in a row."""
    ceiling = min(limits.most, limits.first * 2.0 ** min(max(attempt, 0), _DOUBLINGS))
    return limits.least + rng.random() * max(ceiling - limits.least, 0.0)
