"""Bytes to messages and back (wire 2).

Invariant: a field that this version does not know survives decode and encode; a message of another major version,
or larger than its limit, is refused before its fields are looked at. Does not check signatures (`envelope.py`) nor
who may send what (`topics.py`).
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from wire.errors import MalformedError, VersionError

VERSION = 1
MAX_BYTES = 256 * 1024  # wire 2.3: what a broker must accept; larger things are artifacts


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=False):
    """Base of everything that travels as one JSON object.

    extra: top-level fields that this version does not know, kept as they came (wire 2.2).
    """

    extra: dict[str, Any] = {}


M = TypeVar("M", bound=Message)


def encode(message: Message) -> bytes:
    """Return the JSON bytes of ``message``: the version first, then known fields in order, then unknown ones."""
    fields = msgspec.to_builtins(message)
    extra = fields.pop("extra")
    return msgspec.json.encode({"v": VERSION} | fields | {k: v for k, v in extra.items() if k not in fields})


def decode(kind: type[M], data: bytes, limit: int = MAX_BYTES) -> M:
    """Return the message of type ``kind`` in ``data``.

    Raises MalformedError (too large, not JSON, wrong field) or VersionError (another major version).
    """
    if len(data) > limit:
        raise MalformedError(f"{kind.__name__}: {len(data)} bytes, at most {limit} are allowed")
    try:
        fields = msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedError(f"{kind.__name__}: not a JSON object: {error}") from error
    version = fields.pop("v", None)
    if version != VERSION:
        raise VersionError(f"{kind.__name__}: version {version!r}, this program speaks {VERSION}")
    known = {field.encode_name for field in msgspec.structs.fields(kind)} - {"extra"}
    extra = {name: value for name, value in fields.items() if name not in known}
    try:
        message = msgspec.convert({name: fields[name] for name in fields.keys() & known}, kind)
    except msgspec.ValidationError as error:
        raise MalformedError(f"{kind.__name__}: {error}") from error
    return msgspec.structs.replace(message, extra=extra) if extra else message
