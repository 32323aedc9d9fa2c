"""The messages between a device and the controller (wire 4), one frozen struct each.

Invariant: plain data. Times are seconds since 1970-01-01 UTC as floats; durations are seconds unless the name says
otherwise; sizes are bytes; a value that was not measured is null, never a guess. Which topic carries which message
stands in `topics.py`.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from wire.codec import Message

Text = Annotated[str, Meta(max_length=4096)]
REPLY_TEXT = 64 * 1024
Name = Annotated[str, Meta(min_length=1, max_length=128)]
LARGEST = 2**63 - 1  # of a whole number: what databases hold
Count = Annotated[int, Meta(ge=0, le=LARGEST)]
Positive = Annotated[int, Meta(ge=1, le=LARGEST)]


class Sequenced(Message, frozen=True, kw_only=True):
    """A message that must arrive once (wire 4.2): kept by the device until the controller acknowledges it.

    stream: random id of the device's outbox; a new one begins at sequence 1.
    sequence: grows by at least 1; previous: the sequence before it that still exists, 0 for none.
    """

    stream: Annotated[str, Meta(min_length=8, max_length=64)]
    sequence: Positive
    previous: Count


class State(Message, frozen=True, kw_only=True):
    """Is the device there? Retained; the last will says offline (wire 4.3)."""

    online: bool
    boot: Name
    session: Count
    agent_version: Name


class Heartbeat(Message, frozen=True, kw_only=True):
    """A sign of life between other messages (wire 4.4)."""

    at: float
    session: Count


class Facts(Message, frozen=True, kw_only=True):
    """What the hardware is, and why the agent thinks so (wire 4.5)."""

    at: float
    profile: Name
    title: Text
    confidence: Annotated[float, Meta(ge=0, le=1)]
    evidence: Annotated[list[Text], Meta(max_length=64)]
    facts: dict[str, Any]
    runtimes: Annotated[list[dict[str, Any]], Meta(max_length=32)]
    agent_version: Name


class ReportedItem(msgspec.Struct, frozen=True, kw_only=True):
    """One component as it stands on the device."""

    component: Name
    generation: Count
    build: str | None
    state: Name
    since: float


class Reported(Message, frozen=True, kw_only=True):
    """What really runs, and which assignment the device works on. Retained (wire 4.6).

    notices: what a person should know of and no execution says, such as a clock that cannot be right.
    """

    at: float
    epoch: Count
    number: Count
    items: Annotated[list[ReportedItem], Meta(max_length=256)]
    serving: Name  # "ready", "starting" or "down"
    notices: Annotated[list[Text], Meta(max_length=16)] = []


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """Why something failed, in words a person can act on."""

    phase: Name
    code: Name
    message: Text
    log_tail: Annotated[str, Meta(max_length=8192)] = ""


class ExecutionReport(Sequenced, frozen=True, kw_only=True):
    """One transition of one execution (wire 4.7)."""

    at: float
    execution: Name
    component: Name
    generation: Positive
    origin: Name
    state: Name
    detail: Text = ""
    fault: Fault | None = None
    figures: dict[str, float] = {}


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """A time series over one window: how many samples, and where they lay."""

    name: Name
    labels: Annotated[dict[str, str], Meta(max_length=8)]
    start: float
    seconds: Annotated[float, Meta(gt=0)]
    count: Count
    total: float
    minimum: float | None = None
    maximum: float | None = None
    p50: float | None = None
    p95: float | None = None
    p99: float | None = None


class Health(Sequenced, frozen=True, kw_only=True):
    """Windows since the last report (wire 4.8)."""

    windows: Annotated[list[Window], Meta(max_length=512)]


class Command(Message, frozen=True, kw_only=True):
    """Down, in an envelope: one thing to do now, once (wire 4.9)."""

    id: Annotated[str, Meta(pattern=r"^c-[0-9a-f]{24}\Z")]
    device: Name
    kind: Name
    issued: float
    expires: float


class Reply(Sequenced, frozen=True, kw_only=True):
    """What became of a command (wire 4.9). outcome: done, failed, refused, expired or interrupted."""

    at: float
    command: Name
    outcome: Name
    detail: Text = ""
    text: Annotated[str, Meta(max_length=REPLY_TEXT)] = ""


class Ack(Message, frozen=True, kw_only=True):
    """Down: everything of ``stream`` up to ``sequence`` is stored by the controller (wire 4.2)."""

    stream: Annotated[str, Meta(min_length=8, max_length=64)]
    sequence: Count
