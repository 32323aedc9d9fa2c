"""Metrics and series over HTTP."""

from __future__ import annotations

from typing import Any

import httpx
from fastapi import FastAPI
from sqlalchemy import update

from controller.database import tables
from controller.database.connection import Database
from controller.telemetry.metrics import exposition
from controller.telemetry.routes import router
from controller.telemetry.series import Series
from controller.tenants import tokens
from controller.tenants.guard import install_errors, require_declared
from wire.messages import Health, Window

NOW = 1_800_000_000.0
DEVICE = "d-" + "a" * 26


def test_figures_of_one_tenant(database: Database) -> None:
    with database.begin() as connection:
        connection.execute(
            update(tables.devices).where(tables.devices.c.id == DEVICE).values(online=True, last_seen=NOW)
        )
    text = exposition(database, "acme", {"stored": 7}, NOW).decode()
    assert 'muster_devices{presence="online"} 1.0' in text
    assert 'muster_devices{presence="lost"} 2.0' in text
    assert 'muster_messages_total{fate="stored"} 7.0' in text
    assert 'muster_devices{presence="online"} 0.0' in exposition(database, "other", {}, NOW).decode()


async def test_series_over_http(database: Database, series: Series) -> None:
    app = FastAPI()
    app.state.database, app.state.series = database, series
    app.include_router(router)
    install_errors(app)
    require_declared(app)
    with database.begin() as connection:
        texts = [
            tokens.make(connection, tenant=tenant, name="t", role="viewer", now=NOW).text
            for tenant in ("acme", "other")
        ]
    found = Window(name="memory", labels={}, start=NOW, seconds=10, count=2, total=6.0, minimum=1.0, maximum=5.0)
    series.write([(DEVICE, Health(stream="stream-1", sequence=1, previous=0, windows=[found]))], NOW)

    async def get(query: str, token: str = texts[0]) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {token}"}
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as client:
            answer = await client.get(f"/api/v1/devices/{query}")
        return answer.status_code, answer.json()

    assert await get(f"{DEVICE}/series") == (200, {"device": DEVICE, "names": ["memory"]})
    status, answer = await get(f"{DEVICE}/series?name=memory&since={NOW - 60}&until={NOW + 60}&step=1")
    assert status == 200
    (point,) = answer["series"][0]["points"]
    assert (point["start"], point["count"], point["mean"], point["maximum"], point["p95"]) == (NOW, 2, 3.0, 5.0, None)
    assert (await get(f"{DEVICE}/series", texts[1]))[0] == 404, "another tenant's device"
    assert (await get("d-nobody/series"))[0] == 404
    assert (await get(f"{DEVICE}/series?name=memory&since=5&until=1"))[0] == 400
