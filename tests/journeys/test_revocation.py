"""From the click to the end of a revoked device: broker, tunnel and HTTP sessions of a real fleet."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from agent.errors import ControllerError
from agent.identity.credentials import Credentials
from agent.identity.enrol import load_identity
from tests.journeys.local_fleet import LocalFleet, wait_for

pytestmark = pytest.mark.journey
PROMISED = 5.0  # seconds


def run(module: str, *arguments: str, **variables: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | variables,
    )
    return json.loads(done.stdout)


def test_a_revoked_device_is_out_everywhere_within_seconds_and_goes_on_serving(
    fleet: LocalFleet, tmp_path: Path
) -> None:
    with fleet.api() as api:
        token = api.post("/api/v1/join-tokens", json={}).raise_for_status().json()["token"]
    (tmp_path / "token").write_text(token)
    data = tmp_path / "device"
    variables = {"MUSTER_SERVING_PORT": "0", "MUSTER_DATA": str(data)}
    controller = ["--controller", fleet.login.api_url, "--token-file", str(tmp_path / "token"), "--name", "leaver"]
    agent = subprocess.Popen(
        [sys.executable, "-m", "agent", "run", *controller],
        stderr=(tmp_path / "agent.log").open("w"),
        env=os.environ | variables,
    )

    def status() -> dict[str, Any]:
        found: dict[str, Any] = run("agent", "status", "--json", **variables)
        return found

    def stands() -> bool:
        now = status()
        return bool(now.get("link") == "up" and now["serving"] and now["serving"]["tunnel"] == "open")

    try:
        wait_for(stands, f"the device stands: {status()}")
        identity = load_identity(data)
        assert identity is not None
        session = asyncio.run(Credentials(identity).session_token())
        login = str(fleet.data / "login.json")
        assert run("controller", "devices", "revoke", "leaver", "--json", MUSTER_LOGIN=login)["revoked"]
        revoked = time.monotonic()

        def out() -> bool:
            now = status()
            return bool(now.get("link") != "up" and now["serving"]["tunnel"] != "open")

        wait_for(out, "link and tunnel are closed", PROMISED)
        assert time.monotonic() - revoked < PROMISED
        with fleet.api() as api:
            refused = api.get("/api/v1/artifacts/" + "0" * 64, headers={"Authorization": f"Bearer {session}"})
        assert (refused.status_code, refused.json()["code"]) == (401, "no_device")
        with pytest.raises(ControllerError) as told:
            asyncio.run(Credentials(identity).session_token())
        assert told.value.code == "no_device"
        time.sleep(1.0)
        now = status()
        assert out()  # it tries, and does not come back
        assert now["running"]
        assert now["serving"]["http_port"]  # lost trust stops changes, never serving
        assert len(fleet.get("/api/v1/devices", state="online")["devices"]) == fleet.devices
    finally:
        agent.terminate()
        agent.wait(30)
