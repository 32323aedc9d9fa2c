"""HTTP servers inside our own loop: uvicorn without its signal handlers, on sockets that were opened first.

Invariant: a port that is taken is an error before anything else starts. Knows no application.
"""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import uvicorn

from controller.errors import ConflictError, InvalidError
from controller.http_protocol import LOOK_SECONDS, BoundedHttp

DEAD_PEER_SECONDS: Final = 30  # a peer that acknowledges nothing for so long is gone, whatever TCP hopes
BACKLOG: Final = 2048
_TICKS: Final = 10  # of uvicorn's main loop, a second


class Server(uvicorn.Server):
    """uvicorn, without its signal handlers: who starts the role owns the signals. ``listening``: set once it does."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start as uvicorn does, and tell."""
        await super().startup(sockets)
        self.listening.set()

    async def on_tick(self, counter: int) -> bool:
        """Do what uvicorn does ten times a second, and close connections on which no request comes."""
        if counter % (_TICKS * LOOK_SECONDS) == 0:
            for connection in tuple(self.server_state.connections):
                if isinstance(connection, BoundedHttp):
                    connection.look()
        return await super().on_tick(counter)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield


def listen(host: str, port: int, setting: str) -> socket.socket:
    """Return a socket that listens on ``host`` and ``port`` (0 for any free one).

    setting: the name of the setting to change, for the message. Raises ConflictError or InvalidError.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise InvalidError(f"{host!r} is no address to listen on: {error}", "bad_address") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # inherited by every connection: a peer without power would else hold its socket for a quarter of an hour
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_PEER_SECONDS * 1000)
        listener.bind(address)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise ConflictError(
            f"port {port} on {host} cannot be used ({error.strerror}): stop what uses it, or choose another with "
            f"{setting} (0 for any)",
            "port_taken",
        ) from error
    return listener


def allow_connections(wanted: int) -> int:
    """Let this process hold ``wanted`` sockets and files at once, if the system lets it; return how many it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft == resource.RLIM_INFINITY else soft
