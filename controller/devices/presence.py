"""Is a device there? A judgement from its own words and from the time since it was last heard.

Invariant: a retained "online" alone never makes a device present: it must have been heard within ``LATE_AFTER``. Does
not decide about requests: routing goes by tunnels.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

LATE_AFTER: Final = 25.0  # seconds: two heartbeats missed (wire 4.4), and a half
LOST_AFTER: Final = 90.0


class PresenceState(StrEnum):
    """Heard lately · connected as far as we know, but silent · not connected."""

    ONLINE = "online"
    LATE = "late"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Presence:
    """The judgement and why."""

    state: PresenceState
    reason: str


def presence(last_seen: float | None, online: bool, now: float) -> Presence:
    """Judge a device that was last heard at ``last_seen`` (seconds since 1970) and says of itself ``online``."""
    if last_seen is None:
        return Presence(PresenceState.LOST, "never heard since it was enrolled")
    silent = max(0.0, now - last_seen)
    if not online:
        return Presence(PresenceState.LOST, f"its connection ended; last heard {silent:.0f} s ago")
    if silent > LOST_AFTER:
        return Presence(PresenceState.LOST, f"silent for {silent:.0f} s")
    if silent > LATE_AFTER:
        return Presence(PresenceState.LATE, f"silent for {silent:.0f} s, a heartbeat is due every 10 s")
    return Presence(PresenceState.ONLINE, f"heard {silent:.0f} s ago")


def supersedes(boot: str, session: int, held_boot: str | None, held_session: int | None) -> bool:
    """Whether the state of connection ``session`` may replace the one held (wire 4.3).

    The last will of an older connection may arrive after the state of the one that took over.
    """
    return boot != held_boot or held_session is None or session >= held_session
