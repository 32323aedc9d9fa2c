"""The controller, the broker, the agent and serving are killed in the middle of an update: it ends right, requests are
answered all the while, and every report arrives once."""

from __future__ import annotations

import itertools
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

from controller.local import sample
from tests.journeys.local_fleet import LocalFleet, tls, wait_for

pytestmark = pytest.mark.journey
SLOW_PROBATION = {"stages": ["rest"], "probation": 6.0, "continuous": False}


class Asker:
    """Asks one device's serving directly, without pause, and remembers every answer that was not good."""

    def __init__(self, url: str, body: bytes) -> None:
        self._url, self._body = url, body
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.good = 0
        self.bad: list[str] = []
        self._thread.start()

    def _run(self) -> None:
        with httpx.Client(timeout=5.0) as client:
            while not self._stop.is_set():
                try:
                    answer = client.post(self._url, content=self._body)
                    if answer.status_code == 200:
                        self.good += 1
                    else:
                        self.bad.append(answer.text)
                except httpx.HTTPError as error:
                    self.bad.append(repr(error))
                self._stop.wait(0.002)

    def end(self) -> None:
        self._stop.set()
        self._thread.join(10)


def push_another_version(fleet: LocalFleet, directory: Path, seed: int) -> int:
    """Train with another seed, upload, wait for the builds; return the version."""
    from controller.commands.client import Api
    from controller.commands.models import push_version, wait_for_job

    trained = sample.train(directory, lambda text, share: None, seed=seed, epochs=6)
    api = Api(fleet.login)
    target = {"profile": "generic-x86_64", "arch": "x86_64", "optimization": "balanced"}
    version = push_version(api, "digits", trained.model, trained.data, [target])
    for job in version["jobs"]:
        wait_for_job(api, job, lambda text: None)
    number: int = version["version"]
    return number


def begin_rollout(fleet: LocalFleet, version: int, device: str) -> str:
    with fleet.api() as api:
        release = api.post("/api/v1/releases", json={"name": f"digits-v{version}", "models": {"digits": version}})
        body = {"release": release.json()["id"], "selector": {"devices": [device]}, "policy": SLOW_PROBATION}
        answer = api.post("/api/v1/rollouts", json=body)
    rollout: str = answer.raise_for_status().json()["id"]
    return rollout


def execution_of(fleet: LocalFleet, rollout: str) -> dict[str, Any]:
    found = fleet.get(f"/api/v1/rollouts/{rollout}/executions")["executions"]
    return found[0] if found else {}


def device_id(fleet: LocalFleet, name: str) -> str:
    devices = fleet.get("/api/v1/devices", name=name)["devices"]
    identifier: str = devices[0]["id"]
    return identifier


@pytest.mark.parametrize(
    ("victim", "seed"), [("control", 11), ("broker", 12), ("agent", 13)], ids=["controller", "broker", "agent"]
)
def test_an_update_survives_the_death_of(fleet: LocalFleet, tmp_path: Path, victim: str, seed: int) -> None:
    version = push_another_version(fleet, tmp_path, seed)
    name = "device-3"
    device = device_id(fleet, name)
    port = serving_port(fleet, name)
    asker = Asker(f"http://127.0.0.1:{port}/v2/models/digits/infer", fleet.request_body())
    try:
        rollout = begin_rollout(fleet, version, device)
        wait_for(lambda: execution_of(fleet, rollout).get("state") == "PROBATION", "the update is in probation")
        doomed = {
            "control": lambda: fleet.role("control"),
            "broker": fleet.broker,
            "agent": lambda: fleet.agent(name),
        }[victim]()
        doomed.send_signal(signal.SIGKILL)
        wait_for(lambda: not doomed.is_running() or doomed.status() == "zombie", "it is gone")
        wait_for(lambda: state_or_none(fleet, rollout) == "SUCCEEDED", "the update ends right", 90)
    finally:
        asker.end()
    assert asker.bad == []
    assert asker.good > 100
    execution = execution_of(fleet, rollout)
    events = fleet.get(f"/api/v1/executions/{execution['id']}")["events"]
    of_device = [event for event in events if event["stream"] != "controller"]
    assert Counter((e["stream"], e["sequence"]) for e in of_device).most_common(1)[0][1] == 1
    assert [e["state"] for e in of_device].count("SUCCEEDED") == 1
    for before, after in itertools.pairwise(of_device):
        assert after["origin"] == before["state"], f"a transition is missing or came twice: {of_device}"
    answer = httpx.post(f"http://127.0.0.1:{port}/v2/models/digits/infer", content=fleet.request_body())
    assert answer.json()["model_version"] == str(version)


def state_or_none(fleet: LocalFleet, rollout: str) -> str | None:
    try:
        state: str | None = execution_of(fleet, rollout).get("state")
    except httpx.HTTPError:
        return None  # the controller is on its way back
    return state


def serving_port(fleet: LocalFleet, name: str) -> int:
    import json

    ports = json.loads((fleet.data / "devices" / name / "ports.json").read_text())
    port: int = ports["serving_port"]
    return port


def test_serving_that_is_killed_comes_back_with_the_same_build(fleet: LocalFleet) -> None:
    name = "device-2"
    first = fleet.serving(name)
    before = fleet.get(f"/api/v1/devices/{device_id(fleet, name)}")["reported"]["items"][0]["build"]
    first.send_signal(signal.SIGKILL)
    began = time.monotonic()

    def answers() -> bool:
        url = f"http://127.0.0.1:{serving_port(fleet, name)}/v2/models/digits/infer"
        try:
            return httpx.post(url, content=fleet.request_body(), timeout=2.0).status_code == 200
        except httpx.HTTPError:
            return False

    wait_for(answers, "it serves again", 15)
    assert time.monotonic() - began < 10
    after = fleet.get(f"/api/v1/devices/{device_id(fleet, name)}")["reported"]["items"][0]["build"]
    assert after == before


def test_the_audit_trail_is_whole_after_all_of_this(fleet: LocalFleet) -> None:
    assert fleet.get("/api/v1/audit/verify")["intact"] is True
    rows = fleet.get("/api/v1/audit", limit=500)["rows"]
    assert {"devices.enrol", "tenants.first_start"} <= {row["action"] for row in rows}
    login = fleet.login
    with httpx.Client(base_url=login.api_url, verify=tls(login.ca_file)) as nobody:
        assert nobody.get("/api/v1/audit").status_code == 401
