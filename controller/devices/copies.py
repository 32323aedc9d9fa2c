"""Is one identity used by two machines, as after an SD card was copied? A judgement from how a device comes and goes.

Invariant: a device that restarts, changes its network or is told twice of the same connection is not suspected. What
gives a copy away is what a single machine never does: it comes back in an earlier start of the machine (wire 4.3), in
an earlier connection than its last, or in a connection that had already ended. One such return may be an old message
that a killed broker brought back; several within a while are two machines that take the line from each other. Keeps
what it has seen in memory, because copies that are both switched on show themselves again within seconds. Decides
nothing about the device: that is a person's task.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

WITHIN: Final = 3_600.0  # seconds
RETURNS: Final = 3  # within that time
_KEPT_STARTS: Final = 4
_MAX_DEVICES: Final = 100_000


@dataclass(frozen=True, slots=True)
class History:
    """What was seen of one device. ``starts``: of the machine, each with its highest connection, the present one last.

    ended: whether that connection was told to have ended; returns: times of the last returns, seconds since 1970.
    """

    starts: tuple[tuple[str, int], ...]
    ended: bool = False
    returns: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Copied:
    """Two machines seem to use one identity; ``since``: the first of the returns that count; ``reason``: in words."""

    since: float
    reason: str


def follow(history: History | None, boot: str, session: int, online: bool, now: float) -> History:
    """Return ``history`` with one more State of the device."""
    if history is None:
        return History(((boot, session),), ended=not online)
    present, highest = history.starts[-1]
    if not online:  # the last will of an older connection may come late, and tells nothing about who is there
        return replace(history, ended=True) if (boot, session) == (present, highest) else history
    known = dict(history.starts)
    came_back = boot != present and boot in known
    went_back = boot == present and session < highest
    was_over = boot == present and session == highest and history.ended
    returns = history.returns
    if came_back or went_back or was_over:
        returns = (*returns, now)[-RETURNS:]
    earlier = tuple(start for start in history.starts if start[0] != boot)
    return History((*earlier, (boot, max(session, known.get(boot, 0))))[-_KEPT_STARTS:], False, returns)


def judge(history: History, now: float) -> Copied | None:
    """Return the suspicion that stands now."""
    counted = [at for at in history.returns if now - WITHIN < at <= now]
    if len(counted) < RETURNS:
        return None
    starts = len(history.starts)
    machines = f"{starts} machines" if starts > 1 else "two agents on one machine"
    return Copied(
        min(counted), f"{machines} seem to use this identity and take its line from each other: was its disk copied?"
    )


class Copies:
    """The histories of all devices; from one thread at a time."""

    def __init__(self) -> None:
        self._histories: dict[str, History] = {}

    def note(self, device: str, boot: str, session: int, online: bool, now: float) -> None:
        """Follow one State of ``device``."""
        if device not in self._histories and len(self._histories) >= _MAX_DEVICES:
            self._histories.clear()
        self._histories[device] = follow(self._histories.get(device), boot, session, online, now)

    def all(self, now: float) -> Mapping[str, Copied]:
        """Return the suspicions that stand now, by device."""
        found = {device: judge(history, now) for device, history in self._histories.copy().items() if history.returns}
        return {device: copied for device, copied in found.items() if copied is not None}
