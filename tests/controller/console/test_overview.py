"""The fleet at a glance, over HTTP."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import insert

from controller.database.tables import certificates
from controller.telemetry.sampler import FleetSampler
from controller.tenants import store as tenants_store
from controller.tenants import tokens
from tests.controller.console.conftest import Served, device_id
from wire.messages import Health, Window


def overview(served: Served, token: str | None = None) -> Any:
    with served.client(token) as client:
        return client.get("/api/v1/overview").raise_for_status().json()


def running(build: str | None, serving: str = "ready") -> dict[str, Any]:
    item = {"component": "model:m", "generation": 1, "build": build, "state": "SUCCEEDED", "since": 1.0}
    return {"at": 1.0, "epoch": 1, "number": 1, "items": [item], "serving": serving}


def test_an_empty_fleet_is_told_as_one(served: Served) -> None:
    told = overview(served)
    assert told["devices"] == {"online": 0, "late": 0, "lost": 0, "total": 0}
    assert told["traffic"]["requests_per_s"] is None
    assert told["runs"] == told["rollouts"] == told["attention"] == []


def test_devices_are_counted_and_what_runs_is_told_per_build(served: Served) -> None:
    now = time.time()
    served.add_devices(
        [
            {"id": device_id(1), "name": "a", "reported": running("b-1")},
            {"id": device_id(2), "name": "b", "reported": running("b-1", "down")},
            {"id": device_id(3), "name": "c", "reported": running("b-2"), "last_seen": now - 40},
            {"id": device_id(4), "name": "d", "online": False},
            {"id": device_id(5), "name": "e", "revoked": now, "reported": running("b-1")},
        ]
    )
    told = overview(served)
    assert told["devices"] == {"online": 2, "late": 1, "lost": 1, "total": 4}
    assert [(run["build"], run["devices"], run["ready"]) for run in told["runs"]] == [("b-1", 2, 1), ("b-2", 1, 1)]
    assert [item["kind"] for item in told["attention"]] == ["down", "lost", "late"]


def test_certificates_that_end_soon_need_a_person_unless_there_is_a_newer_one(served: Served) -> None:
    now = time.time()
    served.add_devices([{"id": device_id(n), "name": f"{n}"} for n in (1, 2)])
    rows = [(1, "s1", now + 86_400), (2, "s2", now + 86_400), (2, "s3", now + 30 * 86_400)]
    with served.database.begin() as c:
        c.execute(
            insert(certificates),
            [
                {"serial": serial, "device": device_id(n), "pem": "", "issued": now, "expires": expires}
                for n, serial, expires in rows
            ],
        )
    (item,) = overview(served)["attention"]
    assert item["text"].startswith("the certificates of 1 device expire within a week")


def test_a_copied_identity_needs_a_person_of_its_own_tenant(served: Served) -> None:
    served.add_devices([{"id": device_id(1), "name": "a"}, {"id": device_id(2), "name": "b"}])
    copies, now = served.control._reports.copies, time.time()
    for n in range(8):
        copies.note(device_id(1), "ab"[n % 2], n, True, now)
        copies.note(device_id(3), "ab"[n % 2], n, True, now)  # not a device of this tenant
        copies.note(device_id(2), "b", n, True, now)
    (item,) = overview(served)["attention"]
    assert (item["kind"], item["href"]) == ("copied", f"/devices/{device_id(1)}")
    revoking = served.control._revoking
    assert served.control._broker._on_flood == revoking.silence
    revoking.silence(device_id(2))
    revoking.silence(device_id(3))
    assert {item["kind"] for item in overview(served)["attention"]} == {"copied", "flood"}


def test_traffic_is_what_devices_report_now_and_is_sampled_over_time(served: Served) -> None:
    served.add_devices([{"id": device_id(1), "name": "a"}])
    window = Window(
        name="serving_requests", labels={"build": "b"}, start=time.time(), seconds=10.0, count=5, total=250.0
    )
    report = Health(stream="stream-1", sequence=1, previous=0, windows=[window])
    served.control._vitals.take(device_id(1), report, time.time())
    assert overview(served)["traffic"]["requests_per_s"] == 25.0
    FleetSampler(served.database, served.control._series, served.control._vitals).sample()
    with served.client() as client:
        told = client.get("/api/v1/fleet/series?name=requests_per_s&step=10&seconds=600").raise_for_status().json()
        assert [point["mean"] for entry in told["series"] for point in entry["points"]] == [25.0]
        assert client.get("/api/v1/fleet/series?name=secrets").status_code == 400


def test_another_tenant_sees_its_own_fleet(served: Served) -> None:
    served.add_devices([{"id": device_id(1), "name": "a", "online": False, "reported": running("b-1")}])
    with served.database.begin() as c:
        tenants_store.add_tenant(c, "other", time.time())
        token = tokens.make(c, tenant="other", name="t", role="admin", now=time.time())
    told = overview(served, token.text)
    assert told["devices"]["total"] == 0
    assert told["runs"] == told["attention"] == []
