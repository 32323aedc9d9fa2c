"""The console in a real Chromium, on a fleet of three real agents."""

from __future__ import annotations

import math
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.journeys.browser import ROOT, Tab, chromium, tab
from tests.journeys.local_fleet import LocalFleet, wait_for

pytestmark = [pytest.mark.journey, pytest.mark.timeout(300)]
LIVE_SECONDS = 2.0


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


def login_path(fleet: LocalFleet) -> str:
    with fleet.api() as api:
        return str(api.post("/api/v1/login-links").raise_for_status().json()["path"])


@pytest.fixture
def console(fleet: LocalFleet, browser: Browser) -> Iterator[Tab]:
    with tab(browser, fleet.login.console_url, login_path(fleet)) as opened:
        yield opened


def devices(fleet: LocalFleet) -> dict[str, str]:
    return {row["name"]: row["id"] for row in fleet.get("/api/v1/devices")["devices"]}


# getting in ---------------------------------------------------------------------------------------------------------


def test_without_a_session_there_is_a_login_and_a_token_opens_it(fleet: LocalFleet, browser: Browser) -> None:
    with tab(browser, fleet.login.console_url) as opened:
        page = opened.visit("/devices", "Muster")
        page.get_by_label("API token").fill("mut.wrong.token")
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_role("alert")).to_contain_text("this API token is not known")
        page.get_by_label("API token").fill(fleet.login.token)
        page.get_by_role("button", name="Log in").click()
        page.get_by_role("heading", level=1, name="Devices").wait_for()  # the page that was asked for
        page.get_by_role("button", name="Log out").click()
        page.get_by_label("API token").wait_for()
        page.reload()
        page.get_by_label("API token").wait_for()


def test_a_link_that_was_used_says_so(fleet: LocalFleet, browser: Browser) -> None:
    path = login_path(fleet)
    with tab(browser, fleet.login.console_url, path):
        pass
    with tab(browser, fleet.login.console_url) as opened:
        page = opened.visit(path, "Muster")
        expect(page.get_by_role("alert")).to_contain_text("was used before, or has expired")


def test_a_viewer_is_offered_nothing_that_a_viewer_may_not_do(fleet: LocalFleet, browser: Browser) -> None:
    with fleet.api() as api:
        token = api.post("/api/v1/tokens", json={"name": "watcher", "role": "viewer"}).json()["token"]
    with tab(browser, fleet.login.console_url) as opened:
        page = opened.visit("/", "Muster")
        page.get_by_label("API token").fill(token)
        page.get_by_role("button", name="Log in").click()
        page.get_by_role("heading", level=1, name="Overview").wait_for()
        links = page.get_by_role("navigation", name="Pages").get_by_role("link")
        assert links.all_inner_texts() == ["Overview", "Devices", "Models and builds", "Rollouts", "Settings"]
        opened.visit(f"/devices/{devices(fleet)['device-1']}", "device-1")
        expect(page.get_by_role("button", name="Restart serving…")).to_have_count(0)
        opened.visit("/audit", "Audit")
        expect(page.get_by_role("alert")).to_contain_text("viewer")


def test_a_session_that_ends_leads_to_the_login_by_itself(fleet: LocalFleet, browser: Browser) -> None:
    with fleet.api() as api:
        made = api.post("/api/v1/tokens", json={"name": "short", "role": "operator"}).json()
        with tab(browser, fleet.login.console_url) as opened:
            page = opened.visit("/", "Muster")
            page.get_by_label("API token").fill(made["token"])
            page.get_by_role("button", name="Log in").click()
            page.get_by_role("heading", level=1, name="Overview").wait_for()
            api.delete(f"/api/v1/tokens/{made['id']}").raise_for_status()
            expect(page.get_by_text("Your session is over")).to_be_visible(timeout=10_000)


# seeing -------------------------------------------------------------------------------------------------------------


