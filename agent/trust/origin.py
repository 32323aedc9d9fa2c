"""Where something is fetched from over HTTP, and one connection to there.

Invariant: only https leaves this machine, and it believes the given CA and no other when one is given. Sends no request
and knows no proxy. Used for metadata (`metadata_fetcher.py`) and for artifacts (`builds/transfer.py`).
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from agent.errors import DeviceError

CONNECT_SECONDS: Final = 10.0
LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True, slots=True)
class Origin:
    """``prefix``: path before every request, without a slash at its end; ``context``: None for plain HTTP."""

    host: str
    port: int
    prefix: str
    context: ssl.SSLContext | None

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def parse_origin(url: str, ca_file: Path | None = None) -> Origin:
    """Return where ``url`` points. Raises DeviceError: "bad_address", "bad_ca".

    url: https://HOST[:PORT][/PATH]; http is taken for a loopback address only. ca_file: None for the system's own CAs.
    """
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as error:
        raise DeviceError(
            f"{url!r} is not an address: {error}; it looks like https://HOST:PORT", "bad_address"
        ) from error
    if not host or parts.scheme not in ("https", "http") or parts.query or parts.fragment or parts.username:
        raise DeviceError(f"{url!r} is not an address to fetch from; it looks like https://HOST:PORT", "bad_address")
    prefix = parts.path.rstrip("/")
    if parts.scheme == "http":
        if host not in LOOPBACK:
            raise DeviceError(f"{url!r}: only https goes to another machine", "bad_address")
        return Origin(host, port, prefix, None)
    try:
        context = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
    except (OSError, ssl.SSLError) as error:
        raise DeviceError(f"cannot read the fleet CA {ca_file}: {error}; enrol the device again", "bad_ca") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return Origin(host, port, prefix, context)


def connect(
    origin: Origin, hold: Callable[[socket.socket], socket.socket], seconds: float = CONNECT_SECONDS
) -> http.client.HTTPConnection:
    """Return an open connection. Raises OSError (ssl.SSLError is one) and what ``hold`` raises.

    hold: is given each socket as soon as it is there, so that another thread can shut it; returns it.
    """
    plain = socket.create_connection((origin.host, origin.port), seconds)
    connection = http.client.HTTPConnection(origin.host, origin.port)
    try:
        connection.sock = hold(plain)
        if origin.context is not None:
            secured = origin.context.wrap_socket(plain, server_hostname=origin.host, do_handshake_on_connect=False)
            connection.sock = hold(secured)
            secured.do_handshake()
    except BaseException as error:
        connection.close()
        if isinstance(error, ValueError) and not isinstance(error, OSError):  # a name that no certificate can have
            raise OSError(str(error)) from error
        raise
    return connection


def shut(held: socket.socket) -> None:
    """End whatever another thread waits for on ``held``: of the plain socket below TLS, nothing is to be written."""
    with contextlib.suppress(OSError):
        socket.socket.shutdown(held, socket.SHUT_RDWR)
