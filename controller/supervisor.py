"""Starts the controller's processes, starts again what dies, and stops all of them together.

Invariant: whatever this supervisor started has ended when ``run`` returns, also when starting failed half way; it never
signals a process that it did not start. Does not know what its children do: each is a command and a name.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog

STOP_SECONDS: Final = 10.0
COULD_NOT_START: Final = 127  # as a shell says it
FIRST_DELAY: Final = 0.2
LONGEST_DELAY: Final = 15.0
STEADY_SECONDS: Final = 30.0  # a child that ran this long begins again with a short delay
LOG_BYTES: Final = 8 * 1024**2
LOOK_SECONDS: Final = 30.0  # at the size of the logs of those that run

log = structlog.get_logger()


def delay_before(restarts: int, rng: random.Random) -> float:
    """Return the seconds to wait before restart number ``restarts`` (from 1): doubling, with jitter, bounded."""
    doubled: float = FIRST_DELAY * 2 ** min(restarts - 1, 10)
    return min(LONGEST_DELAY, doubled) * rng.uniform(0.5, 1.0)


@dataclass
class Child:
    """One process to keep alive. ``log``: its output is appended there; cut to half when it grows past its bound."""

    name: str
    command: Sequence[str]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    directory: Path | None = None
    restarts: int = 0
    pid: int | None = None
    first_exit: int | None = None  # of the first run, when it ended at once: the start itself failed


class Supervisor:
    """Keeps children alive until ``stop`` is set.

    on_exit is called with the child and its exit status each time one ends by itself.
    """

    def __init__(self, stop: asyncio.Event, on_exit: Callable[[Child, int], None] | None = None) -> None:
        self._stop = stop
        self._on_exit = on_exit
        self._tasks: dict[asyncio.Task[None], Child] = {}
        self._rng = random.Random()

    def start(self, child: Child) -> None:
        """Begin to keep ``child`` alive."""
        self._tasks[asyncio.create_task(self._keep(child), name=child.name)] = child

    async def run(self) -> None:
        """Wait for ``stop``, then end every child."""
        await self._stop.wait()
        await self.end()

    async def end(self) -> None:
        """End every child: SIGTERM, and after ``STOP_SECONDS`` SIGKILL."""
        self._stop.set()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _keep(self, child: Child) -> None:
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                status = await self._run_once(child)
            except OSError as error:  # no memory, no file, no program: it may be there again at the next try
                status = COULD_NOT_START
                log.warning("a process could not be started", name=child.name, error=str(error))
            if self._stop.is_set():
                return
            lived = time.monotonic() - began
            child.restarts = 1 if lived >= STEADY_SECONDS else child.restarts + 1
            if child.restarts == 1 and lived < STEADY_SECONDS and child.first_exit is None:
                child.first_exit = status
            pause = delay_before(child.restarts, self._rng)
            log.warning(
                "a process ended", name=child.name, status=status, lived_s=round(lived, 1), again_s=round(pause, 1)
            )
            if self._on_exit is not None:
                self._on_exit(child, status)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), pause)

    async def _run_once(self, child: Child) -> int:
        child.log.parent.mkdir(parents=True, exist_ok=True)
        trim(child.log)
        with child.log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *child.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=os.environ | dict(child.environment),
                cwd=child.directory,
                start_new_session=True,  # Ctrl-C reaches this process alone, which then ends the others in order
            )
        child.pid = process.pid
        ended = asyncio.create_task(process.wait())
        asked = asyncio.create_task(self._stop.wait())
        try:
            while not (ended.done() or asked.done()):
                await asyncio.wait({ended, asked}, timeout=LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                trim(child.log)
            if not ended.done():
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()
                await asyncio.wait({ended}, timeout=STOP_SECONDS)
            if not ended.done():
                log.warning("a process did not end when asked, so it is killed", name=child.name, pid=process.pid)
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            return await ended
        finally:
            asked.cancel()
            child.pid = None


def trim(file: Path) -> None:
    """Keep the last half of a log that grew past its bound; who writes to its end goes on at the new one."""
    with contextlib.suppress(OSError):  # a log is not worth a process
        if file.stat().st_size > LOG_BYTES:
            data = file.read_bytes()[-LOG_BYTES // 2 :]
            file.write_bytes(data[data.find(b"\n") + 1 :])


def role_command(*roles: str) -> list[str]:
    """Return the command that runs ``roles`` of this controller in a process of their own."""
    return [sys.executable, "-m", "controller", "role", *roles]


def stop_on_signals(stop: asyncio.Event) -> None:
    """Set ``stop`` at SIGINT and SIGTERM; a second SIGINT ends this process at once."""
    loop = asyncio.get_running_loop()

    def asked() -> None:
        if stop.is_set():
            loop.remove_signal_handler(signal.SIGINT)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, asked)
