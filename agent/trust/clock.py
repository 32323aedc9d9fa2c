"""Whether this device's clock can be right, judged by signed proof that a time has already come.

Invariant: pure. The floor is a time that certainly lies in the past: the newest of when this program was released and
of what trusted signers wrote down as "now" (`floor.py` keeps it). A clock before the floor is wrong; one that is years
beyond it is not believed until fresh metadata agrees with it. A suspect clock makes installs wait, and nothing else.

Boards without a battery begin in 1970, and metadata that expired long ago looks fresh to them: hence this.
"""

from __future__ import annotations

import datetime
from typing import Final

import msgspec

RELEASED: Final = 1_793_491_200.0  # 2026-11-01: no clock of a device that runs this program shows less
SLACK: Final = 3600.0  # seconds that two clocks may differ without anybody minding
FAR_AHEAD: Final = 2 * 366 * 86_400.0  # a device may lie on a shelf for as long before its clock is doubted


class Clock(msgspec.Struct, frozen=True, kw_only=True):
    """The judgement: ``now`` and ``floor`` in seconds since 1970 (wire 1.2); ``reason`` is "" for a clock believed."""

    suspect: bool
    reason: str
    now: float
    floor: float

    @property
    def reference(self) -> float:
        """The time to judge expiry by: whatever expired before the floor has expired for certain."""
        return max(self.now, self.floor)

    @property
    def ahead(self) -> bool:
        """Whether the clock is doubted for being too late; metadata that looks expired may be good then."""
        return self.suspect and self.now > self.floor


def judge(now: float, floor: float) -> Clock:
    """Return what to think of a clock that shows ``now`` when it is ``floor`` at least; 0 for no floor."""
    reason = ""
    if now < floor - SLACK:
        reason = (
            f"this device's clock says {date(now)}, but it is {date(floor)} or later; "
            "set it, or let the network set it (NTP)"
        )
    elif floor > 0 and now > floor + FAR_AHEAD:
        reason = (
            f"this device's clock says {date(now)}, years after anything signed that it has seen ({date(floor)}); "
            "set it, or let the network set it (NTP)"
        )
    return Clock(suspect=bool(reason), reason=reason, now=now, floor=floor)


def confirm(clock: Clock, floor: float) -> Clock:
    """Return the judgement after metadata was accepted as fresh at ``clock.now``, which proved ``floor``.

    Nothing that is signed lives for years beyond its signing: a clock that was doubted for being ahead is believed now.
    """
    judged = judge(clock.now, max(floor, clock.floor))
    if judged.ahead:
        return Clock(suspect=False, reason="", now=judged.now, floor=judged.floor)
    return judged


def raised(floor: float, issued: float, bounds: tuple[float, ...]) -> float:
    """Return the floor after signed metadata said that it was made at ``issued``.

    bounds: when the roles expire whose keys are kept away from the controller. A signer that lies about the time moves
    the floor no further than these, so that new metadata under those keys is all it takes to recover.
    """
    return max(floor, min(issued, *bounds)) if issued > 0 else floor


def date(seconds: float) -> str:
    """Return ``seconds`` as a date for people, in UTC."""
    try:
        return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (OverflowError, ValueError, OSError):
        return f"{seconds:g} s after 1970"
