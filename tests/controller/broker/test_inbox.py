"""The inbox: order within a device, fairness between devices, bounded memory."""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from controller.broker.inbox import Inbox
from wire.topics import EXECUTION, REPORTED, STATE, Channel


class Desk:
    """Handles messages, one at a time when told to wait."""

    def __init__(self) -> None:
        self.done: list[tuple[str, bytes]] = []
        self.gate = asyncio.Event()
        self.stuck: set[str] = set()
        self.running = 0
        self.most = 0

    async def handle(self, device: str, channel: Channel, payload: bytes) -> None:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            if device in self.stuck:
                await self.gate.wait()
            else:
                await asyncio.sleep(0)
            if payload == b"bad":
                raise ValueError("bad message")
            self.done.append((device, payload))
        finally:
            self.running -= 1


async def until_idle(inbox: Inbox) -> None:
    async with asyncio.timeout(5):
        while inbox._waiting:
            await asyncio.sleep(0)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 255)), max_size=60))
def test_each_device_is_handled_in_order(messages: list[tuple[str, int]]) -> None:
    async def work() -> None:
        desk = Desk()
        inbox = Inbox(desk.handle, max_at_once=2)
        for device, number in messages:
            inbox.put(device, EXECUTION, bytes([number]))
        await until_idle(inbox)
        assert desk.most <= 2
        for name in "abc":
            sent = [bytes([number]) for device, number in messages if device == name]
            assert [payload for device, payload in desk.done if device == name] == sent

    asyncio.run(work())


async def test_a_flood_stalls_its_own_device_only() -> None:
    desk = Desk()
    desk.stuck = {"flooding"}
    inbox = Inbox(desk.handle, max_waiting=4)
    for number in range(100):
        inbox.put("flooding", EXECUTION, bytes([number]))
    inbox.put("quiet", EXECUTION, b"hello")
    async with asyncio.timeout(5):
        while ("quiet", b"hello") not in desk.done:
            await asyncio.sleep(0)
    assert inbox.counts["flooded"] >= 95
    assert len(inbox._waiting["flooding"]) <= 4
    desk.gate.set()
    await until_idle(inbox)
    assert [payload for device, payload in desk.done if device == "flooding"] == [bytes([n]) for n in range(4)]


async def test_the_newest_retained_value_survives_a_flood() -> None:
    desk = Desk()
    desk.stuck = {"d"}
    inbox = Inbox(desk.handle, max_waiting=3)
    for channel, payload in ((EXECUTION, b"1"), (STATE, b"old"), (REPORTED, b"2"), (STATE, b"new"), (EXECUTION, b"3")):
        inbox.put("d", channel, payload)
    desk.gate.set()
    await until_idle(inbox)
    assert [payload for _, payload in desk.done] == [b"1", b"2", b"new"]


async def test_a_failing_handler_is_counted_and_the_next_message_handled() -> None:
    desk = Desk()
    inbox = Inbox(desk.handle)
    inbox.put("d", EXECUTION, b"bad")
    inbox.put("d", EXECUTION, b"good")
    await until_idle(inbox)
    assert desk.done == [("d", b"good")]
    assert inbox.counts["failed"] == 1


async def test_closing_ends_the_work() -> None:
    desk = Desk()
    desk.stuck = {"d"}
    inbox = Inbox(desk.handle)
    inbox.put("d", EXECUTION, b"1")
    await asyncio.sleep(0)
    await inbox.close()
    assert desk.done == []
    assert inbox._waiting == {}
    assert desk.running == 0
