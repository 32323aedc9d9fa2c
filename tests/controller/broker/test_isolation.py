"""No device reads or writes another's topics, proven by what arrives: mosquitto grants every subscription."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import ssl
import time
from typing import Any

import aiomqtt
import pytest
from aiomqtt import ProtocolVersion, Will
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from controller.broker.configuration import MAX_PACKET
from controller.devices.authority import CONTROLLER_NAME, DEVICES, OPERATING
from wire.codec import encode
from wire.messages import Heartbeat
from wire.topics import ACK, CHANNELS, COMMAND, DESIRED, HEARTBEAT, STATE, Direction, topic_for

WAIT = 10.0
DEVICES_TRIED = 4


class Ears:
    """A device that notes whatever reaches it."""

    def __init__(self, client: aiomqtt.Client) -> None:
        self.client = client
        self.got: list[tuple[str, bytes]] = []

    async def run(self) -> None:
        async for message in self.client.messages:
            assert isinstance(message.payload, bytes)
            self.got.append((str(message.topic), message.payload))


@contextlib.asynccontextmanager
async def listening(client: aiomqtt.Client) -> Any:
    async with client:
        ears = Ears(client)
        task = asyncio.create_task(ears.run())
        try:
            yield ears
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def filters_of(names: list[str]) -> list[str]:
    """Everything by which a device might try to listen in."""
    wide = ["#", "+/#", "muster/#", "muster/1/+/+/down/#", "muster/1/+/+/up/#", "$SYS/#", "$CONTROL/#", "$share/g/#"]
    exact = [topic_for(channel, name) for name in names for channel in CHANNELS]
    return [*wide, *exact, *(f"$share/g/{topic}" for topic in exact), "$share/g/muster/1/+/+/up/#"]


@pytest.mark.parametrize("protocol", [ProtocolVersion.V311, ProtocolVersion.V5])
async def test_everybody_tries_everything_and_nothing_arrives(house: Any, protocol: ProtocolVersion) -> None:
    who = [house.identity() for _ in range(DEVICES_TRIED)]
    names = [identity.name for identity in who]
    for name in names:  # retained before anybody listens: a subscription would bring it
        await house.broker.publish(DESIRED, name, f"before {name}".encode())
    clean: dict[str, Any] = {"clean_start": False} if protocol is ProtocolVersion.V5 else {"clean_session": False}
    async with contextlib.AsyncExitStack() as stack:
        everybody = []
        for identity in who:
            client = house.client(identity, protocol=protocol, **({"clean_session": None} | clean))
            everybody.append(await stack.enter_async_context(listening(client)))
        for name, ears in zip(names, everybody, strict=True):
            for one in filters_of([other for other in names if other != name]):
                await ears.client.subscribe(one, qos=1)
        for (name, ears), channel in itertools.product(zip(names, everybody, strict=True), CHANNELS):
            mine_to_write = channel.direction is Direction.UP
            for other in names:
                if other == name and mine_to_write:
                    continue
                for qos, retain in itertools.product((0, 1), (False, True)):
                    # the answer says "not authorised" in MQTT 5, and nothing in 3.1.1
                    with contextlib.suppress(aiomqtt.MqttError):
                        await ears.client.publish(topic_for(channel, other), b"forged", qos=qos, retain=retain)
        for topic in (
            "$CONTROL/dynamic-security/v1",
            "$SYS/broker/uptime",
            "muster/1",
            "elsewhere",
            "muster/1/00/x/up/y",
        ):
            with contextlib.suppress(aiomqtt.MqttError):
                await everybody[0].client.publish(topic, b"forged", qos=1, retain=True)
        for name, ears in zip(names, everybody, strict=True):  # after all that, the honest ways are open
            await ears.client.subscribe(topic_for(DESIRED, name).rsplit("/", 1)[0] + "/#", qos=1)
            await house.broker.publish(COMMAND, name, f"after {name}".encode())
            await ears.client.publish(topic_for(HEARTBEAT, name), encode(Heartbeat(at=1.0, session=1)), qos=1)
        await house.until(lambda: len(house.heard) >= DEVICES_TRIED)
        last = {name: (topic_for(COMMAND, name), f"after {name}".encode()) for name in names}
        await house.until(lambda: all(last[n] in e.got for n, e in zip(names, everybody, strict=True)))
        for name, ears in zip(names, everybody, strict=True):
            assert set(ears.got) == {(topic_for(DESIRED, name), f"before {name}".encode()), last[name]}
    assert sorted(topic for topic, _ in house.taps) == sorted(topic_for(HEARTBEAT, name) for name in names)
    # nothing forged was kept for those who come later, either: not for devices, not for the controller
    late = house.identity()
    async with listening(house.client(late)) as ears:
        for one in filters_of(names):
            await ears.client.subscribe(one, qos=1)
        await ears.client.subscribe(topic_for(DESIRED, late.name), qos=1)
        await house.broker.publish(DESIRED, late.name, b"for the late one")
        await house.until(lambda: bool(ears.got))
        assert ears.got == [(topic_for(DESIRED, late.name), b"for the late one")]


async def test_no_last_will_reaches_another(house: Any) -> None:
    a, b = house.identity(), house.identity()
    targets = [topic_for(channel, b.name) for channel in CHANNELS]
    targets += [topic_for(channel, a.name) for channel in (DESIRED, ACK, COMMAND)]
    async with listening(house.client(b)) as ears:
        await ears.client.subscribe(topic_for(DESIRED, b.name).rsplit("/", 1)[0] + "/#", qos=1)
        for topic, retain in itertools.product(targets, (False, True)):
            client = house.client(a, will=Will(topic, b"forged", qos=1, retain=retain))
            with contextlib.suppress(aiomqtt.MqttError):
                async with client:
                    client._client._sock_close()  # no farewell: the broker sends the will
        will = encode(Heartbeat(at=2.0, session=1))
        client = house.client(a, will=Will(topic_for(HEARTBEAT, a.name), will, qos=1))
        with contextlib.suppress(aiomqtt.MqttError):
            async with client:
                client._client._sock_close()
        await house.until(lambda: bool(house.heard))  # its own will is sent: so the others were considered
        await house.broker.publish(COMMAND, b.name, b"for B")
        await house.until(lambda: bool(ears.got))
        assert ears.got == [(topic_for(COMMAND, b.name), b"for B")]
    assert house.taps == [(topic_for(HEARTBEAT, a.name), will)]


@pytest.mark.parametrize("protocol", [ProtocolVersion.V311, ProtocolVersion.V5])
async def test_nobody_takes_over_the_session_of_another(house: Any, protocol: ProtocolVersion) -> None:
    a, b = house.identity(), house.identity()
    for victim in (b.name, CONTROLLER_NAME):
        async with listening(house.client(b)) as ears:
            await ears.client.subscribe(topic_for(DESIRED, b.name), qos=1)
            connects = house.connects
            fresh: dict[str, Any] = {"clean_start": True} if protocol is ProtocolVersion.V5 else {"clean_session": True}
            settings = {"clean_session": None, "protocol": protocol} | fresh
            async with house.client(a, identifier=victim, **settings) as thief:
                await thief.subscribe("#", qos=1)
                payload = f"for B, not for {victim}".encode()
                await house.broker.publish(DESIRED, b.name, payload)
                await house.until(lambda payload=payload, ears=ears: (topic_for(DESIRED, b.name), payload) in ears.got)
                await ears.client.publish(topic_for(STATE, b.name), b"{}", qos=1)  # B's line still stands
                assert len(thief.messages) == 0
            assert house.connects == connects  # and so does the controller's


@pytest.mark.parametrize("shape", ["+", "#", "{a}/down", "x/{a}", "{a}/#", "{a} ", "%u", "+/+", "c-contro", "$SYS"])
async def test_a_name_that_the_authority_would_never_give_reaches_nobody(house: Any, shape: str) -> None:
    a = house.identity()
    name = shape.format(a=a.name)
    key = ec.generate_private_key(ec.SECP256R1())
    odd = house.authority._issue(
        DEVICES, name, key.public_key(), [x509.DNSName("x")], ExtendedKeyUsageOID.CLIENT_AUTH, 30, time.time()
    )
    identity = house.written(name, odd.pem + house.authority.chain_pem(DEVICES), key)
    await house.broker.publish(DESIRED, a.name, b"for A, retained")
    with contextlib.suppress(aiomqtt.MqttError):  # some are not even let in
        async with listening(house.client(identity)) as ears:
            for one in filters_of([a.name]):
                with contextlib.suppress(aiomqtt.MqttError):
                    await ears.client.subscribe(one, qos=1)
            for channel in CHANNELS:
                await ears.client.publish(topic_for(channel, a.name), b"forged", qos=1, retain=True)
            assert ears.got == []
    async with listening(house.client(a)) as ears:
        await ears.client.subscribe(topic_for(DESIRED, a.name).rsplit("/", 1)[0] + "/#", qos=1)
        await ears.client.publish(topic_for(HEARTBEAT, a.name), encode(Heartbeat(at=1.0, session=1)), qos=1)
        await house.until(lambda: bool(ears.got) and bool(house.heard))
        assert ears.got == [(topic_for(DESIRED, a.name), b"for A, retained")]
    assert [topic for topic, _ in house.taps] == [topic_for(HEARTBEAT, a.name)]


async def test_the_operators_door_is_for_the_operators_root_only(house: Any) -> None:
    device, port = house.identity(), house.mosquitto._listener.operator_port
    own = house.authority.controller_files(time.time())
    operator = house.authority.operator_files(time.time())
    controller = type(device)(CONTROLLER_NAME, own.certificate, own.key)
    boss = type(device)("anybody", operator.certificate, operator.key)
    accepted = b"\x20\x02\x00\x00"
    answers = [await asyncio.to_thread(house.answer, who, None, port) for who in (device, controller, None, boss)]
    assert answers == [b"", b"", b"", accepted]
    assert await asyncio.to_thread(house.answer, boss) == b""  # and it opens no other door
    # who comes through it hears and says nothing
    await house.broker.publish(DESIRED, device.name, b"retained")
    async with listening(house.client(boss, port=port)) as ears:
        await ears.client.subscribe("#", qos=1)
        for channel in CHANNELS:
            await ears.client.publish(topic_for(channel, device.name), b"forged", qos=1, retain=True)
        assert ears.got == []
    assert house.taps == []
    assert house.authority.chain_pem(OPERATING) not in house.authority.client_roots.read_text()


async def test_old_tls_is_refused(house: Any) -> None:
    device = house.identity()

    def versions(low: ssl.TLSVersion, high: ssl.TLSVersion) -> str | None:
        context = house.context(device)
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version, context.maximum_version = low, high
        try:
            with (
                socket.create_connection(("127.0.0.1", house.mosquitto.port), WAIT) as plain,
                context.wrap_socket(plain, server_hostname="127.0.0.1") as secure,
            ):
                return secure.version()
        except (ssl.SSLError, ConnectionError):
            return None

    one, two, three = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
    assert await asyncio.to_thread(versions, two, two) == "TLSv1.2"
    assert await asyncio.to_thread(versions, two, three) == "TLSv1.3"
    assert await asyncio.to_thread(versions, one, ssl.TLSVersion.TLSv1_1) is None


async def test_a_packet_that_is_too_large_ends_its_senders_line_only(house: Any) -> None:
    a, b = house.identity(), house.identity()
    async with house.client(b) as quiet:
        with contextlib.suppress(aiomqtt.MqttError):
            async with house.client(a) as loud:
                await loud.publish(topic_for(STATE, a.name), b" " * (MAX_PACKET + 1), qos=1)
                pytest.fail("the broker took it")
        await quiet.publish(topic_for(HEARTBEAT, b.name), encode(Heartbeat(at=1.0, session=1)), qos=1)
        await house.until(lambda: bool(house.heard))
    assert [topic for topic, _ in house.taps] == [topic_for(HEARTBEAT, b.name)]
