"""Over HTTP, with the real guard and the real loop behind."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import insert, select

from controller.database import tables
from controller.rollouts.routes import router
from controller.tenants import tokens
from controller.tenants.guard import install_errors, require_declared

NOW = 1_800_000_000.0


class Client:
    def __init__(self, site: Any) -> None:
        self.app = FastAPI()
        self.app.state.database = site.database
        self.app.include_router(router)
        install_errors(self.app)
        require_declared(self.app)
        with site.database.begin() as connection:
            connection.execute(insert(tables.tenants).values(name="other", created=NOW))
            self.tokens = {
                role: tokens.make(connection, tenant=tenant, name=role, role=kind, now=NOW).text
                for role, tenant, kind in (
                    ("operator", "acme", "operator"),
                    ("viewer", "acme", "viewer"),
                    ("stranger", "other", "operator"),
                )
            }
            for version in (1, 2):
                connection.execute(
                    insert(tables.model_versions).values(
                        tenant="acme", model="digits", version=version, source_sha256="0", data_sha256="0", created=NOW
                    )
                )

    async def __call__(self, method: str, path: str, body: Any = None, role: str = "operator", status: int = 0) -> Any:
        transport = httpx.ASGITransport(self.app)
        headers = {"Authorization": f"Bearer {self.tokens[role]}"}
        async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as client:
            answer = await client.request(method, f"/api/v1{path}", json=body)
        assert answer.status_code == (status or (200 if method == "GET" else answer.status_code)), answer.text
        return answer.json()


@pytest.fixture
def client(site: Any) -> Client:
    return Client(site)


async def release(client: Client, version: int = 1) -> str:
    answer = await client("POST", "/releases", {"name": f"v{version}", "models": {"digits": version}}, status=201)
    return str(answer["id"])


async def test_the_whole_way(client: Client, site: Any) -> None:
    devices = site.add_devices(range(3))
    build = site.add_build(1)
    made = await release(client)
    body = {"release": made, "selector": {}, "policy": {"stages": [{"count": 1}, {"rest": True}]}}
    rollout = (await client("POST", "/rollouts", body, status=201))["id"]
    await site.loop.turn()
    shown = await client("GET", f"/rollouts/{rollout}")
    assert shown["state"] == "RUNNING"
    assert shown["stages"][0]["devices"] == 1
    assert shown["gate"] == {
        "stage": 0,
        "verdict": "hold",
        "reasons": ["0 of 1 reached devices have finished"],
        "devices": {"pending": 1},
    }
    await site.settle()
    (listed,) = (await client("GET", "/rollouts"))["rollouts"]
    assert (listed["state"], listed["release"], listed["release_name"]) == ("SUCCEEDED", made, "v1")
    assert listed["executions"] == {"SUCCEEDED": 3}
    executions = (await client("GET", f"/rollouts/{rollout}/executions"))["executions"]
    assert {row["device"] for row in executions} == set(devices)
    assert {row["build"] for row in executions} == {build}
    one = await client("GET", f"/executions/{executions[0]['id']}")
    assert [event["state"] for event in one["events"]] == ["IDLE", "SUCCEEDED"]
    assert one["events"][0]["detail"].startswith("made for")
    assert one["figures"] == {"p50_ms": 1.5}


async def test_a_dry_run_says_who_gets_what_and_who_not_and_stores_nothing(client: Client, site: Any) -> None:
    devices = site.add_devices(range(3))
    site.set_device(devices[1], facts={"at": NOW, "facts": {"arch": "aarch64"}, "runtimes": []})
    build = site.add_build(1)
    body = {"release": await release(client), "policy": {"stages": [{"count": 1}]}, "dry_run": True}
    answer = await client("POST", "/rollouts", body, status=201)
    assert [(row["device"], row["stage"]) for row in answer["gets"]] == [(devices[0], 0)]
    assert answer["gets"][0]["builds"]["model:digits"]["build"] == build
    assert answer["not_in_any_stage"] == 1
    assert [row["device"] for row in answer["left_out"]] == [devices[1]]
    assert "made for x86_64, the device is aarch64" in answer["left_out"][0]["why"][0]
    assert answer["warnings"]
    assert (await client("GET", "/rollouts"))["rollouts"] == []


async def test_what_is_probably_not_meant_is_said_when_a_rollout_begins(client: Client, site: Any) -> None:
    site.add_devices(range(2))
    site.add_build(1)
    made = await release(client)
    fine = await client("POST", "/rollouts", {"release": made}, status=201)
    assert fine["warnings"] == []
    typo = {"release": made, "selector": {"devices": ["device 1", "devise 2"]}}
    assert (await client("POST", "/rollouts", typo, status=201))["warnings"] == [
        "no device has the id or name devise 2"
    ]
    nobody = {"release": made, "selector": {"tags": ["canari"]}}
    assert (await client("POST", "/rollouts", nobody, status=201))["warnings"] == ["no device would get anything"]


async def test_orders_and_their_audit_rows(client: Client, site: Any) -> None:
    site.add_devices(range(2))
    site.add_build(1)
    rollout = (await client("POST", "/rollouts", {"release": await release(client)}, status=201))["id"]
    await site.loop.turn()
    for order, state in (("pause", "PAUSED"), ("resume", "RUNNING"), ("rollback", "ROLLING_BACK")):
        await client("POST", f"/rollouts/{rollout}/{order}", status=200)
        await client("POST", f"/rollouts/{rollout}/{order}", status=200)  # again is no error
        await site.loop.turn()
        assert site.state(rollout) == state
    refused = await client("POST", f"/rollouts/{rollout}/pause", status=409)
    assert refused["code"] == "wrong_state"
    with site.database.read() as connection:
        audited = connection.execute(select(tables.audit.c.action).order_by(tables.audit.c.id)).scalars().all()
    assert audited == ["releases.create", "rollouts.create", "rollouts.pause", "rollouts.run", "rollouts.rollback"]


async def test_the_newest_order_holds_also_when_the_one_before_was_not_carried_out(client: Client, site: Any) -> None:
    site.add_devices(range(2))
    site.add_build(1)
    rollout = (await client("POST", "/rollouts", {"release": await release(client)}, status=201))["id"]
    await site.loop.turn()
    for orders, state in ((("pause", "resume"), "RUNNING"), (("pause",), "PAUSED"), (("resume", "pause"), "PAUSED")):
        for order in orders:
            await client("POST", f"/rollouts/{rollout}/{order}", status=200)
        await site.loop.turn()
        assert site.state(rollout) == state, orders


async def test_an_abort_cannot_be_taken_back_but_a_rollback_can_follow(client: Client, site: Any) -> None:
    site.add_devices(range(2))
    site.add_build(1)
    rollout = (await client("POST", "/rollouts", {"release": await release(client)}, status=201))["id"]
    await site.loop.turn()
    await client("POST", f"/rollouts/{rollout}/abort", status=200)
    for order in ("resume", "pause"):
        refused = await client("POST", f"/rollouts/{rollout}/{order}", status=409)
        assert "abort" in refused["error"]
    await site.settle()
    assert site.state(rollout) == "CANCELED"
    await client("POST", f"/rollouts/{rollout}/abort", status=200)  # again is no error
    await client("POST", f"/rollouts/{rollout}/resume", status=409)
    await client("POST", f"/rollouts/{rollout}/rollback", status=200)
    await client("POST", f"/rollouts/{rollout}/abort", status=409)
    await site.settle()
    assert site.state(rollout) == "ROLLED_BACK"
    await client("POST", f"/rollouts/{rollout}/rollback", status=200)


async def test_what_has_concluded_is_not_said_to_go_on(client: Client, site: Any) -> None:
    site.add_devices(range(1))
    site.add_build(1)
    rollout = (await client("POST", "/rollouts", {"release": await release(client)}, status=201))["id"]
    await site.settle()
    assert site.state(rollout) == "SUCCEEDED"
    for order in ("resume", "pause", "abort"):
        assert (await client("POST", f"/rollouts/{rollout}/{order}", status=409))["code"] == "wrong_state"


async def test_roles_and_tenants(client: Client, site: Any) -> None:
    site.add_build(1)
    made = await release(client)
    rollout = (await client("POST", "/rollouts", {"release": made}, status=201))["id"]
    await client("POST", "/rollouts", {"release": made}, role="viewer", status=403)
    await client("POST", f"/rollouts/{rollout}/abort", role="viewer", status=403)
    assert (await client("GET", f"/rollouts/{rollout}", role="viewer"))["id"] == rollout
    for path in (f"/rollouts/{rollout}", f"/rollouts/{rollout}/executions"):
        await client("GET", path, role="stranger", status=404)
    await client("POST", f"/rollouts/{rollout}/abort", role="stranger", status=404)
    await client("POST", "/rollouts", {"release": made}, role="stranger", status=404)
    assert (await client("GET", "/rollouts", role="stranger"))["rollouts"] == []
    assert (await client("GET", "/releases", role="stranger"))["releases"] == []


async def test_what_is_wrong_is_refused_with_words(client: Client, site: Any) -> None:
    made = await release(client)
    again = await client("POST", "/releases", {"name": "v1", "models": {"digits": 1}}, status=409)
    assert again["code"] == "release_exists"
    missing = await client("POST", "/releases", {"name": "x", "models": {"digits": 9}}, status=404)
    assert missing["code"] == "no_model_version"
    policy = await client("POST", "/rollouts", {"release": made, "policy": {"soak": -1}}, status=400)
    assert "$.soak" in policy["error"]
    selector = await client("POST", "/rollouts", {"release": made, "selector": {"tag": "a"}}, status=400)
    assert "selector" in selector["error"]
    await client("POST", "/rollouts", {"release": made, "surprise": 1}, status=400)
    await client("GET", "/rollouts/r-none", status=404)
    await client("GET", "/executions/e-none", status=404)


async def test_a_release_is_found_by_name_and_executions_come_in_pages(client: Client, site: Any) -> None:
    site.add_devices(range(5))
    site.add_build(1)
    await release(client)
    rollout = (await client("POST", "/rollouts", {"release": "v1"}, status=201))["id"]
    await site.settle()
    seen: list[str] = []
    after: str | None = ""
    while after is not None:
        page = await client("GET", f"/rollouts/{rollout}/executions?limit=2&after={after}")
        seen += [row["device"] for row in page["executions"]]
        after = page["next"]
    assert len(seen) == len(set(seen)) == 5
    counts = {"SUCCEEDED": 5, "FAILED": 0}
    for state, count in counts.items():
        found = await client("GET", f"/rollouts/{rollout}/executions?state={state}")
        assert len(found["executions"]) == count
    mistyped = await client("GET", f"/rollouts/{rollout}/executions?state=FAILD", status=400)
    assert "'FAILED'" in mistyped["error"]


async def test_the_schema_is_open(client: Client) -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(client.app), base_url="http://test") as nobody:
        answer = await nobody.get("/api/v1/schemas/rollout-policy")
    assert answer.status_code == 200
    assert "stages" in answer.json()["$defs"]["Policy"]["properties"]
