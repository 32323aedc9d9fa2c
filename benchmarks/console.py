"""What the console costs: `python -m benchmarks.console [--seconds N] [--json FILE]`.

A controller in a process of its own, without broker, with 1,000 devices that are kept alive as their heartbeats and
health reports would do it (each every ten seconds, through the same code). A real Chromium opens the console: first
load, time until rows stand, time of the main thread; then one tab and five, each on the list of devices, and the
controller's processor time is compared with that without tabs. Needs Chromium (MUSTER_CHROMIUM or on PATH).
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import shutil
import tempfile
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpx
import psutil
import uvicorn
from playwright.sync_api import Browser, sync_playwright
from sqlalchemy import insert

from benchmarks.table import Figure, json_option, show, spread
from controller.app import Control
from controller.database.tables import devices, join_tokens
from controller.devices import store
from controller.installation import prepare
from controller.listening import Server, listen
from controller.settings import Settings
from wire.messages import Health, Window

DEVICES = 1000
EVERY = 10  # seconds between two reports of a device
FIRST_LOAD_KB = 200.0
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--no-first-run"]


def main() -> None:
    """Measure and print."""
    parser = json_option(__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="for each of the measured spans")
    arguments = parser.parse_args()
    ours, theirs = multiprocessing.Pipe()
    controller = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,))
    controller.start()
    try:
        url, token = ours.recv()
        program = os.environ.get("MUSTER_CHROMIUM") or shutil.which("chromium") or "chromium"
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
            figures = measure(browser, url, token, psutil.Process(controller.pid), arguments.seconds)
            browser.close()
    finally:
        ours.send("end")
        controller.join(20)
    show(f"The console, {DEVICES} live devices", figures, arguments.json)


def measure(browser: Browser, url: str, token: str, controller: psutil.Process, seconds: float) -> list[Figure]:
    """Return the figures."""
    loads, rows = [], []
    for _ in range(5):
        size, took = first_load(browser, url, token)
        loads.append(size / 1000)
        rows.append(took)
    without = share(controller, seconds)
    context = browser.new_context(base_url=url)
    log_in(context, url, token)
    heard: list[int] = []
    pages = [open_list(context, heard)]
    pages[0].wait_for_timeout(2000)
    heard.clear()
    session = context.new_cdp_session(pages[0])
    session.send("Performance.enable")
    before = main_thread(session)
    with_one = share(controller, seconds, pages[0])
    busy = (main_thread(session) - before) / seconds
    feed = sum(heard) / seconds
    pages += [open_list(context, heard) for _ in range(4)]
    pages[0].wait_for_timeout(2000)
    with_five = share(controller, seconds, pages[0])
    context.close()
    kept = max(loads) <= FIRST_LOAD_KB
    return [
        Figure("first load, everything, compressed", spread(loads, "kB"), f"≤ {FIRST_LOAD_KB:.0f} kB", kept),
        Figure("rows of the list visible after", spread(rows, "s", 2)),
        Figure("main thread of a tab on the list", f"{busy * 1000:.0f} ms a second"),
        Figure("feed to one tab", f"{feed / 1000:.2f} kB/s"),
        Figure("controller without a tab", f"{without:.1f} % of a core"),
        Figure("controller with 1 tab, with 5 tabs", f"{with_one:.1f} %, {with_five:.1f} % of a core"),
    ]


def first_load(browser: Browser, url: str, token: str) -> tuple[float, float]:
    """Return the bytes of a first visit as they came over the wire, and the seconds until rows stood."""
    context = browser.new_context(base_url=url)
    log_in(context, url, token)
    page = context.new_page()
    session = context.new_cdp_session(page)
    session.send("Network.enable")
    sizes: list[float] = []
    kinds: dict[str, str] = {}
    session.on("Network.responseReceived", lambda event: kinds.update({event["requestId"]: event["type"]}))

    def finished(event: dict[str, Any]) -> None:
        if kinds.get(event["requestId"]) in ("Document", "Script", "Stylesheet", "Image", "Other", "Font"):
            sizes.append(event["encodedDataLength"])

    session.on("Network.loadingFinished", finished)
    began = time.perf_counter()
    page.goto("/devices", wait_until="commit")
    page.locator("tbody tr").first.wait_for()
    took = time.perf_counter() - began
    page.wait_for_load_state("load")
    context.close()
    return sum(sizes), took


def log_in(context: Any, url: str, token: str) -> None:
    """Open a session in ``context``."""
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}) as client:
        path = client.post("/api/v1/login-links").raise_for_status().json()["path"]
    context.request.get(path)


def open_list(context: Any, heard: list[int]) -> Any:
    """Open the list of devices in a new tab; ``heard`` gets the size of each message of its stream."""
    page = context.new_page()
    page.on("websocket", lambda socket: socket.on("framereceived", lambda payload: heard.append(len(payload))))
    page.goto("/devices")
    page.locator("tbody tr").first.wait_for()
    return page


def main_thread(session: Any) -> float:
    """Return the seconds of work that a page's main thread has done since ``session`` began to count."""
    found = {entry["name"]: entry["value"] for entry in session.send("Performance.getMetrics")["metrics"]}
    return float(found["TaskDuration"])


