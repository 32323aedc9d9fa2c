"""When a certificate is due to be renewed (wire 8.6), and when to ask again after a failure.

Invariant: pure. The devices of a fleet that joined at the same instant do not ask at the same instant; a certificate
that has ended, or that has not begun by this device's clock, is asked about as well: the controller decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from agent.link.backoff import Limits

SHARE: Final = 2 / 3  # of a certificate's life, after which it is due
SPREAD: Final = 0.1  # of its life, over which the devices of a fleet are spread
DAY: Final = 86_400.0
LOOK_AT_MOST: Final = 3_600.0  # seconds: a clock may be set meanwhile
AFTER_FAILURE: Final = Limits(first=60.0, most=3_600.0, least=5.0)


@dataclass(frozen=True, slots=True)
class Life:
    """A certificate's dates, in seconds since 1970."""

    begins: float
    ends: float


def wait(life: Life, now: float, place: float) -> float:
    """Return the seconds until it is time to renew, 0 when it is. ``place`` in the fleet: from 0 to 1, drawn once."""
    due = life.begins + (life.ends - life.begins) * (SHARE + SPREAD * place)
    if now < life.begins:
        return LOOK_AT_MOST  # this clock is behind, or the controller's ahead: asking now would tell nothing
    return min(max(0.0, due - now), LOOK_AT_MOST)


def wait_for_roots(since_asked: float, place: float) -> float:
    """Return the seconds until it is time to ask whether the fleet's CA is being replaced: about once a day."""
    return min(max(0.0, DAY * (1 + SPREAD * (place - 0.5)) - since_asked), LOOK_AT_MOST)
