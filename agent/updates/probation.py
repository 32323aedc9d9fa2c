"""Has the new build proven itself? Decided over and over while it serves.

Invariant: a pure function of what serving counted since the probation began. A build passes only after the whole soak,
with real requests or a passed probe behind it, and with a report that the controller acknowledged (or a policy that
does without). Does not ask anybody: `effects.py` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from wire.assignment import Policy

MAX_ERROR_SHARE: Final = 0.05
MIN_ERRORS: Final = 3  # fewer do not convict: one unlucky request in ten is no rate


@dataclass(frozen=True, slots=True)
class Watched:
    """Since ``seconds``, when the probation began. ``errors``: of ``requests``, by the build's own fault."""

    seconds: float
    requests: int
    errors: int
    probes_passed: int
    acknowledged: bool


@dataclass(frozen=True, slots=True)
class Proven:
    """The build may be committed."""


@dataclass(frozen=True, slots=True)
class Watch:
    """Not yet. ``reason``: what is still missing."""

    reason: str


@dataclass(frozen=True, slots=True)
class Guilty:
    """The build must go."""

    code: str
    reason: str


def judge(seen: Watched, policy: Policy) -> Proven | Watch | Guilty:
    """Decide how a probation stands. Errors convict at once; nothing acquits before the whole soak."""
    if seen.errors >= MIN_ERRORS and seen.errors > MAX_ERROR_SHARE * seen.requests:
        return Guilty("error_rate", f"{seen.errors} of {seen.requests} requests failed through the build's own fault")
    if seen.seconds < policy.probation:
        return Watch(f"{policy.probation - seen.seconds:.1f} s of the soak are left")
    if seen.requests - seen.errors < 1 and seen.probes_passed < 1:
        return Watch("neither a request nor a probe has succeeded yet")
    if not seen.acknowledged and not policy.offline_ok:
        return Watch("the controller has not acknowledged a report from this probation yet")
    return Proven()