def test_the_overview_shows_the_fleet_and_every_number_leads_to_its_list(console: Tab, fleet: LocalFleet) -> None:
    page = console.page
    tiles = page.get_by_label("The fleet in numbers")
    expect(tiles.get_by_role("link", name=re.compile("^Online"))).to_contain_text(str(fleet.devices))
    for name, address in (
        ("Online", "/devices?state=online"),
        ("Late", "/devices?state=late"),
        ("Lost", "/devices?state=lost"),
        ("Requests", "/devices?sort=-requests_per_s"),
        ("Errors", "/devices?sort=-errors_per_s"),
        ("Latency, worst", "/devices?sort=-p95_ms"),
    ):
        console.visit("/", "Overview")
        page.get_by_label("The fleet in numbers").get_by_role("link", name=re.compile(rf"^{name}\b")).click()
        page.get_by_role("heading", level=1, name="Devices").wait_for()
        assert page.url.endswith(address)
        console.settled()
    console.visit("/", "Overview")
    page.get_by_role("link", name="digits").first.click()
    page.get_by_role("heading", level=1, name="digits").wait_for()


def test_what_changes_elsewhere_is_there_within_two_seconds(console: Tab, fleet: LocalFleet) -> None:
    page = console.visit("/devices", "Devices")
    page.get_by_role("link", name="device-1").wait_for()
    device = devices(fleet)["device-1"]
    with fleet.api() as api:
        try:
            took = []
            for name in ("renamed", "again", "thrice"):  # other tests compute beside this one: the best of three counts
                api.patch(f"/api/v1/devices/{device}", json={"name": name}).raise_for_status()
                began = time.monotonic()
                page.get_by_role("link", name=name).wait_for()
                took.append(time.monotonic() - began)
            assert min(took) < LIVE_SECONDS, took
        finally:
            api.patch(f"/api/v1/devices/{device}", json={"name": "device-1"}).raise_for_status()


def test_an_address_sent_to_a_colleague_shows_the_same(console: Tab, fleet: LocalFleet) -> None:
    page = console.visit("/devices", "Devices")
    page.get_by_label("Search by name or id").fill("device-2")
    page.get_by_label("State").select_option("online")
    expect(page.get_by_role("row")).to_have_count(2)
    assert "q=device-2" in page.url
    assert "state=online" in page.url
    page.reload()
    expect(page.get_by_role("row")).to_have_count(2)
    expect(page.get_by_label("Search by name or id")).to_have_value("device-2")
    page.get_by_role("link", name="device-2").click()
    page.get_by_role("heading", level=1, name="device-2").wait_for()
    address = page.url
    page.go_back()
    expect(page.get_by_role("row")).to_have_count(2)
    page.goto(address)
    page.get_by_role("heading", level=1, name="device-2").wait_for()


def test_a_device_shows_its_evidence_and_why_it_runs_this_build(console: Tab, fleet: LocalFleet) -> None:
    page = console.visit(f"/devices/{devices(fleet)['device-3']}", "device-3")
    console.settled()
    expect(page.get_by_text("in a rule of generic-")).to_be_visible()
    enrolled = page.locator("dt:text-is('Enrolled') + dd time")
    assert re.search(r"2\d{3}-\d\d-\d\d \d\d:\d\d:\d\d UTC", enrolled.get_attribute("title") or "")
    expect(page.get_by_text("Why this build for this device")).to_be_visible()
    expect(page.get_by_text("Why the gate let it pass")).to_be_visible()
    page.locator("summary", has_text="succeeded").first.click()
    for state in ("offered", "downloading", "warming", "probation", "succeeded"):
        expect(page.get_by_role("cell", name=state, exact=True).first).to_be_visible()


def test_orders_by_figures_stay_still_until_they_are_made_anew(console: Tab) -> None:
    page = console.visit("/devices?sort=-p95_ms", "Devices")
    expect(page.get_by_role("row")).to_have_count(4)
    first = page.get_by_role("row").nth(1).inner_text().split()[0]
    page.wait_for_timeout(1500)
    assert page.get_by_role("row").nth(1).inner_text().split()[0] == first
    page.get_by_role("button", name="Order anew").click()
    expect(page.get_by_role("row")).to_have_count(4)
    expect(page.get_by_role("columnheader", name="p95")).to_have_attribute("aria-sort", "descending")


# acting -------------------------------------------------------------------------------------------------------------


