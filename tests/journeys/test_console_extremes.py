"""The console before fleets that cannot be waited for: ten thousand devices, and one that says hostile things."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from playwright.sync_api import Browser, expect
from sqlalchemy import insert

from controller.database.tables import builds, commands, execution_events, executions, releases, rollouts
from controller.rollouts.policy import Policy
from tests.controller.console.conftest import Served, device_id, served
from tests.journeys.browser import chromium, tab
from wire.messages import Health, Window

pytestmark = [pytest.mark.journey, pytest.mark.timeout(180)]
MANY = 10_000
# one element for each way in: a script, an attribute, a closed tag, a style, an address, a template
HOSTILE = (
    "<script>window.hit=1</script><img src=x onerror=window.hit=2>\"'><svg onload=window.hit=3>"
    "</style></title>javascript:window.hit=4//{window.hit=5}${window.hit=6}&lt;b&gt;"
)
assert served is not None  # the fixture


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


def window(name: str, value: float, **labels: str) -> Window:
    now = time.time()
    return Window(
        name=name,
        labels=labels,
        start=now - now % 10 - 10,
        seconds=10.0,
        count=1,
        total=value,
        minimum=value,
        maximum=value,
        p50=value,
    )


def health(sequence: int, *windows: Window) -> Health:
    return Health(stream="stream-1", sequence=sequence, previous=sequence - 1, windows=list(windows))


def test_ten_thousand_devices_are_searched_sorted_and_paged_by_the_server(served: Served, browser: Browser) -> None:
    served.add_devices(
        [
            {"id": device_id(number), "name": f"cam-{number:05}", "tags": [f"hall:{number % 7}"], "profile": "jetson"}
            for number in range(MANY)
        ]
    )
    for number in range(0, MANY, 100):
        served.control._vitals.take(device_id(number), health(1, window("serving_p95_ms", float(number))), time.time())
    with tab(browser, served.url, served.login_path()) as opened:
        page = opened.page
        expect(page.get_by_label("The fleet in numbers")).to_contain_text("of 10,000 devices")
        page.get_by_role("link", name="Devices", exact=True).click()
        expect(page.get_by_role("row")).to_have_count(51)
        expect(page.get_by_text("10,000 devices")).to_be_visible()
        page.get_by_role("button", name="Next page").click()
        expect(page.get_by_role("link", name="cam-00050")).to_be_visible()
        page.get_by_label("Search by name or id").fill("cam-0999")
        expect(page.get_by_text("10 devices match")).to_be_visible()
        page.get_by_role("button", name="Clear filters").click()
        page.get_by_role("button", name="p95").click()
        expect(page.get_by_role("row").nth(1)).to_contain_text("cam-09900")
        page.get_by_label("Tag").select_option("hall:3")
        expect(page.get_by_text("1,429 devices match")).to_be_visible()
        # the main thread stays free: no long task while the list is live
        longest = page.evaluate(
            """() => new Promise(done => {
                let longest = 0
                new PerformanceObserver(list => {
                    for (const entry of list.getEntries()) longest = Math.max(longest, entry.duration)
                }).observe({type: 'longtask'})
                setTimeout(() => done(longest), 3000)
            })"""
        )
        assert longest < 200
        page.get_by_label("Choose all on this page").check()
        page.get_by_role("button", name="Choose all 1,429 matching").click()
        page.get_by_role("button", name="Tag…", exact=True).click()
        page.get_by_role("dialog").get_by_label("Tag").fill("chosen")
        page.get_by_role("dialog").get_by_role("button", name="Tag…").click()
        expect(page.get_by_text("Tags changed on 1,429 devices.")).to_be_visible()


def add_hostile(served: Served) -> str:
    """Store a device that says hostile things wherever a device, a builder or a name may say something."""
    device, now, tenant = device_id(1), time.time(), "default"
    words = HOSTILE
    item = {"component": f"model:{words}", "generation": 1, "build": "b-1", "state": words, "since": now}
    facts: dict[str, Any] = {
        "at": now,
        "profile": words,
        "title": words,
        "confidence": 0.5,
        "evidence": [words],
        "facts": {words: words, "nested": {"deep": [words, {"x": words}]}},
        "runtimes": [{"name": words, words: words}],
    }
    served.add_devices(
        [
            {
                "id": device,
                "name": words[:63],
                "tags": [words[:63]],
                "profile": words[:128],
                "boot": words[:128],
                "agent_version": words[:128],
                "facts": facts,
                "reported": {"at": now, "epoch": 1, "number": 1, "items": [item], "serving": words},
            }
        ]
    )
    fault = {"phase": words, "code": words, "message": words, "log_tail": words}
    stages = [
        {
            "number": 0,
            "devices": [device],
            "state": "RUNNING",
            "started": now,
            "carried": [],
            "finished": None,
            "reasons": [words],
        }
    ]
    with served.database.begin() as c:
        c.execute(insert(releases).values(id="rel-1", tenant=tenant, name="r", models={words[:60]: 1}, created=now))
        c.execute(
            insert(rollouts).values(
                id="r-1",
                tenant=tenant,
                release="rel-1",
                selector={"tags": [words[:128]]},
                policy=msgspec.to_builtins(Policy()),
                state="PAUSED",
                wanted="pause",
                stages=stages,
                reasons=[words],
                created=now,
                updated=now,
            )
        )
        c.execute(
            insert(executions).values(
                id="e-1",
                tenant=tenant,
                rollout="r-1",
                stage=0,
                device=device,
                component=item["component"][:80],
                generation=1,
                build="b-1",
                why=[words],
                state="FAILED",
                fault=fault,
                created=now,
                updated=now,
            )
        )
        c.execute(
            insert(execution_events).values(
                execution="e-1",
                stream="stream-1",
                sequence=1,
                at=now,
                received=now,
                origin="X",
                state=words[:24],
                detail=words,
                fault=fault,
            )
        )
        c.execute(
            insert(commands).values(
                id="c-" + "0" * 24,
                tenant=tenant,
                device=device,
                kind="logs",
                state="answered",
                envelope=b"",
                created=now,
                expires=now + 60,
                answered=now,
                outcome=words[:32],
                detail=words,
                text=words,
            )
        )
        c.exec_driver_sql("INSERT INTO model_versions VALUES ('default', 'm', 1, ?, ?, ?)", ("0" * 64, "1" * 64, now))
        c.exec_driver_sql("INSERT INTO models VALUES ('default', 'm', ?)", (now,))
        c.exec_driver_sql(
            "INSERT INTO build_jobs (id, tenant, model, version, target, state, attempt, progress, error, created,"
            " finished) VALUES ('j-1', 'default', 'm', 1, ?, 'failed', 1, ?, ?, ?, ?)",
            ('{"profile": "p", "arch": [], "optimization": "none"}', words, words, now, now),
        )
        c.execute(
            insert(builds).values(
                id="b-1",
                tenant=tenant,
                model="m",
                version=1,
                job="j-1",
                precision="fp32",
                target={"profile": words, "arch": [words], "runtime": words, "min_runtime": words},
                figures={"measured_on": words},
                verdict="refused",
                reasons=[words],
                created=now,
            )
        )
    labels = {"model": words, "process": words, "cause": words}
    report = health(1, *(window(name, 1.0, **labels) for name in ("serving_requests", "process_cpu", "throttling")))
    served.control._series.write([(device, report)], now)
    served.control._vitals.take(device, report, now)
    with served.client() as client:
        client.post("/api/v1/tokens", json={"name": "x", "role": "viewer"}).raise_for_status()
        client.patch(f"/api/v1/devices/{device}", json={"name": words[:63]}).raise_for_status()
    return device


def test_what_a_device_says_is_only_ever_text(served: Served, browser: Browser) -> None:
    device = add_hostile(served)
    with tab(browser, served.url, served.login_path()) as opened:
        for address in (
            "/",
            "/devices",
            f"/devices/{device}",
            "/models",
            "/models/m",
            "/rollouts",
            "/rollouts/r-1",
            "/rollouts/new?release=r",
            "/audit",
        ):
            page = opened.visit(address)
            opened.settled()
            for summary in page.locator("main summary").all():
                summary.click()
            opened.settled()
            if address != "/rollouts/new?release=r":
                shown = page.locator("main").get_by_text("<script>window.hit=1").filter(visible=True)
                expect(shown.first, address).to_be_visible()
            assert page.evaluate("window.hit") is None, address
            assert page.locator("main script, main img[src=x], main svg[onload]").count() == 0, address
