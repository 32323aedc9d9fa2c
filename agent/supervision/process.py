"""Keeps one serving process alive: adopts the one that runs, or starts one, and starts it again when it dies.

Invariant: serving runs in a session of its own and survives the agent's end, also by SIGKILL; at no time are two of
them started for one data directory. A process that does not answer any more, or speaks another protocol, is ended and
replaced. Its log is bounded. Does not load builds: ``on_start`` tells those who do.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from agent.errors import ServingError
from agent.serving_protocol import SOCKET_NAME, ServingState
from agent.settings import Settings
from agent.supervision.client import ServingClient

log = structlog.get_logger()

START_SECONDS: Final = 60.0
CHECK_SECONDS: Final = 10.0
MISSES: Final = 3
"""Checks in a row without an answer after which the process counts as stuck."""
STOP_SECONDS: Final = 20.0
MAX_LOG: Final = 4 * 1024**2
KEPT_LOG: Final = 256 * 1024
BACKOFF_BASE: Final = 0.5
BACKOFF_CAP: Final = 60.0
STEADY_SECONDS: Final = 60.0


class ServingProcess:
    """The serving process of one data directory.

    client: speaks to it. problem: why it does not run, "" while it does. pid: 0 while there is none.
    on_start: awaited with its state each time a process was started or adopted.
    """

    def __init__(self, settings: Settings, on_start: Callable[[ServingState], Awaitable[None]] | None = None) -> None:
        self._settings = settings
        self._data = settings.data_directory
        self._log = self._data / "serving.log"
        self._on_start = on_start
        self._stopping = False
        self._child: subprocess.Popen[bytes] | None = None
        self.client = ServingClient(self._data / SOCKET_NAME)
        self.problem = "not started yet"
        self.pid = 0

    async def run(self) -> None:
        """Keep the process alive until ``stop`` was called. Cancelling this leaves the process running."""
        attempt = 0
        while not self._is_stopping():
            begun = time.monotonic()
            try:
                state = await self._find_or_start()
                self.pid, self.problem = state.pid, ""
                if self._on_start is not None:
                    await self._on_start(state)
                await self._watch(state.pid)
                self.problem = "the serving process ended"
            except ServingError as error:
                self.problem = str(error)
            self.pid = 0
            if self._is_stopping():
                return
            attempt = 0 if time.monotonic() - begun > STEADY_SECONDS else attempt + 1
            wait = random.uniform(0.5, 1.0) * min(BACKOFF_CAP, BACKOFF_BASE * 2.0 ** min(attempt - 1, 10))
            log.warning("serving is down", reason=self.problem, again_in_s=round(wait, 2), log=str(self._log))
            await asyncio.sleep(wait)

    async def stop(self) -> None:
        """End the process, after it has answered what waits; it is not started again."""
        self._stopping = True
        pid = self.client.peer_pid()
        if pid is not None:
            await self._end(pid)
        elif self._child is not None and self._child.poll() is None:  # it is still starting: nobody there to ask
            await self._end(self._child.pid, ask=False)

    async def restart(self) -> None:
        """End the process, after it has answered what waits, and return once another answers.

        Raises ServingError when none does within ``START_SECONDS``.
        """
        old = self.pid
        if old:
            await self._end(old)
        until = time.monotonic() + START_SECONDS
        while self.pid in (0, old):
            if time.monotonic() > until:
                raise ServingError(f"serving did not come back: {self.problem}", "start")
            await asyncio.sleep(0.05)

    def _is_stopping(self) -> bool:
        return self._stopping

    async def _find_or_start(self) -> ServingState:
        pid = self.client.peer_pid()
        if pid is not None:
            try:
                state = await self._patient_state()
            except ServingError as error:
                if not self._settings.serving_managed:
                    raise
                log.warning("the serving process that runs cannot be used, ending it", pid=pid, reason=str(error))
                await self._end(pid, ask=False)
            else:
                log.info("serving adopted", pid=state.pid, port=state.http_port)
                return state
        if not self._settings.serving_managed:
            raise ServingError(f"no serving process answers at {self._data / SOCKET_NAME}; start it", "unreachable")
        return await self._start()

    async def _patient_state(self) -> ServingState:
        """Return the state of the process that runs: one that is only slow is not to lose what it serves."""
        for _ in range(MISSES - 1):
            try:
                return await self.client.state()
            except ServingError as error:
                if error.code != "timeout":
                    raise
        return await self.client.state()

    async def _start(self) -> ServingState:
        settings = self._settings
        command = [sys.executable, "-m", "agent.serving", "--data", str(self._data)]
        command += ["--host", settings.serving_host, "--port", str(settings.serving_port)]
        if settings.owner_pid:
            command += ["--owner-pid", str(settings.owner_pid)]
        self._bound_log()
        try:
            with self._log.open("ab") as file:
                # Popen and not asyncio's: the child must not be bound to this event loop's life.
                self._child = subprocess.Popen(  # noqa: ASYNC220  # a fork, milliseconds
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                    start_new_session=True,
                    cwd="/",
                    env=os.environ | {"MALLOC_ARENA_MAX": "2"},
                )
        except OSError as error:
            raise ServingError(f"serving cannot be started: {error}", "start") from error
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            if self._child.poll() is not None:
                raise ServingError(f"serving ended at its start: {self._last_line()}", "start")
            with contextlib.suppress(ServingError):
                state = await self.client.state()
                log.info("serving started", pid=state.pid, port=state.http_port)
                return state
            await asyncio.sleep(0.05)
        await self._kill(self._child.pid)
        raise ServingError(f"serving did not answer within {START_SECONDS:.0f} s of its start", "start")

    async def _watch(self, pid: int) -> None:
        """Return when process ``pid`` is gone; end it when it does not answer any more."""
        missed = 0
        while not await self._gone(pid, CHECK_SECONDS):
            self._bound_log()
            try:
                await self.client.state()
                missed = 0
            except ServingError as error:
                missed += 1
                log.warning("serving does not answer", misses=missed, reason=str(error))
            if missed >= MISSES:
                await self._kill(pid)
                raise ServingError(f"serving did not answer {MISSES} times in a row and was ended", "stuck")

    async def _gone(self, pid: int, seconds: float) -> bool:
        """Wait at most ``seconds`` for the end of process ``pid``, whoever started it; return whether it is gone."""
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            return True
        except OSError:  # a kernel before 5.3
            return await self._poll(pid, seconds)
        loop.add_reader(descriptor, ended.set)
        try:
            async with asyncio.timeout(seconds):
                await ended.wait()
        except TimeoutError:
            return False
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)
        self._reap(pid)
        return True

    async def _poll(self, pid: int, seconds: float) -> bool:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._reap(pid)
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                return True
            await asyncio.sleep(0.5)
        return False

    def _reap(self, pid: int) -> None:
        """Collect the exit status of our own child, so that it does not stay as a zombie."""
        if self._child is not None and self._child.pid == pid:
            self._child.poll()

    async def _end(self, pid: int, *, ask: bool = True) -> None:
        """End process ``pid``: by its own protocol, else by a signal that it may answer, else by one that it cannot."""
        if ask:
            try:
                await self.client.stop()
            except ServingError as error:
                log.warning("serving does not stop when asked, sending a signal", reason=str(error))
                ask = False
        if not ask:
            _signal(pid, signal.SIGTERM)
        if not await self._gone(pid, STOP_SECONDS):
            await self._kill(pid)

    async def _kill(self, pid: int) -> None:
        _signal(pid, signal.SIGKILL)
        await self._gone(pid, STOP_SECONDS)

    def _bound_log(self) -> None:
        """Keep only the end of a log that has become too large. The process appends, so it goes on at the new end."""
        with contextlib.suppress(OSError):
            if self._log.stat().st_size <= MAX_LOG:
                return
            with self._log.open("r+b") as file:
                file.seek(-KEPT_LOG, os.SEEK_END)
                kept = file.read()
                file.seek(0)
                file.truncate()
                file.write(kept)

    def _last_line(self) -> str:
        try:
            with self._log.open("rb") as file:
                file.seek(0, os.SEEK_END)
                file.seek(max(0, file.tell() - 4096))
                lines = file.read().decode(errors="replace").strip().splitlines()
        except OSError as error:
            return f"its log cannot be read: {error}"
        return lines[-1][:500] if lines else "it said nothing"


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)
