"""Applications on sockets until a signal, and then a quiet end.

Invariant: on SIGTERM, SIGINT or the owner's end, no new request is taken, those that wait are answered (for at most
``DRAIN_SECONDS``), then the sockets close. An idle process has nothing to do: no timer, no poll but the owner's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from typing import Any, Final, TypeVar

import structlog
import uvicorn
import uvloop

log = structlog.get_logger()

DRAIN_SECONDS: Final = 10.0
OWNER_SECONDS: Final = 2.0
MAX_CONNECTIONS: Final = 1024
_T = TypeVar("_T")


class HttpServer(uvicorn.Server):
    """uvicorn without its signals (the process has its own) and without its ten ticks a second."""

    def __init__(self, application: Any) -> None:
        super().__init__(
            uvicorn.Config(
                application,
                http="httptools",
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="warning",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                date_header=False,
                limit_concurrency=MAX_CONNECTIONS,
                timeout_keep_alive=75,
                timeout_graceful_shutdown=5,
            )
        )
        self._end = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave signals alone."""
        yield

    async def main_loop(self) -> None:
        """Wait for ``end``."""
        await self._end.wait()

    def end(self) -> None:
        """Close the sockets, after the answers that are on their way."""
        self.should_exit = True
        self._end.set()


class Stop:
    """Why and when the process shall end."""

    def __init__(self) -> None:
        self.reason = ""
        self._event = asyncio.Event()

    def __call__(self, reason: str = "asked to") -> None:
        """End soon; the first reason counts."""
        self.reason = self.reason or reason
        self._event.set()

    async def wait(self) -> None:
        """Return when the process shall end."""
        await self._event.wait()


async def host(
    applications: Sequence[tuple[Any, socket.socket]],
    begin: Callable[[], Awaitable[None]],
    drain: Callable[[], Awaitable[None]],
    stop: Stop,
    owner_pid: int = 0,
) -> None:
    """Serve each application on its socket, call ``begin``, wait for ``stop``, a signal or the owner's end, drain."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, signal.Signals(number).name)
    servers = [HttpServer(application) for application, _ in applications]
    tasks = [
        asyncio.create_task(server.serve(sockets=[listening]))
        for server, (_, listening) in zip(servers, applications, strict=True)
    ]
    watch = asyncio.create_task(_watch_owner(owner_pid, stop)) if owner_pid else None
    begun = asyncio.create_task(_begin(begin, stop))
    try:
        await stop.wait()
        log.info("stopping", reason=stop.reason)
        begun.cancel()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(drain(), DRAIN_SECONDS)
    finally:
        if watch is not None:
            watch.cancel()
        for server in servers:
            server.end()
        await asyncio.gather(*tasks)
    await asyncio.gather(begun, return_exceptions=True)
    if not begun.cancelled() and (error := begun.exception()) is not None:
        raise error


def run(main: Coroutine[Any, Any, _T]) -> _T:
    """Run ``main`` in a new event loop."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


async def _begin(begin: Callable[[], Awaitable[None]], stop: Stop) -> None:
    try:
        await begin()
    except Exception as error:
        stop(f"cannot start: {error}")
        raise


async def _watch_owner(pid: int, stop: Stop) -> None:
    while True:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            stop(f"its owner, process {pid}, is gone")
            return
        except PermissionError:
            pass
        await asyncio.sleep(OWNER_SECONDS)
