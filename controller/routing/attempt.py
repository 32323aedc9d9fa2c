"""What to do next for a request: try which device for how long, or give up with which answer.

Invariant: no device is tried twice, nothing is tried at or after the deadline, and every sequence of outcomes ends.
While another device could still be asked, one try never takes more than half of the time that is left. Does not send
anything and does not rank (`choose.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple

from controller.routing.choose import Candidate

MIN_PATIENCE: Final = 0.3  # seconds: shorter, and a hiccup of the radio looks like a dead device
PATIENCE: Final = 3.0  # times the model's p99
UNKNOWN_P99: Final = 1.0 / 3  # seconds assumed until the model has been measured
MIN_TRY: Final = 0.001  # seconds: less is no time to answer in
RETRY_AFTER: Final = 1  # seconds, told to the client
MAX_LOST: Final = 2  # devices that may vanish with one request in hand: it may be what brings them down
MAX_FAILED: Final = 2  # devices that may say that they failed on one request: more would fail as well

_SATURATED: Final = frozenset({429})
_UNAVAILABLE: Final = frozenset({404, 502, 503})  # 404: the device dropped the model since it last spoke
_TIMEOUT: Final = frozenset({504})
_FAILED: Final = frozenset({500})


class Outcome(Enum):
    """How one try ended."""

    ANSWERED = "answered"  # the answer goes to the client, whatever its status
    TIMEOUT = "timeout"  # nothing in time: the device becomes suspect
    SATURATED = "saturated"  # it said 429, or its queue here is full
    UNAVAILABLE = "unavailable"  # it said that it cannot serve the model now
    FAILED = "failed"  # it said 500: it tried and could not, which may be its own fault or the request's
    LOST = "lost"  # its tunnel closed while it had the request
    AWAY = "away"  # it had no tunnel any more when its turn came: it was not asked
    BROKEN = "broken"  # its answer does not fit the contract
    ABANDONED = "abandoned"  # the client went away


class Tried(NamedTuple):
    """One try: which device it was about, and what came of it."""

    device: str
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Try:
    """Ask ``device``; wait ``timeout`` seconds while nothing of the request or its answer moves, ``limit`` in all.

    others: how many more could be asked.
    """

    device: str
    timeout: float
    limit: float
    others: int

    @property
    def reason(self) -> str:
        """Why so long, in words."""
        if not self.others:
            return "the last candidate: it has all the time that is left"
        if self.timeout == self.limit:
            return "half of the time that is left, so that one more try fits"
        return f"{self.timeout * 1000:.0f} ms, then another of {self.others} is asked"


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Answer the client with ``status``. ``code``: a stable word for programs; ``reason``: what happened, and what may
    help; ``retry_after``: seconds, None where coming back soon is of no use."""

    status: int
    code: str
    reason: str
    retry_after: int | None = None


def outcome_of(status: int) -> Outcome:
    """Return what a device's HTTP ``status`` means for routing: only a device's own trouble is worth another device."""
    if status in _SATURATED:
        return Outcome.SATURATED
    if status in _UNAVAILABLE:
        return Outcome.UNAVAILABLE
    if status in _TIMEOUT:
        return Outcome.TIMEOUT
    if status in _FAILED:
        return Outcome.FAILED
    return Outcome.ANSWERED


def patience(p99: float | None, expected: float) -> float:
    """Return how many seconds a device is given before another one is asked.

    p99: of the model, seconds, None while it is not known. expected: what the device's own figures promise, seconds.
    """
    return max(MIN_PATIENCE, PATIENCE * max(UNKNOWN_P99 if p99 is None else p99, expected))


def next_attempt(tried: Sequence[Tried], ranked: Sequence[Candidate], now: float, deadline: float) -> Try | GiveUp:
    """Return the next step for a request whose tries so far are ``tried``. ``now`` and ``deadline`` in seconds."""
    remaining = deadline - now
    if remaining < MIN_TRY:
        return _no_answer(_story(tried) or "none was asked in time")
    left = ranked
    if tried:
        outcomes = [one.outcome for one in tried]
        if outcomes.count(Outcome.LOST) >= MAX_LOST:
            return GiveUp(
                502,
                "devices_vanished",
                f"devices vanished with this request in hand ({_story(tried)}), so no more are asked: it may be what "
                "brings them down, their logs tell (`muster devices logs`)",
            )
        if outcomes.count(Outcome.FAILED) >= MAX_FAILED:
            return GiveUp(500, "devices_failed", f"devices failed on this request, no more are asked ({_story(tried)})")
        seen = {one.device for one in tried}
        left = [candidate for candidate in ranked if candidate.device not in seen]
    left = [candidate for candidate in left if not candidate.full]
    if not left:
        return _exhausted(tried, ranked)
    chosen, others = left[0], len(left) - 1
    if not others:
        return Try(chosen.device, remaining, remaining, 0)
    half = remaining / 2
    return Try(chosen.device, min(patience(chosen.p99, chosen.score), half), half, others)


def _exhausted(tried: Sequence[Tried], ranked: Sequence[Candidate]) -> GiveUp:
    outcomes = {one.outcome for one in tried}
    if not tried and not ranked:
        return GiveUp(
            503,
            "no_device_ready",
            "no device is ready for this model: start a rollout of it, or see who is online with `muster devices list`",
            RETRY_AFTER,
        )
    if Outcome.SATURATED in outcomes or not tried:
        why = f"every device that is ready for this model is busy{_suffix(tried)}"
        return GiveUp(429, "all_busy", f"{why}: send the request again, or put the model on more devices", RETRY_AFTER)
    if Outcome.TIMEOUT in outcomes:
        return _no_answer(_story(tried))
    if outcomes == {Outcome.BROKEN}:
        why = f"the devices' answers cannot be used{_suffix(tried)}"
        return GiveUp(502, "bad_answers", f"{why}: are their agents and this gateway of versions that fit?")
    why = f"no device could serve this model now{_suffix(tried)}"
    return GiveUp(503, "not_served", f"{why}: send the request again", RETRY_AFTER)


def _no_answer(story: str) -> GiveUp:
    why = f"no device answered within the deadline ({story})"
    return GiveUp(504, "no_answer", f"{why}: allow more time with Muster-Deadline-Ms, or put the model on more devices")


def _suffix(tried: Sequence[Tried]) -> str:
    story = _story(tried)
    return f" ({story})" if story else ""


def _story(tried: Sequence[Tried]) -> str:
    return ", ".join(f"{one.device} {one.outcome.value}" for one in tried)
