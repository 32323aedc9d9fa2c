"""Commands on the controller's side: stored, signed, sent until answered, kept within bounds."""

from __future__ import annotations

import time
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from fastapi.testclient import TestClient
from sqlalchemy import event

from controller.audit.store import page as audit_page
from controller.devices import command_routes, command_store, store
from controller.devices.commands import AGAIN_SECONDS, LIFETIME, CommandSender
from controller.errors import UnavailableError
from controller.tenants import tokens
from controller.tenants.store import add_tenant
from wire import envelope
from wire.codec import decode
from wire.messages import Command, Reply, State
from wire.topics import COMMAND, Channel

KEY = ed25519.Ed25519PrivateKey.generate()


class Sending:
    """A sender whose broker is a list, and whose clock is set by hand."""

    def __init__(self, api: Any) -> None:
        self.now = time.time()
        self.sent: list[tuple[str, Command]] = []
        self.away = False
        self.sender = CommandSender(api.db, KEY, self.publish, lambda: self.now)
        api.app.state.commands = self.sender

    async def publish(self, channel: Channel, device: str, data: bytes) -> None:
        if self.away:
            raise UnavailableError("the broker is away", "broker_away")
        assert channel is COMMAND
        assert len(data) <= channel.limit
        keys = {envelope.key_id(KEY.public_key()): KEY.public_key()}
        self.sent.append((device, decode(Command, envelope.open_envelope(data, envelope.COMMAND, keys))))


@pytest.fixture
def sending(api: Any) -> Sending:
    api.app.include_router(command_routes.router)
    return Sending(api)


def connect(api: Any, device: str) -> None:
    with api.db.begin() as c:
        state = State(online=True, boot="b", session=1, agent_version="1")
        store.save_state(c, device, state, time.time())


def reply(command: str, outcome: str = "done") -> Reply:
    return Reply(stream="stream-1", sequence=1, previous=0, at=1.0, command=command, outcome=outcome, text="log")


def shown(api: Any, command: str) -> Any:
    return api.admin.get(f"/api/v1/commands/{command}").json()


async def test_a_command_is_sent_to_a_connected_device_until_it_is_answered(api: Any, sending: Sending) -> None:
    device = api.enrolled()
    made = api.admin.post(f"/api/v1/devices/{device}/commands", json={"kind": "restart"})
    assert made.status_code == 201
    command = made.json()["id"]
    await sending.sender.look()
    assert sending.sent == []  # it is not there yet
    connect(api, device)
    await sending.sender.look()
    await sending.sender.look()
    assert [(to, sent.id, sent.kind) for to, sent in sending.sent] == [(device, command, "restart")]
    assert shown(api, command)["state"] == "sent"
    sending.now += AGAIN_SECONDS + 1
    await sending.sender.look()
    assert len(sending.sent) == 2
    with api.db.begin() as c:
        command_store.record_reply(c, device, reply(command), 5.0)
        command_store.record_reply(c, device, reply(command, "failed"), 6.0)
    sending.now += AGAIN_SECONDS + 1
    await sending.sender.look()
    assert len(sending.sent) == 2
    assert (shown(api, command)["outcome"], shown(api, command)["text"]) == ("done", "log")


async def test_a_broker_that_is_away_loses_nothing(api: Any, sending: Sending) -> None:
    device = api.enrolled()
    connect(api, device)
    command = api.admin.post(f"/api/v1/devices/{device}/commands", json={"kind": "logs"}).json()["id"]
    sending.away = True
    with pytest.raises(UnavailableError):
        await sending.sender.look()
    assert shown(api, command)["state"] == "waiting"
    sending.away = False
    await sending.sender.look()
    assert shown(api, command)["state"] == "sent"


async def test_after_its_hour_it_is_not_sent_any_more(api: Any, sending: Sending) -> None:
    device = api.enrolled()
    command = api.admin.post(f"/api/v1/devices/{device}/commands", json={"kind": "restart"}).json()["id"]
    connect(api, device)
    sending.now += LIFETIME + 1
    await sending.sender.look()
    assert sending.sent == []
    assert shown(api, command)["state"] == "expired"
    with api.db.begin() as c:  # it came in time, and its answer late
        command_store.record_reply(c, device, reply(command), 5.0)
    assert shown(api, command)["outcome"] == "done"


