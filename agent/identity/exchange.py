"""One HTTPS request to the controller: bounded in time and size, its errors in this program's words.

Invariant: an exchange ends within its time whatever the far side does, and no more than ``limit`` bytes of it are
kept. Blocks: call it in a thread. Follows no redirects and knows no proxies. What an answer means, the caller knows.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from agent.errors import ControllerError, DeviceError, UnreachableError, UsageError

TIMEOUT: Final = 15.0  # seconds for the whole exchange
LIMIT: Final = 256 * 1024
_NOT_YET_VALID: Final = 9  # OpenSSL's X509_V_ERR_CERT_NOT_YET_VALID


@dataclass(frozen=True, slots=True)
class Address:
    """Host, port and path prefix of the controller's API."""

    host: str
    port: int
    prefix: str

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"https://{host}:{self.port}{self.prefix}"


def parse_url(url: str) -> Address:
    """Return where ``url`` points. Raises UsageError unless it is https://HOST[:PORT]."""
    try:
        parts = urlsplit(url.strip())
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise UsageError(f"{url!r} is not an address: {error}", "bad_url") from error
    if parts.scheme != "https" or not host or parts.query or parts.fragment or parts.username:
        raise UsageError(f"{url!r} is not the controller's address; it looks like https://HOST:7070", "bad_url")
    return Address(host, port or 443, parts.path.rstrip("/"))


def verified(ca_file: Path) -> ssl.SSLContext:
    """Return a context that believes only what descends from ``ca_file``, and checks host names. Raises DeviceError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(cafile=ca_file)
    except (OSError, ValueError) as error:
        raise DeviceError(f"the pinned CA {ca_file} cannot be used: {error}", "bad_ca") from error
    return context


def unverified() -> ssl.SSLContext:
    """Return a context that believes anyone: only for bytes that are checked against a fingerprint (wire 8.2)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def exchange(
    address: Address,
    context: ssl.SSLContext,
    method: str,
    path: str,
    body: bytes | None = None,
    *,
    content_type: str = "application/json",
    bearer: str = "",
    timeout: float = TIMEOUT,
    limit: int = LIMIT,
) -> bytes:
    """Return the body of a 2xx answer.

    Raises UnreachableError (nobody there, too slow, not HTTP, 5xx, 429, this device's clock is behind) or
    ControllerError (any other status, with the controller's words and code; a certificate that does not descend from
    the pinned CA).
    """
    connection = http.client.HTTPSConnection(address.host, address.port, timeout=timeout, context=context)
    late = threading.Event()
    lines: list[socket.socket] = []  # the connection forgets its socket while the answer is still being read from it
    watchdog = threading.Timer(timeout, _cut, [connection, lines, late])  # time-outs alone never end a slow drip
    watchdog.daemon = True
    watchdog.start()
    try:
        connection.connect()
        lines.append(connection.sock)
        headers = {"Content-Type": content_type} if body is not None else {}
        if bearer:
            headers["Authorization"] = f"Bearer {bearer}"
        connection.request(method, address.prefix + path, body, headers)
        answer = connection.getresponse()
        data = answer.read(limit + 1)
    except ssl.SSLCertVerificationError as error:
        if error.verify_code == _NOT_YET_VALID:  # boards without a clock begin in the past, until the network tells
            raise UnreachableError(
                f"{address} has a certificate that is not valid yet: it is {time.strftime('%Y-%m-%d %H:%M')} by this "
                "device's clock; set it, or wait until it is set",
                "clock",
            ) from error
        raise ControllerError(
            f"{address} is not the controller that this device trusts: {error.verify_message}", "wrong_controller"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        raise UnreachableError(
            f"no answer from {address}: {str(error) or type(error).__name__}; is the controller running there?",
            "unreachable",
        ) from error
    finally:
        watchdog.cancel()
        connection.close()
    if late.is_set():
        raise UnreachableError(f"no whole answer from {address} within {timeout:g} s", "unreachable")
    if not 200 <= answer.status < 300:
        raise _refusal(address, answer.status, data[:limit])
    length = answer.headers.get("Content-Length", "")
    if len(data) > limit or (length.isdecimal() and len(data) != int(length)):
        raise UnreachableError(f"the answer from {address} is too large or incomplete", "bad_answer")
    return data


def _cut(connection: http.client.HTTPSConnection, lines: list[socket.socket], late: threading.Event) -> None:
    late.set()
    for line in (*lines, connection.sock):
        if line is not None:
            with contextlib.suppress(OSError):
                # of the plain socket below TLS: nothing is to be written any more, only the blocked read must end
                socket.socket.shutdown(line, socket.SHUT_RDWR)


def _refusal(address: Address, status: int, body: bytes) -> Exception:
    words, code = "", ""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        fields = None
    if isinstance(fields, dict):
        said = fields.get("error") or fields.get("detail") or ""
        words = said if isinstance(said, str) else json.dumps(said)
        code = str(fields.get("code") or "")[:64]
    message = f"{address} says: {words[:500] or f'status {status}'}"
    if status >= 500 or status == 429:
        return UnreachableError(message, code or "controller_busy")
    return ControllerError(message, code or f"http_{status}")
