"""A whole fleet on this machine, started as a newcomer starts it: `muster local` with real processes."""

from __future__ import annotations

import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil

from controller.commands.client import Login, read_login

T = TypeVar("T")
ANY_PORTS = {f"MUSTER_{name}_PORT": "0" for name in ("API", "GATEWAY", "CONSOLE", "MQTT")}


def wait_for(ask: Callable[[], T], what: str, seconds: float = 60.0) -> T:
    """Return the first true answer of ``ask``."""
    until = time.monotonic() + seconds
    while True:
        found = ask()
        if found:
            return found
        if time.monotonic() > until:
            raise AssertionError(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.05)


@dataclass
class LocalFleet:
    """A running `muster local`."""

    process: subprocess.Popen[str]
    data: Path
    devices: int

    @property
    def login(self) -> Login:
        return read_login(self.data / "login.json")

    def api(self) -> httpx.Client:
        login = self.login
        return httpx.Client(
            base_url=login.api_url,
            verify=tls(login.ca_file),
            headers={"Authorization": f"Bearer {login.token}"},
            timeout=20.0,
        )

    def gateway(self) -> httpx.Client:
        login = self.login
        return httpx.Client(
            base_url=login.gateway_url,
            verify=tls(login.ca_file),
            headers={"Authorization": f"Bearer {login.token}"},
            timeout=30.0,
        )

    def get(self, path: str, **parameters: Any) -> Any:
        with self.api() as api:
            return api.get(path, params=parameters).raise_for_status().json()

    def request_body(self) -> bytes:
        return (self.data / "request.json").read_bytes()

    def processes(self, *words: str) -> list[psutil.Process]:
        """Return the living processes of this fleet whose command lines hold all ``words``."""
        found = []
        for process in psutil.process_iter(["cmdline", "status"]):
            line = " ".join(process.info["cmdline"] or [])
            ours = str(self.data) in line and all(word in line for word in words)
            if ours and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process)
        return found

    def only(self, *words: str) -> psutil.Process:
        return wait_for(lambda: self.processes(*words), f"a process with {words}")[0]

    def agent(self, name: str) -> psutil.Process:
        return self.only("-m agent run", f"/{name}")

    def serving(self, name: str) -> psutil.Process:
        return self.only("agent.serving", f"/{name}")

    def role(self, name: str) -> psutil.Process:
        return self.only("controller role", name)

    def broker(self) -> psutil.Process:
        return self.only("mosquitto", "mosquitto.conf")

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(30)
        finally:
            for left in self.processes():  # a test that failed half way may have left some stopped
                left.kill()


def start(data: Path, devices: int, *options: str, screen: list[str] | None = None) -> LocalFleet:
    """Start `muster local` and wait until it has answered its first request. ``screen``: gets the lines it showed."""
    process = subprocess.Popen(
        [sys.executable, "-m", "controller", "local", "--data", str(data), "--devices", str(devices), *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **ANY_PORTS},
        start_new_session=True,
    )
    said = [] if screen is None else screen
    assert process.stderr is not None
    for line in process.stderr:
        said.append(line)
        if "after the start" in line:
            return LocalFleet(process, data, devices)
    raise AssertionError(f"muster local ended with {process.wait(30)}:\n{''.join(said)}\n{logs(data)}")


def logs(data: Path) -> str:
    """Return the ends of all logs below ``data``."""
    return "\n".join(f"== {file}\n{file.read_text(errors='replace')[-2000:]}" for file in sorted(data.rglob("*.log")))


def tls(ca_file: str) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=ca_file)
