"""A client's request, taken from HTTP and checked before anything is done for it.

Invariant: nothing of a body is read before its length was checked and room for it was reserved; a value from a header
is used only when it has the form that is asked for. Does not authenticate and does not route.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import Final

from starlette.types import Message, Receive, Scope

from controller.errors import ControllerError, InvalidError, TooLargeError, TooManyError
from controller.routing.budget import Budget

DEFAULT_DEADLINE: Final = 10.0  # seconds
MAX_DEADLINE: Final = 120.0
_MODEL: Final = re.compile(
    r"/v2/models/([a-z0-9][a-z0-9._-]{0,62})(?:/versions/([A-Za-z0-9][A-Za-z0-9._-]{0,62}))?(?:/(infer|ready))?\Z"
)
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:/=+-]{1,128}\Z")
_PRINTABLE: Final = re.compile(r"[\x20-\x7e]{0,512}\Z")
_FORWARDED: Final = frozenset(
    {b"accept", b"content-encoding", b"content-type", b"inference-header-content-length", b"traceparent"}
)


class GoneError(ControllerError):
    """The client went away: there is nobody to answer. The status is for the figures only."""

    status = 499


class SlowError(ControllerError):
    """The client did not send its request before its own deadline."""

    status = 408


@dataclass(frozen=True, slots=True)
class Target:
    """What a path names. ``verb``: "infer", "ready", or empty for the model's description."""

    model: str
    version: str | None
    verb: str

    @property
    def path(self) -> str:
        """The path as a device is asked: made anew, never the client's own bytes."""
        version = f"/versions/{self.version}" if self.version else ""
        return f"/v2/models/{self.model}{version}{'/infer' if self.verb == 'infer' else ''}"


@dataclass(frozen=True, slots=True)
class Head:
    """The headers that matter. ``length``: of the body, None when it is not announced; ``seconds``: the deadline."""

    token: str | None
    request_id: str | None
    seconds: float
    length: int | None
    forwarded: dict[str, str]


def parse_target(path: str) -> Target | None:
    """Return what ``path`` names, None for a path that is none of a model's."""
    match = _MODEL.match(path)
    return Target(match[1], match[2], match[3] or "") if match else None


def request_id_of(scope: Scope) -> str | None:
    """Return the client's own request id when it is plain, else None."""
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            text = value.decode("latin-1")
            return text if _REQUEST_ID.match(text) else None
    return None


def read_head(scope: Scope) -> Head:
    """Return what the headers say. Raises InvalidError."""
    token: str | None = None
    request_id: str | None = None
    seconds = DEFAULT_DEADLINE
    length: int | None = None
    forwarded: dict[str, str] = {}
    for name, value in scope["headers"]:
        if name in _FORWARDED:
            text = value.decode("latin-1")
            if not _PRINTABLE.match(text):
                raise InvalidError(f"the header {name.decode()} is too long or has strange characters", "bad_header")
            forwarded[name.decode()] = text
        elif name == b"authorization":
            scheme, _, credential = value.decode("latin-1").partition(" ")
            token = credential.strip() if scheme.lower() == "bearer" else None
        elif name == b"x-request-id":
            text = value.decode("latin-1")
            request_id = text if _REQUEST_ID.match(text) else None
        elif name == b"muster-deadline-ms":
            seconds = _deadline(value)
        elif name == b"content-length":
            length = int(value) if value.isdigit() and len(value) < 16 else None
    return Head(token, request_id, seconds, length, forwarded)


async def read_body(
    receive: Receive, head: Head, limit: int, budget: Budget, tenant: str, deadline: float
) -> tuple[bytes, int]:
    """Return the body and the bytes that were reserved for it in ``budget``; the caller gives them back.

    Raises TooLargeError, TooManyError, SlowError (loop time ``deadline`` passed) and GoneError; nothing stays reserved.
    """
    if head.length is not None and head.length > limit:
        raise _too_large(limit)
    reserved = head.length or 0
    if not budget.take(tenant, reserved):
        raise _no_room()
    try:
        message = await _first(receive, deadline)
        body = message["body"]
        if not message["more_body"]:
            if len(body) > reserved:
                reserved = _grow(budget, tenant, reserved, len(body), limit)
            return body, reserved
        whole = bytearray(body)
        async with asyncio.timeout_at(deadline):
            while True:
                if len(whole) > reserved:
                    reserved = _grow(budget, tenant, reserved, len(whole), limit)
                if not message["more_body"]:
                    return bytes(whole), reserved
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise GoneError("the client went away")
                whole += message["body"]
    except BaseException as error:
        budget.give(tenant, reserved)
        if isinstance(error, TimeoutError):
            raise SlowError("the request did not arrive before its deadline", "slow_client") from error
        raise


async def _first(receive: Receive, deadline: float) -> Message:
    async with asyncio.timeout_at(deadline):
        message = await receive()
    if message["type"] == "http.disconnect":
        raise GoneError("the client went away")
    return message


def _grow(budget: Budget, tenant: str, reserved: int, needed: int, limit: int) -> int:
    """Reserve up to ``needed`` bytes for a body of unknown length; returns what is reserved then."""
    if needed > limit:
        raise _too_large(limit)
    if not budget.take(tenant, needed - reserved):
        raise _no_room()
    return needed


def _too_large(limit: int) -> TooLargeError:
    return TooLargeError(f"the body is larger than the {limit} bytes that this gateway takes", "body_too_large")


def _no_room() -> TooManyError:
    return TooManyError("the gateway holds as many bytes of this tenant as it may: try again", "gateway_full")


def _deadline(value: bytes) -> float:
    if not value.isdigit() or not 0 < len(value) < 10 or int(value) == 0:
        raise InvalidError("Muster-Deadline-Ms is a whole number of milliseconds, at least 1", "bad_deadline")
    return min(int(value) / 1000, MAX_DEADLINE)
