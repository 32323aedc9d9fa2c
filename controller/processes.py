"""A whole controller on this machine: its roles as processes of their own, and the broker.

Invariant: when starting fails, everything that was started is ended, and the error repeats what the role itself said.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import httpx

from controller.broker.configuration import Listener
from controller.broker.mosquitto import Mosquitto, find_program
from controller.devices.authority import CONTROLLER_NAME
from controller.errors import UnavailableError
from controller.installation import Installation, prepare
from controller.settings import Settings
from controller.supervisor import Child, Supervisor, role_command, stop_on_signals

ROLES: Final = ("control", "gateway", "builder")
READY_SECONDS: Final = 60.0


class Processes:
    """The roles of one controller as processes of their own, and the broker."""

    def __init__(self, installation: Installation, stop: asyncio.Event, settings_file: Path | None = None) -> None:
        self._installation = installation
        self._settings_file = settings_file
        self._broker: Mosquitto | None = None
        self._stop = stop
        self.trouble: str | None = None
        self.supervisor = Supervisor(stop, self._ended)

    async def start(self) -> None:
        """Start the broker and the roles, and wait until all answer.

        Raises a ControllerError that repeats what the role itself said.
        """
        installation = self._installation
        if not installation.settings.broker_url:
            listener = Listener(
                host=installation.settings.host,
                port=installation.mqtt_port,
                certificate=installation.mqtt_files.certificate,
                key=installation.mqtt_files.key,
                roots=installation.authority.client_roots,
                revoked=installation.authority.list_file,
                operator_root=installation.authority.operating_root_file,
            )
            program = find_program(os.environ, installation.data)
            self._broker = Mosquitto(program, installation.broker_directory, listener, [CONTROLLER_NAME])
            await self._broker.start()
        for name in ROLES:
            self.supervisor.start(self._child(name))
        await self._answering()

    async def end(self) -> None:
        """End everything that was started."""
        self._stop.set()
        await self.supervisor.end()
        if self._broker is not None:
            await self._broker.stop()

    def _child(self, role: str) -> Child:
        options = ["--data", str(self._installation.data), "--owner-pid", str(os.getpid())]
        if self._settings_file is not None:
            options += ["--settings", str(self._settings_file.absolute())]
        log_file = self._installation.data / "logs" / f"{role}.log"
        return Child(name=role, command=[*role_command(role), *options], log=log_file)

    def _ended(self, child: Child, status: int) -> None:
        if child.first_exit is not None and self.trouble is None:
            last = child.log.read_text(errors="replace").strip().splitlines()[-1:] or [f"status {status}"]
            self.trouble = f"{child.name} could not start: {last[0].removeprefix('muster: ')} (log: {child.log})"

    async def _answering(self) -> None:
        installation = self._installation
        context = ssl.create_default_context(cafile=str(installation.authority.root_file))
        urls = [f"{installation.local_api_url}/readyz", f"{installation.gateway_url}/healthz"]
        until = time.monotonic() + READY_SECONDS
        async with httpx.AsyncClient(verify=context, trust_env=False, timeout=2.0) as client:
            while urls:
                if self.trouble is not None:
                    raise UnavailableError(self.trouble, "start_failed")
                if time.monotonic() > until:
                    raise UnavailableError(f"{urls[0]} did not answer within {READY_SECONDS:.0f} s", "start_slow")
                try:
                    answer = await client.get(urls[0])
                except httpx.HTTPError:
                    answer = None
                if answer is not None and answer.status_code == 200:
                    urls.pop(0)
                else:
                    await asyncio.sleep(0.05)


async def run_all(settings: Settings, settings_file: Path | None, ready: Callable[[Installation], None]) -> None:
    """Run a whole controller until SIGTERM or SIGINT; ``ready`` is called once everything answers."""
    stop = asyncio.Event()
    stop_on_signals(stop)
    installation = prepare(settings, time.time())
    processes = Processes(installation, stop, settings_file)
    try:
        await processes.start()
        ready(installation)
        await stop.wait()
    finally:
        await processes.end()
