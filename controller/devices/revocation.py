"""When the list of revoked certificates is written anew, and when a revoked device's connection is cut.

Invariant: a list that a broker holds is always valid now and for long after: an expired one, or one from the future,
would lock out the whole fleet. Each list begins later than the one before: of two, a verifier takes the one that begins
later. Signs nothing (`authority.py`), reads no file and cuts no connection (`revoking.py`).
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final

DAY: Final = 86_400.0
BACKDATED: Final = DAY  # a clock that is put back by less does not make the list one from the future
HOLDS: Final = 365 * DAY  # how long a list is valid: a controller may be away for long, and its broker lives on
RENEW_AFTER: Final = DAY
CUTS: Final = (0.0, 2.0, 10.0, 30.0, 100.0)  # seconds after a revocation
"""The first cut ends the session. The others end one that was half open when the list was loaded: its certificate had
been looked at, and a broker waits for up to a minute and a half for what comes next."""


@dataclass(frozen=True, slots=True)
class Held:
    """The list on disk. ``begins``, ``ends``: seconds since 1970; ``serials``: in hex; ``issuers``: who signed it."""

    serials: frozenset[str]
    issuers: frozenset[str]
    begins: float
    ends: float


@dataclass(frozen=True, slots=True)
class Keep:
    """The list on disk will do, because of ``reason``."""

    reason: str


@dataclass(frozen=True, slots=True)
class Write:
    """A new list, valid from ``begins`` to ``ends``, because of ``reason``."""

    begins: float
    ends: float
    reason: str


def judge(held: Held | None, serials: AbstractSet[str], issuers: AbstractSet[str], now: float) -> Keep | Write:
    """Decide about the list on disk (None: there is none that can be read), given what has to be on it."""
    begins = now - BACKDATED
    if held is None:
        return Write(begins, now + HOLDS, "there was no list")
    if held.begins <= now:  # else the clock was put back: the list on disk is not valid at all
        begins = max(begins, held.begins + 1)  # dates in lists have no fractions
    ends = now + HOLDS
    if held.begins > now or begins > now:
        return Write(now - BACKDATED, ends, "the list on disk begins in the future: was the clock put back?")
    if held.issuers != issuers:
        return Write(begins, ends, "other authorities sign now")
    if missing := serials - held.serials:
        return Write(begins, ends, f"{len(missing)} certificates are to be refused")
    if held.serials != serials:
        return Write(begins, ends, "certificates ended, or are taken again")
    if held.ends - HOLDS + RENEW_AFTER <= now:
        return Write(begins, ends, "renewed in good time")
    return Keep("it has what it shall have")


SILENT_FIRST: Final = 60.0
SILENT_AT_MOST: Final = 3_600.0


def silence(times: int) -> float:
    """Return for how many seconds a device is kept out that has flooded the broker ``times`` times (from 1)."""
    return float(min(SILENT_FIRST * 2 ** min(times - 1, 16), SILENT_AT_MOST))


def cuts_due(seconds_since: float, done: int) -> bool:
    """Whether cut number ``done`` (from 0) is due ``seconds_since`` the revocation was first seen here."""
    return done < len(CUTS) and seconds_since >= CUTS[done]
