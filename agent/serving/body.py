"""The body of a request over ASGI, read within its bounds in bytes and time.

Invariant: one body holds at most ``MAX_BODY`` bytes, all that are on their way together about ``MAX_READING``, and a
client that does not send what it announced is told so in the end. Does not look into a body.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from agent.serving.refusal import RefusedError

MAX_BODY: Final = 16 * 1024**2
MAX_READING: Final = 64 * 1024**2
BODY_SECONDS: Final = 30.0
DISCARD_SECONDS: Final = 5.0
DEFAULT_DEADLINE: Final = 30.0
MAX_DEADLINE_MS: Final = 3_600_000

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]


class GoneError(Exception):
    """The client closed the connection before its request was complete."""


class Bodies:
    """Reads bodies for one server."""

    def __init__(self) -> None:
        self._held = 0

    async def read(self, scope: Scope, receive: Receive) -> tuple[bytes, float]:
        """Return a request's body and the seconds that its deadline allows. Raises RefusedError or GoneError."""
        seconds, size, expects = _headers(scope)
        if size > MAX_BODY:
            if not expects:  # a client that waits for leave to send has sent nothing
                await _discard(receive)
            raise _too_large()
        limit = min(BODY_SECONDS, seconds)
        try:
            async with asyncio.timeout(limit):
                event = await receive()
                if event["type"] == "http.request" and not event.get("more_body"):
                    body: bytes = event.get("body", b"")
                else:
                    body = await self._read_more(event, receive)
        except TimeoutError as error:
            raise RefusedError(408, f"the body was not there after {limit:g} s", "bad_request") from error
        if len(body) > MAX_BODY:
            await _discard(receive)
            raise _too_large()
        return body, seconds

    async def _read_more(self, event: Event, receive: Receive) -> bytes:
        """Return the whole body, or the beginning of one that is larger than MAX_BODY."""
        body = bytearray()
        try:
            while event["type"] == "http.request":
                part = event.get("body", b"")
                self._held += len(part)
                body += part
                if len(body) > MAX_BODY or not event.get("more_body"):
                    return bytes(body)
                if self._held > MAX_READING:
                    raise RefusedError(429, "too many large bodies are on their way; send again", "overloaded", 1.0)
                event = await receive()
        finally:
            self._held -= len(body)
        raise GoneError


def _headers(scope: Scope) -> tuple[float, int, bool]:
    """Return the seconds that the request allows, the size it announces, whether it waits for leave to send."""
    seconds, size, expects = DEFAULT_DEADLINE, 0, False
    for name, value in scope["headers"]:
        if name == b"content-length":
            size = int(value) if value.isdigit() else MAX_BODY + 1
        elif name == b"muster-deadline-ms":
            if not value.isdigit() or not 0 < int(value) <= MAX_DEADLINE_MS:
                raise RefusedError(
                    400, f"Muster-Deadline-Ms must be whole milliseconds from 1 to {MAX_DEADLINE_MS}", "bad_request"
                )
            seconds = int(value) / 1000
        elif name == b"inference-header-content-length":
            raise RefusedError(400, "tensors in binary form are not taken here; send them as JSON", "bad_request")
        elif name == b"content-encoding" and value != b"identity":
            raise RefusedError(415, "send the body without Content-Encoding", "bad_request")
        elif name == b"expect":
            expects = True
    return seconds, size, expects


async def _discard(receive: Receive) -> None:
    """Read on for a while without keeping anything: a connection closed on a client that sends loses the answer."""
    size = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DISCARD_SECONDS):
            while size < 4 * MAX_BODY:
                event = await receive()
                size += len(event.get("body", b""))
                if not event.get("more_body"):
                    return


def _too_large() -> RefusedError:
    return RefusedError(413, f"the body is larger than {MAX_BODY} bytes; send fewer rows at a time", "too_large")
