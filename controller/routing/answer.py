"""How an answer goes to a client: what of a device's headers is believed, and how long a client may take.

Invariant: no header of a device is passed on that was not asked for or has a form which could end the line; a client is
waited for as long as it takes something; the room of an answer is returned when nobody takes it any more. Decides
nothing about requests (`front.py`).
"""

from __future__ import annotations

import asyncio
import re
from typing import Final

import msgspec
import structlog
from starlette.types import Send

from controller.routing.forward import Delivered

PIECE: Final = 256 * 1024  # bytes of an answer handed to the socket at once
PIECE_SECONDS: Final = 30.0  # for a client to take one piece: slow links are served, who reads nothing is let go
_PASSED_BACK: Final = frozenset({"content-type", "content-encoding", "inference-header-content-length"})
_OWN: Final = frozenset({"muster-device", "muster-attempts", "muster-route-ms"})
_HEADER_NAME: Final = re.compile(r"[a-z0-9-]{1,64}\Z")
_HEADER_VALUE: Final = re.compile(r"[\x20-\x7e]{0,512}\Z")

Headers = list[tuple[bytes, bytes]]

log = structlog.get_logger()


def retry_headers(seconds: int | None, request_id: str | None) -> Headers:
    """Return the headers that say when to come back (seconds, None for never) and which request this was."""
    headers: Headers = []
    if seconds is not None:
        headers.append((b"retry-after", str(seconds).encode()))
    if request_id is not None:
        headers.append((b"x-request-id", request_id.encode()))
    return headers


async def send_json(send: Send, status: int, fields: dict[str, object], headers: Headers | None = None) -> None:
    """Answer with ``fields`` in JSON."""
    await send_whole(
        send, status, [(b"content-type", b"application/json"), *(headers or ())], msgspec.json.encode(fields)
    )


async def send_whole(send: Send, status: int, headers: Headers, body: bytes) -> None:
    """Answer with a body that is small."""
    headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def send_answer(send: Send, result: Delivered, request_id: str) -> None:
    """Hand a device's answer on, no faster than the client takes it, and return its room."""
    stream = result.stream
    head, body = stream.head, stream.body
    assert head is not None
    headers: Headers = [
        (b"content-length", str(len(body)).encode()),
        (b"muster-device", stream.tunnel.live.device.encode()),
        (b"muster-attempts", str(result.attempts).encode()),
        (b"muster-route-ms", f"{result.routed * 1000:.2f}".encode()),
        (b"x-request-id", request_id.encode()),
    ]
    for name, value in {name.lower(): value for name, value in head.headers.items()}.items():
        wanted = name in _PASSED_BACK or (name.startswith("muster-") and name not in _OWN)
        if wanted and _HEADER_NAME.match(name) and _HEADER_VALUE.match(value):
            headers.append((name.encode(), value.encode()))
    try:
        await send({"type": "http.response.start", "status": head.status, "headers": headers})
        if len(body) <= PIECE:
            return await send({"type": "http.response.body", "body": bytes(body)})
        view = memoryview(body)
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(PIECE_SECONDS) as limit:
            for start in range(0, len(body), PIECE):
                limit.reschedule(loop.time() + PIECE_SECONDS)
                piece = bytes(view[start : start + PIECE])
                await send({"type": "http.response.body", "body": piece, "more_body": start + PIECE < len(body)})
    except TimeoutError:
        log.warning("a client did not take its answer", request=request_id)  # returning now closes its connection
    finally:
        stream.release()
    return None
