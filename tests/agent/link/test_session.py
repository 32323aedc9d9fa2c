from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiomqtt import Client, ProtocolVersion, TLSParameters
from cryptography.hazmat.primitives import serialization

from agent.link.backoff import Limits
from agent.link.outbox import Outbox
from agent.link.session import Endpoint, Session
from wire import codec, topics
from wire.messages import Ack, ExecutionReport, Reported

REPORT = {"at": 1.0, "execution": "e", "component": "model:m", "generation": 1, "origin": "A", "state": "B"}


async def until(condition: Callable[[], object], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "condition did not come true"
        await asyncio.sleep(0.01)


class Controller:
    """The far side: hears everything, keeps the contract of wire 4.2, acknowledges when it is told to."""

    def __init__(self, broker: Any) -> None:
        self.broker = broker
        self.heard: list[tuple[str, Any]] = []
        self.stored: list[dict[str, Any]] = []
        self.stream, self.position = "", 0
        self.acknowledges = True
        self.client: Client | None = None

    def of(self, channel: str) -> list[Any]:
        return [message for name, message in self.heard if name == channel]

    async def run(self) -> None:
        certificate, key = self.broker.authority.issue("controller")
        task = asyncio.current_task()
        while task is not None and not task.cancelling():  # Python 3.11 may lose a cancellation inside the library
            tls = TLSParameters(
                ca_certs=str(self.broker.authority.ca_file), certfile=str(certificate), keyfile=str(key)
            )
            client = Client(
                "127.0.0.1",
                self.broker.port,
                identifier="controller",
                clean_session=False,
                protocol=ProtocolVersion.V311,
                tls_params=tls,
                timeout=1,
            )
            with contextlib.suppress(Exception):
                async with client:
                    await client.subscribe(topics.subscription(topics.Direction.UP), qos=1)
                    self.client = client
                    async for message in client.messages:
                        assert isinstance(message.payload, bytes)
                        await self.hear(str(message.topic), json.loads(message.payload))
            self.client = None
            await asyncio.sleep(0.05)

    async def hear(self, topic: str, message: Any) -> None:
        address = topics.parse(topic)
        self.heard.append((address.channel.name, message))
        if "stream" not in message:
            return
        known = message["stream"] == self.stream
        if known and message["previous"] > self.position:
            return
        if not (known and message["sequence"] <= self.position):
            self.stored.append(message)
            self.stream, self.position = message["stream"], message["sequence"]
        if self.acknowledges:
            await self.acknowledge(address.device, self.stream, self.position)

    async def acknowledge(self, device: str, stream: str, sequence: int) -> None:
        await self.send(topics.ACK, device, codec.encode(Ack(stream=stream, sequence=sequence)))

    async def send(self, channel: topics.Channel, device: str, payload: bytes) -> None:
        assert self.client is not None
        await self.client.publish(topics.topic_for(channel, device), payload, qos=1, retain=channel.retained)


@contextlib.asynccontextmanager
async def running(coroutine: Any) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(coroutine)
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@pytest.fixture
async def controller(broker: Any) -> AsyncIterator[Controller]:
    far = Controller(broker)
    async with running(far.run()):
        await until(lambda: far.client)
        yield far


@pytest.fixture
def outbox(tmp_path: Path) -> Any:
    box = Outbox(tmp_path / "outbox.db")
    yield box
    box.close()


def make(broker: Any, outbox: Outbox, device: str, **more: Any) -> Session:
    certificate, key = broker.authority.issue(more.pop("subject", device))
    endpoint = Endpoint(
        device=device,
        host=more.pop("host", "127.0.0.1"),
        port=broker.port,
        ca_file=broker.authority.ca_file,
        certificate_file=certificate,
        key_file=key,
    )
    settings = {"boot": "boot-1", "agent_version": "1", "rng": random.Random(1), "limits": Limits(0.1, 0.3, 0.02)}
    return Session(endpoint, outbox, more.pop("handlers", {}), **(settings | more))


def reported(number: int) -> Reported:
    return Reported(at=1.0, epoch=1, number=number, items=[], serving="ready")


async def test_says_that_it_is_there_then_retained_values_then_the_outbox(
    broker: Any, controller: Controller, outbox: Outbox, device_id: str
) -> None:
    outbox.put(ExecutionReport, REPORT, "a")
    outbox.put(ExecutionReport, REPORT, "b")
    session = make(broker, outbox, device_id)
    session.retain(topics.REPORTED, reported(1))
    async with running(session.run()):
        await until(lambda: outbox.pending() == 0)
        assert [name for name, _ in controller.heard][:2] == ["state", "reported"]
        assert controller.of("state")[0] == {
            "v": 1, "online": True, "boot": "boot-1", "session": 1, "agent_version": "1",
        }  # fmt: skip
        assert [m["sequence"] for m in controller.stored] == [1, 2]
        assert outbox.acked("a")
        session.retain(topics.REPORTED, reported(2))
        outbox.put(ExecutionReport, REPORT, "c")
        await until(lambda: outbox.pending() == 0 and len(controller.of("reported")) == 2)
    await until(lambda: controller.of("state")[-1]["online"] is False)  # an orderly end is told, too


async def test_the_last_will_tells_of_a_device_that_vanished(
    broker: Any, controller: Controller, outbox: Outbox, device_id: str
) -> None:
    session = make(broker, outbox, device_id)
    clients: list[Client] = []
    real = session._client

    def keep(certificate: Path) -> Client:
        clients.append(real(certificate))
        return clients[-1]

    session._client = keep  # type: ignore[method-assign]
    async with running(session.run()):
        await session.connected.wait()
        line = clients[0]._client.socket()
        assert isinstance(line, socket.socket)
        line.shutdown(socket.SHUT_RDWR)  # the network goes, without a word of farewell
        await until(lambda: any(m["online"] is False and m["session"] == 1 for m in controller.of("state")))
        await until(lambda: controller.of("state")[-1]["online"] and controller.of("state")[-1]["session"] == 2)


async def test_desired_reaches_its_handler_whenever_it_was_published(
    broker: Any, controller: Controller, outbox: Outbox, device_id: str
) -> None:
    seen: list[bytes] = []

    async def take(payload: bytes) -> None:
        seen.append(payload)
        if payload == b"bad":
            raise ZeroDivisionError  # a handler that breaks must not end the link

    await controller.send(topics.DESIRED, device_id, b"first")
    session = make(broker, outbox, device_id, handlers={topics.DESIRED: take})
    async with running(session.run()):
        await until(lambda: seen == [b"first"])
        await controller.send(topics.DESIRED, device_id, b"bad")
        await controller.send(topics.DESIRED, device_id, b"x" * (topics.DESIRED.limit + 1))
        await controller.send(topics.DESIRED, device_id, b"")
        await controller.send(topics.ACK, device_id, b"garbage")
        await controller.send(topics.DESIRED, device_id, b"last")
        await until(lambda: seen[-1] == b"last")
        assert seen == [b"first", b"bad", b"last"]
        assert session.connected.is_set()


async def test_a_killed_broker_loses_nothing_and_doubles_nothing(
    broker: Any, controller: Controller, outbox: Outbox, device_id: str
) -> None:
    session = make(broker, outbox, device_id, resend_after=0.5)
    changes: list[bool] = []
    session._on_change = lambda up, reason: changes.append(up)
    session.retain(topics.REPORTED, reported(1))
    async with running(session.run()):
        for number in range(60):
            outbox.put(ExecutionReport, REPORT | {"detail": str(number)}, str(number))
            if number in (10, 35):
                await until(lambda: controller.stored)
                broker.kill()
                await until(lambda: not session.connected.is_set())
            if number in (20, 50):
                broker.start()
                await session.connected.wait()
        await until(lambda: outbox.pending() == 0)
    assert [m["detail"] for m in controller.stored] == [str(n) for n in range(60)]
    assert controller.of("state")[-1]["session"] == 3
    assert changes.count(True) == 3
    assert len(controller.of("reported")) >= 2  # told once, and again after a connect


async def test_a_killed_agent_sends_what_was_not_acknowledged(
    broker: Any, controller: Controller, outbox: Outbox, device_id: str, tmp_path: Path
) -> None:
    controller.acknowledges = False
    for number in range(100):
        outbox.put(ExecutionReport, REPORT | {"detail": str(number)}, str(number))
    async with running(make(broker, outbox, device_id, heartbeat_every=0.02).run()):
        await until(lambda: len(controller.stored) >= 64)
        beats = len(controller.of("heartbeat"))
        await until(lambda: len(controller.of("heartbeat")) > beats + 5)
        assert len(controller.stored) == 64  # no more than the window without an acknowledgement
    assert outbox.pending() == 100
    controller.acknowledges = True
    again = Outbox(tmp_path / "outbox.db")  # the first object is left as a killed process leaves it
    async with running(make(broker, again, device_id).run()):
        await until(lambda: again.pending() == 0)
    assert [m["detail"] for m in controller.stored] == [str(n) for n in range(100)]
    again.close()


async def test_a_silent_controller_hears_it_again(
    broker: Any, controller: Controller, outbox: Outbox, device_id: str
) -> None:
    controller.acknowledges = False
    outbox.put(ExecutionReport, REPORT, "a")
    async with running(make(broker, outbox, device_id, resend_after=0.1).run()):
        await until(lambda: len(controller.of("execution")) >= 3)
        await controller.acknowledge(device_id, "f" * 32, 1)  # of another stream
        await controller.acknowledge(device_id, outbox.stream, 0)
        heard = len(controller.of("execution"))
        await until(lambda: len(controller.of("execution")) > heard)
        assert outbox.pending() == 1
        for _ in range(3):
            await controller.acknowledge(device_id, outbox.stream, 1)
        await until(lambda: outbox.pending() == 0)
        outbox.put(ExecutionReport, REPORT, "b")
        await until(lambda: len(controller.stored) == 2)
    assert [m["sequence"] for m in controller.stored] == [1, 2]


async def test_what_the_controller_sent_meanwhile_waits_at_the_broker(
    broker: Any, controller: Controller, outbox: Outbox, device_id: str
) -> None:
    controller.acknowledges = False
    outbox.put(ExecutionReport, REPORT, "a")
    async with running(make(broker, outbox, device_id).run()):
        await until(lambda: controller.stored)
    await controller.acknowledge(device_id, outbox.stream, 1)
    async with running(make(broker, outbox, device_id).run()):
        await until(lambda: outbox.pending() == 0)


async def test_a_controller_restored_from_a_backup_gets_the_rest(
    broker: Any, controller: Controller, outbox: Outbox, device_id: str
) -> None:
    async with running(make(broker, outbox, device_id, resend_after=0.2).run()):
        for key in "abc":
            outbox.put(ExecutionReport, REPORT, key)
        await until(lambda: outbox.pending() == 0)
        controller.position = 1
        outbox.put(ExecutionReport, REPORT, "d")
        await until(lambda: outbox.pending() == 0)
    assert [m["sequence"] for m in controller.stored] == [1, 2, 3, 4]


async def test_an_outbox_that_went_back_goes_on_under_a_new_stream(
    broker: Any, controller: Controller, outbox: Outbox, device_id: str
) -> None:
    controller.stream, controller.position = outbox.stream, 90
    outbox.put(ExecutionReport, REPORT | {"detail": "new"}, "a")
    async with running(make(broker, outbox, device_id, resend_after=60.0).run()):
        await until(lambda: outbox.pending() == 0)
    assert [m["detail"] for m in controller.stored] == ["new"]


async def test_heartbeats(broker: Any, controller: Controller, outbox: Outbox, device_id: str) -> None:
    session = make(broker, outbox, device_id, heartbeat_every=0.02, clock=lambda: 5.0)
    async with running(session.run()):
        await until(lambda: len(controller.of("heartbeat")) >= 3)
    assert controller.of("heartbeat")[0] == {"v": 1, "at": 5.0, "session": 1}


@pytest.mark.parametrize(("more", "words"), [({"host": "localhost.invalid"}, ""), ({"subject": "nobody"}, "")])
async def test_a_broker_that_cannot_be_used_is_told_once_and_tried_for_ever(
    broker: Any, outbox: Outbox, device_id: str, more: dict[str, Any], words: str
) -> None:
    told: list[str] = []
    session = make(broker, outbox, device_id, on_change=lambda up, reason: told.append(reason), **more)
    if "subject" in more:
        broker.kill()
    async with running(session.run()) as task:
        await until(lambda: told)
        await asyncio.sleep(0.05)
        assert len(told) == 1
        assert told[0]
        assert not task.done()


async def test_files_that_are_no_certificate_are_a_reason_not_an_end(
    broker: Any, outbox: Outbox, device_id: str, tmp_path: Path
) -> None:
    told: list[str] = []
    session = make(broker, outbox, device_id, on_change=lambda up, reason: told.append(reason))
    session._endpoint.key_file.write_text("no key")
    async with running(session.run()) as task:
        await until(lambda: told)
        assert "enrol" in told[0]
        assert not task.done()


async def test_another_fleets_broker_is_not_believed(
    broker: Any, outbox: Outbox, device_id: str, tmp_path: Path
) -> None:
    told: list[str] = []
    session = make(broker, outbox, device_id, on_change=lambda up, reason: told.append(reason))
    other = tmp_path / "other"
    other.mkdir()
    session._endpoint.ca_file  # noqa: B018
    authority = type(broker.authority)(other)
    object.__setattr__(session._endpoint, "ca_file", authority.ca_file)
    async with running(session.run()):
        await until(lambda: told)
    assert "certificate" in told[0].lower()


async def test_a_full_disk_leaves_the_link_up(
    broker: Any, controller: Controller, outbox: Outbox, device_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox.put(ExecutionReport, REPORT, "a")
    real = outbox._connection
    outbox._connection = sqlite3.connect(f"file:{outbox._path}?mode=ro", uri=True, check_same_thread=False)
    async with running(make(broker, outbox, device_id, resend_after=0.1).run()):
        await until(lambda: len(controller.of("execution")) >= 2)
        assert outbox.pending() == 1
        outbox._connection.close()
        outbox._connection = real
        await until(lambda: outbox.pending() == 0)


async def test_a_value_that_is_too_large_is_not_sent_and_the_last_one_stays(
    broker: Any, controller: Controller, outbox: Outbox, device_id: str
) -> None:
    session = make(broker, outbox, device_id)
    session.retain(topics.REPORTED, reported(1))
    huge = Reported(at=1.0, epoch=1, number=2, items=[], serving="ready", extra={"x": "y" * 70_000})
    session.retain(topics.REPORTED, huge)
    async with running(session.run()):
        await until(lambda: controller.of("reported"))
        session.retain(topics.REPORTED, reported(3))
        await until(lambda: len(controller.of("reported")) == 2)
    assert [m["number"] for m in controller.of("reported")] == [1, 3]


class Choice:
    """Certificates that are tried in the order given; notes what was said of them."""

    def __init__(self, *paths: Path) -> None:
        self.paths = list(paths)
        self.said: list[tuple[str, Path]] = []

    def for_connection(self) -> Path:
        return self.paths[0]

    def worked(self, path: Path) -> None:
        self.said.append(("worked", path))

    def failed(self, path: Path) -> None:
        self.said.append(("failed", path))
        self.paths = self.paths[1:] + self.paths[:1]


async def test_a_planned_reconnect_comes_with_the_newer_certificate_and_loses_nothing(
    broker: Any, controller: Controller, outbox: Outbox, device_id: str
) -> None:
    session = make(broker, outbox, device_id, limits=Limits(30.0, 30.0, 30.0))
    key = serialization.load_pem_private_key(session._endpoint.key_file.read_bytes(), None)
    newer = session._endpoint.certificate_file.with_name(f"{device_id}-newer.crt")
    newer.write_text(broker.authority.sign(device_id, key.public_key()))  # type: ignore[union-attr]
    choice = Choice(session._endpoint.certificate_file)
    session._certificates = choice
    changes: list[bool] = []
    session._on_change = lambda up, reason: changes.append(up)
    async with running(session.run()):
        await session.connected.wait()
        for number in range(120):
            outbox.put(ExecutionReport, REPORT | {"detail": str(number)}, str(number))
            if number == 60:
                choice.paths = [newer]
                session.reconnect()
        # a pause of 30 s would be due after a lost link
        await until(lambda: ("worked", newer) in choice.said and outbox.pending() == 0)
        assert [m["detail"] for m in controller.stored] == [str(n) for n in range(120)]
        assert [m["session"] for m in controller.of("state") if m["online"]] == [1, 2]
        assert not [m for m in controller.of("state") if not m["online"]]  # no last will: nobody is told that it left
        assert changes == [True]
        session.reconnect()
        await until(lambda: controller.of("state")[-1]["session"] == 3)


async def test_a_newer_certificate_that_the_broker_refuses_does_not_keep_the_device_out(
    broker: Any, controller: Controller, outbox: Outbox, device_id: str, tmp_path: Path
) -> None:
    session = make(broker, outbox, device_id)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    key = serialization.load_pem_private_key(session._endpoint.key_file.read_bytes(), None)
    refused = foreign / "refused.crt"
    refused.write_text(type(broker.authority)(foreign).sign(device_id, key.public_key()))  # type: ignore[union-attr]
    choice = Choice(refused, session._endpoint.certificate_file)
    session._certificates = choice
    async with running(session.run()):
        await session.connected.wait()
    assert choice.said == [("failed", refused), ("worked", session._endpoint.certificate_file)]
