"""How far a device's outbox is stored here, and what to do with its next message (wire 4.2).

Invariant: a message is taken at most once, and never before one that the device sent earlier and still has. Does not
store anything.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Held:
    """What is stored of a device's outbox: the stream (None before the first message) and its highest sequence."""

    stream: str | None
    sequence: int


@dataclass(frozen=True, slots=True)
class Fresh:
    """To be stored, then acknowledged up to ``acknowledge``."""

    acknowledge: int


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Stored before: to be acknowledged again, up to ``acknowledge``."""

    acknowledge: int


@dataclass(frozen=True, slots=True)
class Gap:
    """Messages above ``stored`` are missing before this one: neither stored nor acknowledged."""

    stored: int


def judge(held: Held, stream: str, sequence: int, previous: int) -> Fresh | Duplicate | Gap:
    """Decide about the message ``sequence`` of ``stream``, before which ``previous`` was sent."""
    if held.stream != stream:
        return Fresh(sequence)
    if sequence <= held.sequence:
        return Duplicate(held.sequence)
    if previous > held.sequence:
        return Gap(held.sequence)
    return Fresh(sequence)