def test_a_tag_is_given_to_everything_that_a_filter_matches(console: Tab, fleet: LocalFleet) -> None:
    page = console.visit("/devices?q=device-", "Devices")
    page.get_by_label("Choose all on this page").check()
    page.get_by_role("button", name="Tag…", exact=True).click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Tag").fill("hall:7")
    dialog.get_by_role("button", name="Tag…").click()
    expect(page.get_by_text("Tags changed on 3 devices.")).to_be_visible()
    expect(page.get_by_role("cell", name="hall:7")).to_have_count(3)
    listed = fleet.get("/api/v1/devices", tag="hall:7")["devices"]
    assert len(listed) == 3
    with fleet.api() as api:
        api.post("/api/v1/devices/tags", json={"action": "untag", "tag": "hall:7", "filter": {}}).raise_for_status()
    expect(page.get_by_role("cell", name="hall:7")).to_have_count(0)


def test_serving_is_restarted_and_logs_come_from_the_device(console: Tab, fleet: LocalFleet) -> None:
    before = fleet.serving("device-1").pid
    page = console.visit(f"/devices/{devices(fleet)['device-1']}", "device-1")
    page.get_by_role("button", name="Restart serving…").click()
    page.get_by_role("dialog").get_by_role("button", name="Restart serving…").click()
    answered = page.locator("summary", has_text="restart").first
    expect(answered).to_contain_text("serving runs again", timeout=30_000)
    assert fleet.serving("device-1").pid != before
    page.get_by_role("button", name="Collect logs…").click()
    page.get_by_role("dialog").get_by_role("button", name="Collect logs…").click()
    logs = page.locator("summary", has_text="logs").first
    expect(logs).to_contain_text("done", timeout=30_000)
    logs.click()
    expect(page.get_by_label("Answer to logs")).to_contain_text("serving started")
    expect(page.get_by_text("Needs a person")).to_have_count(0)


def test_a_rollout_is_looked_at_begun_paused_resumed_and_aborted(console: Tab, fleet: LocalFleet) -> None:
    page = console.visit("/rollouts", "Rollouts")
    page.get_by_role("link", name="New rollout").click()
    page.get_by_role("heading", level=1, name="New rollout").wait_for()
    page.get_by_label("Release").select_option("digits-1")
    page.get_by_label("Stages").fill("1, sometimes")
    page.get_by_role("button", name="Look before you leap").click()
    expect(page.get_by_role("alert")).to_contain_text("“sometimes” is no stage")
    page.get_by_label("Stages").fill("1, rest")
    page.get_by_label("Watch each stage (s)").fill("600")
    page.get_by_role("button", name="Look before you leap").click()
    would = page.get_by_label("What would happen")
    expect(would).to_contain_text("3 devices would get it")
    expect(would).to_contain_text("Stage 2 2 devices")
    assert len(fleet.get("/api/v1/rollouts")["rollouts"]) == 1, "looking begins nothing"
    page.get_by_role("button", name="Begin this rollout").click()
    page.get_by_role("dialog").get_by_role("button", name="Begin this rollout").click()
    page.get_by_role("heading", level=1, name="digits-1").wait_for()

    def order(word: str) -> None:
        page.get_by_role("button", name=word, exact=True).click()
        page.get_by_role("dialog").get_by_role("button", name=word).click()

    head = page.locator("main .row.between").first
    expect(head).to_contain_text("running")
    expect(page.get_by_text("Gate now")).to_be_visible()
    order("Pause")
    expect(head).to_contain_text("paused")
    order("Resume")
    expect(head).to_contain_text("running")
    expect(page.locator("summary", has_text="device-")).to_have_count(1)  # the second stage waits for the first
    order("Abort")
    expect(head).to_contain_text("canceled")
    page.get_by_role("link", name="Audit").click()
    for action in ("rollouts.create", "rollouts.pause", "rollouts.run", "rollouts.abort"):
        expect(page.get_by_role("cell", name=action, exact=True).first).to_be_visible()
    page.get_by_role("button", name="Verify the chain").click()
    expect(page.get_by_text("intact")).to_be_visible()


