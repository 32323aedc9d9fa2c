"""The one table of topics (wire 3): no topic string is made or read anywhere else.

Invariant: each channel has one writer. The device's name is its certificate's common name, MQTT user name and client
id; there is no tenant in a device's topics. Whether a shard or a device is the right one, the controller checks
against its registry (wire 3.4).
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from enum import Enum
from typing import Final

from wire.codec import Message
from wire.errors import MalformedError
from wire.messages import Ack, ExecutionReport, Facts, Health, Heartbeat, Reply, Reported, State

ROOT: Final = "muster/1"
DEVICE_ID: Final = re.compile(r"^d-[a-z2-7]{26}\Z")


class Direction(Enum):
    """Who writes: the device (up) or the controller (down)."""

    UP = "up"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class Channel:
    """One row of the table. ``message`` is None where the payload is an envelope (wire 5)."""

    name: str
    direction: Direction
    message: type[Message] | None
    qos: int
    retained: bool
    limit: int  # bytes


# fmt: off
STATE     = Channel("state",     Direction.UP,   State,           1, True,    4_096)
HEARTBEAT = Channel("heartbeat", Direction.UP,   Heartbeat,       0, False,   1_024)
FACTS     = Channel("facts",     Direction.UP,   Facts,           1, True,   65_536)
REPORTED  = Channel("reported",  Direction.UP,   Reported,        1, True,   65_536)
EXECUTION = Channel("execution", Direction.UP,   ExecutionReport, 1, False,  32_768)
HEALTH    = Channel("health",    Direction.UP,   Health,          1, False, 262_144)
REPLY     = Channel("reply",     Direction.UP,   Reply,           1, False, 262_144)
DESIRED   = Channel("desired",   Direction.DOWN, None,            1, True,  262_144)
ACK       = Channel("ack",       Direction.DOWN, Ack,             1, False,   1_024)
COMMAND   = Channel("command",   Direction.DOWN, None,            1, False,   8_192)
# fmt: on

CHANNELS: Final = (STATE, HEARTBEAT, FACTS, REPORTED, EXECUTION, HEALTH, REPLY, DESIRED, ACK, COMMAND)
_BY_NAME: Final = {(channel.direction.value, channel.name): channel for channel in CHANNELS}


@dataclass(frozen=True, slots=True)
class Address:
    """A topic, taken apart."""

    shard: str
    device: str
    channel: Channel


def shard_of(device: str) -> str:
    """Return the shard of ``device``: the first byte of the SHA-256 of its id, two hex digits (wire 3.2)."""
    return hashlib.sha256(device.encode()).hexdigest()[:2]


def topic_for(channel: Channel, device: str) -> str:
    """Return the topic of ``channel`` for ``device``.

    Raises MalformedError when ``device`` is not a device id.
    """
    if not DEVICE_ID.match(device):
        raise MalformedError(f"{device!r} is not a device id (d- and 26 base32 characters)")
    return f"{ROOT}/{shard_of(device)}/{device}/{channel.direction.value}/{channel.name}"


def parse(topic: str) -> Address:
    """Return the parts of ``topic``. Raises MalformedError when no row of the table fits."""
    parts = topic.split("/")
    if len(parts) != 6 or f"{parts[0]}/{parts[1]}" != ROOT or not DEVICE_ID.match(parts[3]):
        raise MalformedError(f"{topic[:200]!r} is not a topic of this contract")
    channel = _BY_NAME.get((parts[4], parts[5]))
    if channel is None:
        raise MalformedError(f"{topic[:200]!r} names no channel of this contract")
    return Address(shard=parts[2], device=parts[3], channel=channel)


def subscription(direction: Direction) -> str:
    """Return the filter with which the controller hears every device (up), or may speak to every one (down)."""
    return f"{ROOT}/+/+/{direction.value}/#"


def device_subscription(device: str) -> str:
    """Return the filter with which ``device`` hears what the controller writes to it."""
    return topic_for(DESIRED, device).rsplit("/", 1)[0] + "/#"
