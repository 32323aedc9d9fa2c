"""A device that sends without end is silenced, and others are heard again: the broker itself drops what is too much."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from typing import Any

import aiomqtt
import pytest

from controller.broker.floods import LIMIT, WINDOW, Floods
from wire.codec import encode
from wire.messages import ExecutionReport, Heartbeat
from wire.topics import EXECUTION, HEARTBEAT, STATE, topic_for

OTHERS = 4
PATIENCE = 60.0  # seconds, on a slow machine


class Flood:
    """Sends ``payload`` on ``topic`` without a pause, past every library that would wait for anything."""

    def __init__(self, house: Any, identity: Any, topic: str, payload: bytes) -> None:
        self.sent = 0
        self.stop = threading.Event()
        body = len(topic).to_bytes(2, "big") + topic.encode() + payload
        size, length = b"", len(body)
        while length:
            length, low = divmod(length, 128)
            size += bytes([low | (0x80 if length else 0)])
        self._packet = bytes([0x30]) + size + body
        self._house, self._identity = house, identity
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        name = self._identity.name.encode()
        hello = b"\x00\x04MQTT\x04\x02\x00\x3c" + len(name).to_bytes(2, "big") + name
        address = ("127.0.0.1", self._house.mosquitto.port)
        while not self.stop.is_set():
            with (
                contextlib.suppress(OSError),
                socket.create_connection(address, 10) as plain,
                self._house.context(self._identity).wrap_socket(plain, server_hostname="127.0.0.1") as line,
            ):
                line.sendall(bytes([0x10, len(hello)]) + hello)
                line.recv(4)
                while not self.stop.is_set():
                    line.sendall(self._packet * 50)
                    self.sent += 50
            time.sleep(0.01)


async def heard(house: Any, other: Any, number: int) -> None:
    """Send a report as agents do: again and again, until it was stored."""
    report = ExecutionReport(
        at=1.0, execution="e", component="model:m", generation=1, origin="A", state="B",
        stream="s" * 8, sequence=number, previous=number - 1,
    )  # fmt: skip
    while not any(d == other.name and getattr(m, "sequence", 0) == number for d, m in house.heard):
        with contextlib.suppress(aiomqtt.MqttError):
            async with house.client(other) as client:
                await client.publish(topic_for(EXECUTION, other.name), encode(report), qos=1)
        await asyncio.sleep(0.3)


@pytest.mark.parametrize(
    ("payload", "channel"), [(encode(Heartbeat(at=1.0, session=1)), HEARTBEAT), (b"{" * 6_000, STATE)]
)
async def test_a_device_that_sends_without_end_is_silenced_and_the_others_are_heard(
    house: Any, payload: bytes, channel: Any
) -> None:
    bad, others = house.identity(), [house.identity() for _ in range(OTHERS)]
    silenced = asyncio.Event()
    house.broker._on_flood = lambda device: silenced.set() if device == bad.name else pytest.fail("another was named")
    flood = Flood(house, bad, topic_for(channel, bad.name), payload)
    flood.thread.start()
    try:
        async with asyncio.timeout(PATIENCE):
            await silenced.wait()
            house.revoke(bad.name)  # as Revoking does for a while
            house.operator.reload()
            await house.operator.cut(bad.name)
            await asyncio.gather(*(heard(house, other, number) for number, other in enumerate(others, 1)))
        sent = flood.sent
        await asyncio.sleep(0.3)
        assert flood.sent <= sent + 50  # it is out
        assert house.connects == 1
        assert house.broker.counts["floods"] >= 1
    finally:
        flood.stop.set()
        await asyncio.to_thread(flood.thread.join, 15)


def test_a_device_is_named_once_a_window_and_only_for_its_own() -> None:
    floods = Floods()
    assert [floods.dropped("a", 0.0) for _ in range(LIMIT + 5)].count(True) == 1
    assert not floods.dropped("b", 0.0)
    assert [floods.dropped("a", WINDOW) for _ in range(LIMIT)].count(True) == 1
    slow = [floods.dropped("c", n * WINDOW / (LIMIT - 1)) for n in range(4 * LIMIT)]
    assert not any(slow)


def test_what_is_counted_is_bounded() -> None:
    floods = Floods()
    for number in range(30_000):
        floods.dropped(f"d-{number}", 0.0)
    assert len(floods._windows) <= 10_000