def test_an_answer_about_another_devices_command_changes_nothing(api: Any, sending: Sending) -> None:
    device, other = api.enrolled(), api.enrolled()
    command = api.admin.post(f"/api/v1/devices/{device}/commands", json={"kind": "restart"}).json()["id"]
    with api.db.begin() as c:
        command_store.record_reply(c, other, reply(command), 5.0)
    assert shown(api, command)["state"] == "waiting"


def test_many_are_commanded_by_a_filter_and_it_is_written_down(api: Any, sending: Sending) -> None:
    made = [api.enrolled(name=f"cam-{number}", tags=["hall"] if number else []) for number in range(3)]
    answer = api.admin.post("/api/v1/devices/commands", json={"kind": "restart", "filter": {"tag": "hall"}})
    assert answer.json() == {"devices": 2, "kind": "restart"}
    assert api.admin.get(f"/api/v1/devices/{made[0]}/commands").json()["commands"] == []
    assert len(api.admin.get(f"/api/v1/devices/{made[1]}/commands").json()["commands"]) == 1
    with api.db.read() as c:
        newest = audit_page(c, "default", None, 1)[0]
    assert (newest.action, newest.body["devices"]) == ("commands.restart", 2)


def test_mistakes_are_explained(api: Any, sending: Sending) -> None:
    device = api.enrolled()
    post = api.admin.post
    assert post(f"/api/v1/devices/{device}/commands", json={"kind": "explode"}).status_code == 400
    assert post("/api/v1/devices/commands", json={"kind": "logs"}).status_code == 400
    both = {"kind": "logs", "devices": [device], "filter": {}}
    assert post("/api/v1/devices/commands", json=both).status_code == 400
    assert post(f"/api/v1/devices/d-{'z' * 26}/commands", json={"kind": "logs"}).status_code == 404
    assert api.admin.get("/api/v1/commands/c-none").status_code == 404
    assert api.client("viewer").post(f"/api/v1/devices/{device}/commands", json={"kind": "logs"}).status_code == 403


async def test_a_command_is_sent_again_when_the_clock_was_put_back(api: Any, sending: Sending) -> None:
    device = api.enrolled()
    connect(api, device)
    api.admin.post(f"/api/v1/devices/{device}/commands", json={"kind": "logs"})
    await sending.sender.look()
    sending.now -= 86_400
    await sending.sender.look()
    assert len(sending.sent) == 2


def test_another_tenant_commands_and_sees_nothing(api: Any, sending: Sending) -> None:
    device = api.enrolled()
    command = api.admin.post(f"/api/v1/devices/{device}/commands", json={"kind": "logs"}).json()["id"]
    with api.db.begin() as c:
        add_tenant(c, "other", 1.0)
        token = tokens.make(c, tenant="other", name="n", role="admin", now=1.0)
    other = TestClient(api.app, headers={"Authorization": f"Bearer {token.text}"})
    assert other.post(f"/api/v1/devices/{device}/commands", json={"kind": "logs"}).status_code == 404
    assert other.post("/api/v1/devices/commands", json={"kind": "logs", "devices": [device]}).json()["devices"] == 0
    assert other.get(f"/api/v1/devices/{device}/commands").status_code == 404
    assert other.get(f"/api/v1/commands/{command}").status_code == 404


def test_commanding_a_whole_fleet_is_few_statements(api: Any, sending: Sending) -> None:
    """Each holds the write lock; a statement a device would keep heartbeats out for seconds."""
    fleet = [api.enrolled() for _ in range(12)]
    statements: list[str] = []
    with api.db.begin() as c:
        for _ in range(command_store.KEPT + 2):
            sending.now += 1
            sending.sender.order(c, "default", fleet, "logs")
        event.listen(c.engine, "before_cursor_execute", lambda *given: statements.append(given[2]))
        sending.sender.order(c, "default", fleet, "logs")
        kept = [len(command_store.of_device(c, "default", device, 1000)) for device in fleet]
    ordering = [statement for statement in statements if not statement.startswith("SELECT")]
    assert len(ordering) <= 4, ordering
    assert kept == [command_store.KEPT] * 12


def test_only_the_newest_are_kept(api: Any, sending: Sending) -> None:
    device = api.enrolled()
    with api.db.begin() as c:
        for _ in range(command_store.KEPT + 5):
            sending.now += 1
            sending.sender.order(c, "default", [device], "logs")
        kept = command_store.of_device(c, "default", device, 1000)
    assert len(kept) == command_store.KEPT
    assert kept[0].created == sending.now
