"""mosquitto as a supervised child of the controller.

Invariant: while this runs, a mosquitto that died is started again on the same port, with back-off; a stop ends it and
nothing else. One controller a data directory: a mosquitto that an earlier one left behind there is ended first.
Does not speak MQTT (`session.py`) nor decide what clients may do (`configuration.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import shutil
import signal
import socket
import ssl
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import structlog

from controller.broker.configuration import Listener, Version, access_rules, configuration, read_version
from controller.broker.operate import CONFIGURATION_FILE, OPERATOR_PORT_FILE, PID_FILE, runs_with
from controller.errors import UnavailableError
from controller.listening import allow_connections

VARIABLE: Final = "MUSTER_MOSQUITTO"  # the program's path, when it is not where programs usually are
START_SECONDS: Final = 10.0
STOP_SECONDS: Final = 5.0
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 10.0
STEADY_SECONDS: Final = 30.0  # after that long without dying, the back-off begins anew
OPEN_FILES: Final = 65_536  # one for each device, as far as the system lets us
_USUAL: Final = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin")
_LINE: Final = 4_096

log = structlog.get_logger()


def find_program(environment: Mapping[str, str], data: Path) -> str:
    """Return the path of mosquitto: from the variable, from PATH and the usual places, or unpacked beside ``data``.

    Raises UnavailableError (code "broker_missing").
    """
    named = environment.get(VARIABLE)
    if named:
        if not os.access(named, os.X_OK):
            raise UnavailableError(f"{VARIABLE}={named} is not a program", "broker_missing")
        return named
    places = os.pathsep.join([environment.get("PATH", os.defpath), *_USUAL, str(data.parent / "broker")])
    found = shutil.which("mosquitto", path=places)
    if found is None:
        raise UnavailableError(
            "mosquitto, the message broker, is not installed: `sudo apt-get install mosquitto` (or your system's way), "
            f"or set {VARIABLE} to its path",
            "broker_missing",
        )
    return found


class Mosquitto:
    """One mosquitto whose files lie in ``directory``. A ``listener.port`` of 0 is chosen at the start.

    controllers: the names in the controller's own certificates.
    """

    def __init__(self, program: str, directory: Path, listener: Listener, controllers: Sequence[str]) -> None:
        self._program = program
        self._directory = directory
        self._listener = listener
        self._controllers = controllers
        self._child: asyncio.subprocess.Process | None = None
        self._last_lines: deque[str] = deque(maxlen=20)
        self._tasks: list[asyncio.Task[None]] = []
        self.restarts = 0

    @property
    def port(self) -> int:
        """The port; 0 before the start when it is to be chosen."""
        return self._listener.port

    @property
    def pid(self) -> int | None:
        """The child's process id while it runs."""
        return self._child.pid if self._child is not None and self._child.returncode is None else None

    async def start(self) -> None:
        """Start mosquitto, wait until it accepts connections, and supervise it from then on.

        Raises UnavailableError: "port_taken", "broker_failed" (with its last words) or "broker_unwritable".
        """
        await asyncio.to_thread(self._end_leftover)
        allow_connections(OPEN_FILES)  # the child inherits it: a thousand devices are more than most systems begin with
        version = await self._ask_version()
        port = _free_port(self._listener.host, self._listener.port)
        self._listener = replace(self._listener, port=port, operator_port=_free_port("127.0.0.1", 0, besides=port))
        self._write_files(version)
        await self._launch()
        self._tasks.append(asyncio.create_task(self._supervise(), name="mosquitto supervision"))

    async def stop(self) -> None:
        """End mosquitto; it writes its state down first."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        await self._end_child()
        self._pid_file.unlink(missing_ok=True)

    @property
    def _configuration_file(self) -> Path:
        return self._directory / CONFIGURATION_FILE

    @property
    def _pid_file(self) -> Path:
        return self._directory / PID_FILE

    async def _ask_version(self) -> Version:
        try:
            child = await asyncio.create_subprocess_exec(
                self._program,
                "-h",
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            said, _ = await asyncio.wait_for(child.communicate(), START_SECONDS)
        except (OSError, TimeoutError) as error:
            raise UnavailableError(f"{self._program} cannot be started: {error}", "broker_failed") from error
        return read_version(said.decode(errors="replace"))

    def _write_files(self, version: Version) -> None:
        state, rules = self._directory / "state", self._directory / "access.rules"
        try:
            state.mkdir(parents=True, exist_ok=True, mode=0o700)
            for path, text in (
                (rules, access_rules(self._controllers)),
                (
                    self._configuration_file,
                    configuration(self._listener, rules, state, as_root=os.geteuid() == 0, version=version),
                ),
                (self._directory / OPERATOR_PORT_FILE, f"{self._listener.operator_port}\n"),
            ):
                path.touch(mode=0o600)
                path.chmod(0o600)
                path.write_text(text)
        except OSError as error:
            raise UnavailableError(f"broker files in {self._directory}: {error}", "broker_unwritable") from error

    async def _launch(self) -> None:
        try:
            child = await asyncio.create_subprocess_exec(
                self._program,
                "-c",
                str(self._configuration_file),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                limit=_LINE,
                start_new_session=True,  # Ctrl-C is for the controller, which stops its broker last
            )
        except OSError as error:
            raise UnavailableError(f"{self._program} cannot be started: {error}", "broker_failed") from error
        self._child = child
        self._pid_file.write_text(f"{child.pid}\n")
        self._tasks = [task for task in self._tasks if not task.done()]
        self._tasks.append(asyncio.create_task(self._pump(child), name="mosquitto log"))
        try:
            async with asyncio.timeout(START_SECONDS):
                while not await self._accepts():
                    if child.returncode is not None:
                        raise self._failure("ended at once")
                    await asyncio.sleep(0.02)
        except TimeoutError as error:
            await self._end_child()
            raise self._failure(f"does not answer after {START_SECONDS:.0f} s") from error
        log.info("mosquitto listens", host=self._listener.host, port=self.port, pid=child.pid)

    async def _supervise(self) -> None:
        pause = FIRST_PAUSE
        clock = asyncio.get_running_loop().time
        while True:
            assert self._child is not None
            began = clock()
            code = await self._child.wait()
            if clock() - began > STEADY_SECONDS:
                pause = FIRST_PAUSE
            log.error(
                "mosquitto ended", code=code, again_in_s=pause, last_words=" / ".join(list(self._last_lines)[-3:])
            )
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)
            try:
                await self._launch()
                self.restarts += 1
            except UnavailableError as error:
                log.warning("mosquitto did not start", error=str(error))

    async def _accepts(self) -> bool:
        """Whether it speaks TLS: its port opens before the certificates are read, and closes again if they are bad."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # nothing is said over it
        try:
            _, writer = await asyncio.open_connection(self._listener.host, self.port, ssl=context)
        except ssl.SSLEOFError:
            return False
        except ssl.SSLError:
            return True  # an alert: it wants a certificate of ours
        except OSError:
            return False
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        return True

    async def _pump(self, child: asyncio.subprocess.Process) -> None:
        assert child.stderr is not None
        while True:
            try:
                line = await child.stderr.readline()
            except ValueError:  # longer than the limit: its rest comes as further lines
                continue
            if not line:
                return
            text = line.decode(errors="replace").strip()
            self._last_lines.append(text)
            (log.warning if text.lower().startswith(("error", "warning")) else log.debug)("mosquitto says", line=text)

    async def _end_child(self) -> None:
        child = self._child
        if child is None or child.returncode is not None:
            return
        child.terminate()
        try:
            await asyncio.wait_for(child.wait(), STOP_SECONDS)
        except TimeoutError:
            child.kill()
            await child.wait()

    def _end_leftover(self) -> None:
        try:
            pid = int(self._pid_file.read_text())
        except (OSError, ValueError):
            return
        if not self._is_ours(pid):
            return
        log.warning("an earlier controller left its mosquitto running: it is ended", pid=pid)
        for kind in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, kind)
            if self._gone(pid):
                return

    def _gone(self, pid: int) -> bool:
        try:
            handle = os.pidfd_open(pid)
        except (OSError, AttributeError):
            return not self._is_ours(pid)
        try:
            return bool(select.select([handle], [], [], STOP_SECONDS)[0])
        finally:
            os.close(handle)

    def _is_ours(self, pid: int) -> bool:
        return runs_with(pid, self._configuration_file)

    def _failure(self, what: str) -> UnavailableError:
        return UnavailableError(
            f"mosquitto {what} (port {self.port}): {' / '.join(self._last_lines) or 'it said nothing'}", "broker_failed"
        )


def _free_port(host: str, port: int, besides: int = -1) -> int:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            found = int(probe.getsockname()[1])
        return found if found != besides else _free_port(host, port, besides)
    except OSError as error:
        raise UnavailableError(
            f"the broker cannot listen on {host}:{port}: {error}; stop what uses the port, or choose another with "
            "MUSTER_MQTT_PORT (0 for any)",
            "port_taken",
        ) from error