def draw(page: Page, strokes: list[list[tuple[float, float]]]) -> None:
    """Draw on the pad; points as shares of its size."""
    pad = page.get_by_role("img", name="Pad to draw on with a pointer")
    pad.scroll_into_view_if_needed()
    box = pad.bounding_box()
    assert box is not None
    for stroke in strokes:
        places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in stroke]
        page.mouse.move(*places[0])
        page.mouse.down()
        for place in places[1:]:
            page.mouse.move(*place, steps=3)
        page.mouse.up()


def circle(x: float, y: float, width: float, height: float) -> list[tuple[float, float]]:
    turns = [2 * math.pi * step / 24 for step in range(26)]
    return [(x + width * math.sin(turn), y - height * math.cos(turn)) for turn in turns]


# The sevens of the data set that the sample learned from carry a bar.
DIGITS = {
    0: [circle(0.5, 0.5, 0.22, 0.35)],
    1: [[(0.42, 0.25), (0.52, 0.12), (0.52, 0.88)]],
    2: [[(0.3, 0.25), (0.4, 0.12), (0.6, 0.12), (0.7, 0.28), (0.6, 0.5), (0.28, 0.88), (0.74, 0.88)]],
    3: [
        [(0.3, 0.15), (0.5, 0.1), (0.68, 0.2), (0.66, 0.38), (0.5, 0.47)],
        [(0.5, 0.47), (0.68, 0.58), (0.7, 0.75), (0.5, 0.88), (0.28, 0.82)],
    ],
    4: [[(0.55, 0.1), (0.28, 0.6), (0.75, 0.6)], [(0.6, 0.4), (0.6, 0.9)]],
    7: [[(0.28, 0.15), (0.72, 0.15), (0.45, 0.88)], [(0.38, 0.5), (0.66, 0.5)]],
}


def test_drawn_digits_are_read_by_devices_of_the_fleet(console: Tab, fleet: LocalFleet) -> None:
    page = console.visit("/playground", "Playground")
    for digit, strokes in DIGITS.items():
        draw(page, strokes)
        expect(page.locator(".best strong")).to_have_text(str(digit))
        answer = page.locator("section", has_text="Answered by")
        expect(answer.get_by_role("link", name=re.compile(r"^device-\d$"))).to_be_visible()
        for part in ("Queue", "Compute", "Network and the rest"):
            told = answer.locator(f"dt:text-is('{part}') + dd").inner_text()
            assert re.fullmatch(r"[\d.]+ (µs|ms)", told), (part, told)
        page.get_by_role("button", name="Clear").click()


def test_a_request_that_the_model_refuses_is_explained(console: Tab) -> None:
    page = console.visit("/playground", "Playground")
    page.get_by_text("Request as JSON", exact=True).click()
    box = page.get_by_role("textbox", name="Request as JSON")
    expect(box).to_have_value(re.compile("image"))
    box.fill('{"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}')
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_role("alert")).to_contain_text("shape")
    box.fill("{")
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_role("alert")).to_contain_text("not JSON")


def test_a_token_is_made_with_a_command_and_a_code(console: Tab, fleet: LocalFleet) -> None:
    page = console.visit("/enrol", "Enrol devices")
    page.get_by_label("Tags for these devices, separated by commas").fill("hall:9")
    page.get_by_role("button", name="Make a token").click()
    token = page.get_by_label("The token")
    expect(token).to_contain_text(f"muster-agent enrol --controller {fleet.login.api_url}")
    expect(token).to_contain_text("muster-join-1.")
    expect(token).to_contain_text("Waiting for the first device")
    code = page.get_by_role("img", name="QR code of the token")
    assert code.evaluate("image => image.complete && image.naturalWidth > 0")


