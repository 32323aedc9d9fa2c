"""The list of the fleet, and what devices say of themselves."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from controller.devices import store
from controller.devices.registry import Registry
from controller.devices.reports import Reports
from controller.devices.sequence import Duplicate, Fresh, Gap
from controller.errors import NotFoundError
from controller.tenants import tokens
from controller.tenants.store import add_tenant
from wire.messages import Facts, Heartbeat, Reported, ReportedItem, State

NOW = 5_000.0


def state(session: int, online: bool = True, boot: str = "b") -> State:
    return State(online=online, boot=boot, session=session, agent_version="1")


def facts(profile: str) -> Facts:
    return Facts(
        at=NOW,
        profile=profile,
        title="A board",
        confidence=0.9,
        evidence=["seen"],
        facts={"model": "x"},
        runtimes=[],
        agent_version="1",
    )


def reported(number: int, at: float) -> Reported:
    item = ReportedItem(component="model:m", generation=1, build="b-1", state="active", since=1.0)
    return Reported(at=at, epoch=1, number=number, items=[item], serving="ready")


def row(api: Any, device: str) -> Any:
    with api.db.read() as c:
        return store.find_device(c, "default", device)


async def test_messages_are_stored(api: Any) -> None:
    device = await asyncio.to_thread(api.enrolled)
    clock = [NOW]
    reports = Reports(api.db, lambda: clock[0])
    handlers = reports.handlers()
    for message in (state(1), facts("pi"), reported(2, NOW), Heartbeat(at=1.0, session=1)):
        await handlers[type(message)](device, message)
    stored = row(api, device)
    assert (stored.online, stored.boot, stored.session, stored.last_seen) == (True, "b", 1, NOW)
    assert (stored.profile, stored.facts["evidence"], stored.reported["items"][0]["build"]) == ("pi", ["seen"], "b-1")
    clock[0] += 10
    await reports.on_heartbeat(device, Heartbeat(at=2.0, session=1))
    assert row(api, device).last_seen == NOW
    await reports.flush()
    assert row(api, device).last_seen == NOW + 10
    await reports.on_state(device, state(1, online=False))
    assert not row(api, device).online


async def test_old_news_changes_nothing(api: Any) -> None:
    device = await asyncio.to_thread(api.enrolled)
    clock = [NOW]
    reports = Reports(api.db, lambda: clock[0])
    await reports.on_state(device, state(2))
    clock[0] += 100
    await reports.on_state(device, state(1, online=False))  # the will of the connection before
    await reports.on_state(device, state(2))  # retained, told again after the controller came back
    assert (row(api, device).online, row(api, device).last_seen) == (True, NOW)
    await reports.on_reported(device, reported(5, NOW))
    await reports.on_reported(device, reported(4, NOW - 1))
    assert row(api, device).reported["number"] == 5


async def test_a_clock_that_was_put_back_silences_nothing(api: Any) -> None:
    device = await asyncio.to_thread(api.enrolled)
    clock = [NOW + 86_400]  # the controller's clock was a day ahead
    reports = Reports(api.db, lambda: clock[0])
    await reports.on_state(device, state(2))
    await reports.on_reported(device, reported(5, NOW + 86_400))
    clock[0] = NOW
    await reports.on_heartbeat(device, Heartbeat(at=1.0, session=1))
    await reports.flush()
    assert row(api, device).last_seen == NOW, "else it looks alive for a day, whatever happens to it"
    await reports.on_reported(device, reported(5, NOW))
    assert row(api, device).reported["at"] == NOW
    await reports.on_state(device, state(3))
    await reports.on_reported(device, reported(5, 12.0))  # the device began anew, in 1970
    assert row(api, device).reported["at"] == 12.0


async def test_heartbeats_of_a_busy_moment_are_kept(api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    device = await asyncio.to_thread(api.enrolled)
    reports = Reports(api.db, lambda: NOW)
    await reports.on_heartbeat(device, Heartbeat(at=1.0, session=1))
    monkeypatch.setattr("controller.database.connection.BUSY_SECONDS", 0.01)
    with api.db.begin():
        await reports.flush()
    await reports.flush()
    assert row(api, device).last_seen == NOW


def test_the_sequence_moves_with_its_transaction(api: Any) -> None:
    device = api.enrolled()
    with api.db.begin() as c:
        assert store.accept(c, device, "stream-1", 1, 0) == Fresh(1)
    rolled_back(api, device)
    with api.db.begin() as c:
        assert store.accept(c, device, "stream-1", 2, 1) == Fresh(2)
        assert store.accept(c, device, "stream-1", 1, 0) == Duplicate(2)
        assert store.accept(c, device, "stream-1", 9, 8) == Gap(2)
        assert store.accept(c, device, "stream-2", 1, 0) == Fresh(1)
        store.revoke(c, "default", device, NOW)
        with pytest.raises(NotFoundError):
            store.accept(c, device, "stream-2", 2, 1)


def rolled_back(api: Any, device: str) -> None:
    try:
        with api.db.begin() as c:
            assert store.accept(c, device, "stream-1", 2, 1) == Fresh(2)
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass


def test_filters_and_pages(api: Any) -> None:
    made = sorted(api.enrolled(name=f"cam-{number}", tags=["site:a"] if number % 2 else []) for number in range(5))
    with api.db.begin() as c:
        store.save_facts(c, made[0], facts("jetson"), {"x": 1})

    def listed(**params: Any) -> list[str]:
        answer = api.admin.get("/api/v1/devices", params=params)
        assert answer.status_code == 200, answer.text
        return [device["id"] for device in answer.json()["devices"]]

    assert listed() == made
    assert listed(profile="jetson") == [made[0]]
    assert len(listed(tag="site:a")) == 2
    assert len(listed(name="CAM-3")) == 1
    assert listed(name="%") == []
    assert listed(state="online") == []
    assert listed(state="lost") == made
    assert api.admin.get("/api/v1/devices", params={"state": "asleep"}).status_code == 400
    pages: list[str] = []
    after = ""
    while after is not None:
        page = api.admin.get("/api/v1/devices", params={"limit": 2, "after": after}).json()
        pages += [device["id"] for device in page["devices"]]
        after = page["next"]
    assert pages == made
    assert "facts" not in api.admin.get("/api/v1/devices").json()["devices"][0]
    shown = api.admin.get(f"/api/v1/devices/{made[0]}").json()
    assert shown["facts"] == {"x": 1}
    assert "public_key" not in shown


def test_another_tenant_sees_nothing(api: Any) -> None:
    device = api.enrolled()
    with api.db.begin() as c:
        add_tenant(c, "other", NOW)
        token = tokens.make(c, tenant="other", name="n", role="admin", now=NOW)
    other = TestClient(api.app, headers={"Authorization": f"Bearer {token.text}"})
    assert other.get("/api/v1/devices").json()["devices"] == []
    assert other.get(f"/api/v1/devices/{device}").status_code == 404
    assert other.delete(f"/api/v1/devices/{device}").status_code == 404
    assert row(api, device).revoked is None


def test_the_registry_follows_revocations(api: Any) -> None:
    clock = [0.0]
    registry = Registry(api.db, lambda: clock[0])
    device = api.enrolled()
    assert registry.knows(device)
    assert not registry.knows("d-" + "a" * 26)
    assert api.admin.delete(f"/api/v1/devices/{device}").status_code == 204
    assert not registry.knows(device)
    with api.db.begin() as c:
        c.execute(text("UPDATE devices SET revoked = NULL"))
    assert registry.knows(device)


def test_the_registry_sees_other_processes_within_a_second(api: Any) -> None:
    clock = [0.0]
    registry = Registry(api.db, lambda: clock[0])
    device = api.enrolled()
    assert registry.knows(device)
    from controller.database.connection import Database

    elsewhere = Database(api.db.path)
    with elsewhere.begin() as c:
        store.revoke(c, "default", device, NOW)
    clock[0] += 1.0
    assert not registry.knows(device)


def test_a_join_token_is_withdrawn_and_who_joined_with_it_stays(api: Any, make_key: Any) -> None:
    key = make_key()
    joined, other = api.join_token(uses=3, tags=["site=riga"]), api.join_token()
    token = joined.split(".")[2]
    device = api.enrol(joined, key).json()["device"]
    listed = api.admin.get("/api/v1/join-tokens").json()["join_tokens"]
    assert {row["id"]: (row["uses_left"], row["tags"]) for row in listed} == {
        token: (2, ["site=riga"]),
        other.split(".")[2]: (1, []),
    }
    assert joined.split(".")[3] not in str(listed)
    assert "secret" not in str(listed)
    for _ in range(2):
        assert api.admin.delete(f"/api/v1/join-tokens/{token}").status_code == 204
    assert api.enrol(joined).json()["code"] == "token_used"
    assert api.enrol(joined, key).json()["device"] == device  # its answer may have been lost
    assert [row["id"] for row in api.admin.get("/api/v1/join-tokens").json()["join_tokens"]] == [other.split(".")[2]]
    assert api.admin.delete("/api/v1/join-tokens/nonsense").status_code == 404
    assert api.client("viewer").delete(f"/api/v1/join-tokens/{token}").status_code == 403
    assert api.client("viewer").get("/api/v1/join-tokens").status_code == 403
    with api.db.read() as c:
        told = c.execute(text("SELECT thing FROM audit WHERE action = 'devices.withdraw_join_token'")).scalars().all()
    assert told == [f"join-token:{token}"]  # once


def test_join_tokens_of_another_tenant_are_not_there(api: Any) -> None:
    joined = api.join_token()
    with api.db.begin() as c:
        c.execute(text("INSERT INTO tenants (name, created) VALUES ('other', 0)"))
        c.execute(text("UPDATE join_tokens SET tenant = 'other'"))
    assert api.admin.get("/api/v1/join-tokens").json()["join_tokens"] == []
    assert api.admin.delete(f"/api/v1/join-tokens/{joined.split('.')[2]}").status_code == 404
