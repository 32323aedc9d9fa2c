"""A real mosquitto with real certificates: who hears whom, by delivery; and what a killed broker leaves."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import socket
import time
from pathlib import Path
from typing import Any

import aiomqtt
import pytest

from controller.broker.mosquitto import OPEN_FILES, Mosquitto, find_program
from controller.devices.authority import CONTROLLER_NAME, Authority
from controller.errors import InvalidError, UnavailableError
from wire.codec import encode
from wire.messages import Ack, Heartbeat, State
from wire.topics import ACK, DESIRED, HEARTBEAT, STATE, shard_of, topic_for

WAIT = 10.0


def state(online: bool = True, session: int = 1) -> State:
    return State(online=online, boot="boot-1", session=session, agent_version="0")


async def test_a_device_speaks_and_hears_below_its_own_name_only(house: Any) -> None:
    assert house.broker is not None
    a, b = house.identity(), house.identity()
    got: list[str] = []

    async def listen(client: aiomqtt.Client) -> None:
        async for message in client.messages:
            got.append(str(message.topic))

    async with house.client(a) as client_a, house.client(b) as client_b:
        listening = asyncio.create_task(listen(client_a))
        for wide in ("#", "muster/#", topic_for(DESIRED, b.name), "$SYS/#", f"$share/g/{topic_for(DESIRED, b.name)}"):
            await client_a.subscribe(wide, qos=1)
        # A tries to speak for B, to B, and as the controller to itself
        for topic in (
            topic_for(STATE, b.name),
            topic_for(DESIRED, b.name),
            topic_for(DESIRED, a.name),
            "$CONTROL/x/v1",
        ):
            await client_a.publish(topic, encode(state()), qos=1, retain=True)
        await client_b.publish(topic_for(STATE, b.name), encode(state(session=7)), qos=1)
        await house.broker.publish(DESIRED, b.name, b"for B")
        await house.broker.publish(DESIRED, a.name, b"for A")
        await client_a.publish(topic_for(HEARTBEAT, a.name), encode(Heartbeat(at=1.0, session=1)), qos=1)
        await house.until(lambda: len(house.heard) >= 2 and bool(got))
        # B's newest assignment is what the controller sent: a retained one by A would have come instead
        await client_b.subscribe(topic_for(DESIRED, b.name), qos=1)
        first = await asyncio.wait_for(anext(aiter(client_b.messages)), WAIT)
        listening.cancel()
    assert first.payload == b"for B"
    assert set(got) == {topic_for(DESIRED, a.name)}
    assert {(device, type(message)) for device, message in house.heard} == {(b.name, State), (a.name, Heartbeat)}
    assert [message.session for _, message in house.heard if isinstance(message, State)] == [7]


async def test_a_will_on_another_devices_topic_is_not_delivered(house: Any) -> None:
    a, b = house.identity(), house.identity()
    client = house.client(a)
    client._client.will_set(topic_for(STATE, b.name), encode(state(online=False)), 1, True)
    async with client:
        client._client._sock_close()  # no farewell: the broker sends the will
    async with house.client(b) as after:
        await after.publish(topic_for(STATE, b.name), encode(state(session=9)), qos=1)
        await house.until(lambda: any(message.session == 9 for _, message in house.heard))
    assert all(message.online for _, message in house.heard)


async def test_only_certificates_of_this_fleet_for_clients_get_in(house: Any, tmp_path: Path) -> None:
    good = house.identity()
    other_fleet = Authority(tmp_path / "other", time.time())
    same_name_other_ca = house.identity(other_fleet, good.name)
    server = house.authority.server_files("other", ["127.0.0.1"], time.time())
    accepted = b"\x20\x02\x00\x00"
    a_server = type(good)("s-other", server.certificate, server.key)
    everyone = (good, None, same_name_other_ca, a_server, good)
    answers = [await asyncio.to_thread(house.answer, who) for who in everyone]
    assert answers == [accepted, b"", b"", b"", accepted]


async def test_a_device_cannot_come_under_another_client_id(house: Any) -> None:
    assert house.broker is not None
    a, b = house.identity(), house.identity()
    async with house.client(b) as client_b, house.client(a, identifier=b.name) as client_a:
        # had A taken over B's session, B would be disconnected and A would hear B's assignment
        await client_b.subscribe(topic_for(DESIRED, b.name), qos=1)
        await client_a.subscribe("#", qos=1)
        await house.broker.publish(DESIRED, b.name, b"for B")
        got = await asyncio.wait_for(anext(aiter(client_b.messages)), WAIT)
        assert got.payload == b"for B"
        assert len(client_a.messages) == 0


async def test_messages_that_do_not_fit_are_counted_and_dropped(house: Any) -> None:
    assert house.broker is not None
    a, stranger = house.identity(), house.identity()
    house.known.discard(stranger.name)
    wrong_shard = "00" if shard_of(a.name) != "00" else "01"
    async with house.client(a) as client, house.client(stranger) as other:
        await client.publish(f"muster/1/{wrong_shard}/{a.name}/up/state", encode(state()), qos=1)
        await client.publish(topic_for(STATE, a.name), b"not json", qos=1)
        await client.publish(topic_for(STATE, a.name), b'{"v":2}', qos=1)
        await client.publish(topic_for(STATE, a.name).replace("state", "nonsense"), b"{}", qos=1)
        await client.publish(topic_for(HEARTBEAT, a.name), b" " * 2_000, qos=1)
        await client.publish(topic_for(STATE, a.name).replace("state", "health"), b'{"v":1}', qos=1)
        await other.publish(topic_for(STATE, stranger.name), encode(state()), qos=1)
        await client.publish(topic_for(STATE, a.name), encode(state(session=5)), qos=1)
        await house.until(lambda: house.broker is not None and house.broker.counts.total() >= 8)
    assert dict(house.broker.counts) == {
        "wrong_shard": 1,
        "malformed": 4,
        "too_large": 1,
        "unknown_device": 1,
        "handled": 1,
    }
    assert [message.session for _, message in house.heard] == [5]


async def test_a_killed_broker_comes_back_with_the_newest_assignment(house: Any) -> None:
    assert house.broker is not None
    a = house.identity()
    for payload in (b"old", b"new"):
        await house.broker.publish(DESIRED, a.name, payload)
    stored = house.folder / "broker" / "state" / "mosquitto.db"
    await house.until(lambda: stored.exists() and b"new" in stored.read_bytes() and b"old" not in stored.read_bytes())
    port, pid = house.mosquitto.port, house.mosquitto.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await house.until(lambda: house.connects == 2 and house.mosquitto.restarts == 1)
    assert house.mosquitto.port == port
    assert house.mosquitto.pid not in (None, pid)
    async with house.client(a) as client:
        await client.subscribe(topic_for(DESIRED, a.name), qos=1)
        got = await asyncio.wait_for(anext(aiter(client.messages)), WAIT)
    assert got.payload == b"new"


async def test_publish_says_when_it_cannot(house: Any) -> None:
    assert house.broker is not None
    a = house.identity()
    with pytest.raises(InvalidError):
        await house.broker.publish(STATE, a.name, encode(state()))
    with pytest.raises(InvalidError):
        await house.broker.publish(ACK, a.name, b" " * (ACK.limit + 1))
    await house.broker.publish(ACK, a.name, Ack(stream="s" * 8, sequence=3))
    await house.mosquitto.stop()
    await house.until(lambda: house.broker is not None and not house.broker.connected)
    with pytest.raises(UnavailableError, match="away"):
        await house.broker.publish(DESIRED, a.name, b"x")


async def test_a_taken_port_and_a_missing_program_are_told(house: Any, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listener = house.listener(taken.getsockname()[1])
        other = Mosquitto(find_program(os.environ, tmp_path), tmp_path / "second", listener, [CONTROLLER_NAME])
        with pytest.raises(UnavailableError) as told:
            await other.start()
    assert told.value.code == "port_taken"
    with pytest.raises(UnavailableError) as told:
        find_program({"MUSTER_MOSQUITTO": str(tmp_path / "nothing")}, tmp_path)
    assert told.value.code == "broker_missing"


async def test_a_wrong_configuration_is_told_with_mosquittos_own_words(house: Any, tmp_path: Path) -> None:
    nothing = tmp_path / "nothing.pem"
    listener = house.listener(certificate=nothing)
    other = Mosquitto(find_program(os.environ, tmp_path), tmp_path / "second", listener, [CONTROLLER_NAME])
    with pytest.raises(UnavailableError, match=r"nothing\.pem") as told:
        await other.start()
    assert told.value.code == "broker_failed"
    await other.stop()


async def test_a_mosquitto_left_behind_is_ended_at_the_next_start(house: Any) -> None:
    first = house.mosquitto
    assert first.pid is not None
    left = first.pid
    for task in first._tasks:  # as if the controller had died: nobody supervises any more
        task.cancel()
    listener = first._listener
    second = Mosquitto(first._program, first._directory, listener, [CONTROLLER_NAME])
    await second.start()
    assert second.port == listener.port
    assert second.pid != left
    with contextlib.suppress(ProcessLookupError):
        os.kill(left, 0)
        assert Path(f"/proc/{left}/stat").read_text().split(") ")[1].startswith("Z")
    await second.stop()


async def test_the_broker_may_hold_more_lines_than_a_shell_begins_with(house: Any, tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, before[1]), before[1]))
    other = Mosquitto(find_program(os.environ, tmp_path), tmp_path / "second", house.listener(), [CONTROLLER_NAME])
    try:
        await other.start()
        limits = Path(f"/proc/{other.pid}/limits").read_text()
        soft = int(limits.split("Max open files")[1].split()[0])
        assert soft == min(OPEN_FILES, before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        await other.stop()