def test_a_model_is_uploaded_and_its_refusal_is_told(console: Tab, fleet: LocalFleet, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(os.urandom(5000))
    (tmp_path / "data.npz").write_bytes((fleet.data / "sample/data.npz").read_bytes())
    page = console.visit("/models", "Models and builds")
    page.get_by_role("button", name="Upload a model…").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Name").fill("garbage-from-a-browser")
    dialog.get_by_label("Model (ONNX)").set_input_files(tmp_path / "bad.onnx")
    dialog.get_by_label("Data (npz: calibration, held-out, golden)").set_input_files(tmp_path / "data.npz")
    dialog.get_by_label("For which profiles").select_option("generic-x86_64")
    dialog.get_by_role("button", name="Upload and build").click()
    page.get_by_role("heading", level=1, name="garbage-from-a-browser").wait_for()
    expect(page.get_by_text("not an ONNX", exact=False).or_(page.get_by_text("ONNX")).first).to_be_visible(
        timeout=60_000
    )
    console.visit("/", "Overview")
    expect(page.get_by_role("link", name=re.compile("no build of garbage-from-a-browser"))).to_be_visible()


def test_the_pages_work_by_keyboard_alone(console: Tab) -> None:
    page = console.visit("/", "Overview")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Devices", exact=True)).to_be_focused()
    page.keyboard.press("Enter")
    page.get_by_role("heading", level=1, name="Devices").wait_for()
    expect(page.get_by_role("heading", level=1)).to_be_focused()  # so that a screen reader says where one is
    page.get_by_label("Choose device-1").focus()
    page.keyboard.press("Space")
    page.get_by_role("button", name="Tag…", exact=True).focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.get_by_role("button", name="Tag…", exact=True)).to_be_focused()


# looking at each page -----------------------------------------------------------------------------------------------


def pages(fleet: LocalFleet) -> dict[str, str]:
    return {
        "overview": "/",
        "devices": "/devices",
        "device": f"/devices/{devices(fleet)['device-1']}",
        "models": "/models",
        "model": "/models/digits",
        "rollouts": "/rollouts",
        "rollout": f"/rollouts/{fleet.get('/api/v1/rollouts')['rollouts'][-1]['id']}",
        "new-rollout": "/rollouts/new?release=digits-1",
        "playground": "/playground",
        "enrol": "/enrol",
        "audit": "/audit",
        "settings": "/settings",
        "no-device": f"/devices/d-{'z' * 26}",
        "no-rollout": "/rollouts/r-none",
        "no-model": "/models/none",
        "missing": "/no/such/page",
    }


@pytest.mark.parametrize(
    ("width", "scheme"), [(390, "light"), (390, "dark"), (1440, "light"), (1440, "dark"), (2560, "light")]
)
def test_every_page_at_each_width_has_no_violations_and_fits(
    fleet: LocalFleet, browser: Browser, width: int, scheme: str
) -> None:
    kept = Path(os.environ.get("MUSTER_SCREENSHOTS", ROOT / "build/screenshots"))
    kept.mkdir(parents=True, exist_ok=True)
    with tab(browser, fleet.login.console_url, login_path(fleet), width, scheme) as opened:
        for name, address in pages(fleet).items():
            page = opened.visit(address)
            opened.settled()
            page.wait_for_timeout(150)  # the charts
            page.screenshot(path=kept / f"{name}-{width}-{scheme}.png", full_page=True)
            assert opened.too_wide() == 0, f"{name} is wider than {width}"
            assert opened.violations() == [], name


# a controller that goes away and comes back; last, as it shakes the fleet -------------------------------------------


def test_a_controller_that_restarts_is_told_and_found_again(console: Tab, fleet: LocalFleet) -> None:
    page = console.visit("/devices", "Devices")
    connection = page.locator(".connection")
    expect(connection).to_have_text("Live")
    fleet.role("control").send_signal(signal.SIGKILL)
    expect(connection).not_to_have_text("Live")
    expect(page.get_by_role("link", name="device-1")).to_be_visible()  # what was known stays in sight
    expect(connection).to_have_text("Live", timeout=30_000)
    with fleet.api() as api:
        device = devices(fleet)["device-1"]
        api.patch(f"/api/v1/devices/{device}", json={"tags": ["back"]}).raise_for_status()
        expect(page.get_by_role("cell", name="back")).to_be_visible()
        api.patch(f"/api/v1/devices/{device}", json={"tags": ["local"]}).raise_for_status()
    wait_for(lambda: len(fleet.get("/api/v1/devices", state="online")["devices"]) == 3, "all are online again")
