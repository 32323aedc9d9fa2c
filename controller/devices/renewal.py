"""May this device have another certificate for its key, and does it need one (wire 8.6)?

Invariant: a certificate is renewed for the key that is enrolled and for no other; a revoked device gets none. Asking
again in the first half of a certificate's life gives the same one again, so that lost answers and eager devices make no
heap of certificates. Does not issue (`authority.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

DAY: Final = 86_400.0
GRACE: Final = 90 * DAY  # seconds after its certificate's end that a device may still come back with its key
AGAIN_SHARE: Final = 0.5  # of a certificate's life: devices ask when two thirds are over


@dataclass(frozen=True, slots=True)
class Newest:
    """The newest certificate of a device; times in seconds since 1970.

    of_this_issuer: whether the authority that issues now has issued it.
    """

    pem: str
    issued: float
    expires: float
    of_this_issuer: bool


@dataclass(frozen=True, slots=True)
class Again:
    """The certificate that it has got before."""

    pem: str


@dataclass(frozen=True, slots=True)
class Issue:
    """A new one."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """None: a stable code, and a sentence that says what to do."""

    code: str
    reason: str


def decide(newest: Newest | None, revoked: bool, now: float) -> Again | Issue | Refuse:
    """Decide about a device that proved its key. ``newest``: None when no certificate of it is known any more."""
    if revoked:
        return Refuse("device_revoked", "this device was revoked: it needs a new key and a new join token")
    if newest is None or newest.expires + GRACE <= now:
        return Refuse(
            "too_late",
            f"this device's certificate ended more than {GRACE / DAY:.0f} days ago: enrol it again with a new join "
            "token (stop the agent, remove its identity directory)",
        )
    half = newest.issued + (newest.expires - newest.issued) * AGAIN_SHARE
    if newest.of_this_issuer and newest.issued <= now < half:
        return Again(newest.pem)
    return Issue()
