"""`muster up` killed outright: what it started ends by itself, and the next one begins as if nothing had been."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.journeys.local_fleet import ANY_PORTS, logs, wait_for

pytestmark = pytest.mark.journey


def up(data: Path, screen: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-m", "controller", "up", "--data", str(data)],
        stdout=subprocess.DEVNULL,
        stderr=screen.open("wb"),
        env=os.environ | ANY_PORTS | {"MUSTER_LOGIN": str(data.parent / "login.json")},
    )
    wait_for(lambda: "console:" in screen.read_text() or process.poll() is not None, f"it stands: {screen}")
    assert process.poll() is None, screen.read_text() + logs(data)
    return process


def roles(data: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        line = " ".join(process.info["cmdline"] or [])
        if "controller role" in line and str(data) in line and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def test_roles_end_with_the_process_that_keeps_them(tmp_path: Path) -> None:
    data = tmp_path / "data"
    first = up(data, tmp_path / "first")
    assert len(roles(data)) == 3
    first.kill()
    first.wait(10)
    wait_for(lambda: not roles(data), "the roles end", 30)
    second = up(data, tmp_path / "second")
    owned = {process.pid: process.ppid() for process in roles(data)}
    assert (len(owned), set(owned.values())) == (3, {second.pid})
    second.send_signal(signal.SIGINT)
    assert second.wait(30) == 0
    assert roles(data) == []
