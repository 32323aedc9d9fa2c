"""Frames of the tunnel (wire 9): requests and answers multiplexed over one WebSocket that the device opened.

Invariant: ``decode_frame(encode_frame(f)) == f``, and no frame is larger than ``MAX_FRAME``. Bodies travel in chunks
so that a small request is never stuck behind a large one. Knows neither HTTP nor sockets: heads are plain data.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from wire.errors import MalformedError

CHUNK: Final = 64 * 1024
MAX_HEAD: Final = 16 * 1024
MAX_FRAME: Final = CHUNK + MAX_HEAD + 16
SUBPROTOCOL: Final = "muster-tunnel-1"
_PREFIX: Final = struct.Struct(">BBIH")  # kind, flags, stream, length of the head
_END: Final = 1


class Kind(IntEnum):
    """What a frame is. STATUS travels on stream 0 from the device; all others belong to a request's stream."""

    REQUEST = 1  # gateway → device: head RequestHead
    RESPONSE = 2  # device → gateway: head ResponseHead
    BODY = 3  # either way: a further chunk
    CANCEL = 4  # gateway → device: nobody waits any more
    STATUS = 5  # device → gateway: head Status


@dataclass(frozen=True, slots=True)
class Frame:
    """``head``: JSON bytes or empty; ``body``: at most CHUNK bytes; ``end``: the stream's last frame this way."""

    kind: Kind
    stream: int
    head: bytes = b""
    body: bytes = b""
    end: bool = False


class RequestHead(msgspec.Struct, frozen=True, kw_only=True):
    """``deadline_ms``: how long the answer is still of use; ``body_bytes``: of the whole body."""

    method: Annotated[str, Meta(max_length=16)]
    path: Annotated[str, Meta(max_length=2048)]
    headers: dict[str, str]
    deadline_ms: Annotated[int, Meta(ge=1)]
    body_bytes: Annotated[int, Meta(ge=0)]


class ResponseHead(msgspec.Struct, frozen=True, kw_only=True):
    """The answer's status, headers and body length in bytes."""

    status: Annotated[int, Meta(ge=100, le=599)]
    headers: dict[str, str]
    body_bytes: Annotated[int, Meta(ge=0)]


class ServedModel(msgspec.Struct, frozen=True, kw_only=True):
    """One model that the device can answer for now."""

    name: str
    version: str
    build: str
    ready: bool
    queued: int
    p50_ms: float | None = None


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """Sent at once when it changes, and every second (wire 9.4)."""

    models: Annotated[list[ServedModel], Meta(max_length=256)]
    draining: bool = False


def encode_frame(frame: Frame) -> bytes:
    """Return the bytes of ``frame``. Raises MalformedError when a part is too large."""
    if len(frame.head) > MAX_HEAD or len(frame.body) > CHUNK:
        raise MalformedError(
            f"frame with a head of {len(frame.head)} and a body of {len(frame.body)} bytes is too large"
        )
    prefix = _PREFIX.pack(frame.kind, _END if frame.end else 0, frame.stream, len(frame.head))
    return b"".join((prefix, frame.head, frame.body))


def decode_frame(data: bytes) -> Frame:
    """Return the frame in ``data``. Raises MalformedError."""
    if len(data) < _PREFIX.size or len(data) > MAX_FRAME:
        raise MalformedError(f"a frame of {len(data)} bytes is not possible")
    kind, flags, stream, head_bytes = _PREFIX.unpack_from(data)
    start = _PREFIX.size + head_bytes
    if flags > _END or head_bytes > MAX_HEAD or start > len(data) or len(data) - start > CHUNK:
        raise MalformedError("a frame whose lengths do not fit")
    try:
        return Frame(Kind(kind), stream, data[_PREFIX.size : start], data[start:], bool(flags & _END))
    except ValueError as error:
        raise MalformedError(f"a frame of unknown kind {kind}") from error