def share(process: psutil.Process, seconds: float, page: Any = None) -> float:
    """Return the processor time of ``process`` over ``seconds``, in percent of a core. ``page`` hears meanwhile."""
    before = sum(process.cpu_times()[:2])
    if page is None:
        time.sleep(seconds)
    else:
        page.wait_for_timeout(1000 * seconds)
    return 100 * (sum(process.cpu_times()[:2]) - before) / seconds


def serve(pipe: Connection) -> None:
    """The controller: serve, keep the devices alive, end when told to."""
    with tempfile.TemporaryDirectory(prefix="muster-console-") as directory:
        settings = Settings(data=str(Path(directory) / "data"), api_port=0, gateway_port=0, console_port=0, mqtt_port=0)
        installation = prepare(settings, time.time())
        control = Control(installation)
        control._database.migrate()
        add_devices(control)
        socket = listen("127.0.0.1", 0, "BENCHMARK")
        server = Server(uvicorn.Config(control.api, lifespan="off", log_config=None, access_log=False))
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([socket])), daemon=True)
        thread.start()
        pipe.send((f"http://127.0.0.1:{socket.getsockname()[1]}", installation.admin_token))
        turn = 0
        while not pipe.poll(1.0):
            keep_alive(control, turn)
            turn += 1
        server.should_exit = True
        thread.join(10)


def device_id(number: int) -> str:
    """Return a device id for a number."""
    return "d-" + "".join("abcdefghijklmnopqrstuvwxyz234567"[number >> 5 * place & 31] for place in range(26))


def add_devices(control: Control) -> None:
    """Store the fleet."""
    now = time.time()
    with control._database.begin() as c:
        values = {"uses_left": 0, "tags": [], "created": now, "expires": now}
        c.execute(insert(join_tokens).values(id="j", tenant="default", secret_sha256="", **values))
        common = {"tenant": "default", "tags": [], "join_token": "j", "enrolled": now, "online": True, "sequence": 0}
        rows = [
            {"id": device_id(n), "name": f"cam-{n:04}", "public_key": str(n), "last_seen": now, "profile": "generic"}
            for n in range(DEVICES)
        ]
        c.execute(insert(devices), [common | row for row in rows])


def keep_alive(control: Control, turn: int) -> None:
    """What the heartbeats and health reports of a second do."""
    now = time.time()
    mine = [device_id(number) for number in range(turn % EVERY, DEVICES, EVERY)]
    with control._database.begin() as c:
        store.save_seen(c, dict.fromkeys(mine, now))
    reports = []
    for place, device in enumerate(mine):
        values = {"serving_requests": 10.0 + place, "serving_p95_ms": 3.0 + place % 7 + turn % 3, "process_cpu": 0.1}
        windows = [
            Window(name=name, labels={"build": "b"}, start=now, seconds=10.0, count=1, total=value, maximum=value)
            for name, value in values.items()
        ]
        report = Health(stream="stream-1", sequence=turn + 1, previous=turn, windows=windows)
        reports.append((device, report))
        control._vitals.take(device, report, now)
    control._series.write(reports, now)


if __name__ == "__main__":
    main()
