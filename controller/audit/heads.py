"""Signed heads: what the newest row of a tenant's trail was at a moment, vouched for by the controller's audit key.

Invariant: a head says the number and hash of one sealed row; who keeps it can tell later whether that row and all
before it are still as they were, also when the trail was cut off at its end or rewritten from some row on. Keeps
nothing (`head_files.py`) and reads no rows (`sealer.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from controller.errors import InvalidError
from wire.envelope import PrivateKey, PublicKey, decode_public_key, key_id, open_envelope, seal
from wire.errors import WireError

PURPOSE: Final = "audit-head"


class Head(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The newest row of ``tenant`` at ``at`` (seconds since 1970): its number, from 1, and its hash."""

    tenant: str
    number: int
    hash: str
    at: float


def sign(head: Head, key: PrivateKey) -> bytes:
    """Return ``head`` in an envelope (wire 5)."""
    return seal(msgspec.json.encode(head), PURPOSE, key)


def read(data: bytes, keys: Mapping[str, PublicKey]) -> Head:
    """Return the head in an envelope that one of ``keys`` (by key id) signed. Raises InvalidError."""
    try:
        return msgspec.json.decode(open_envelope(data, PURPOSE, keys), type=Head)
    except (WireError, msgspec.MsgspecError) as error:
        raise InvalidError(f"this is no signed head of an audit trail: {error}", "bad_head") from error


def keys_of(text: str) -> dict[str, PublicKey]:
    """Return the key in ``text`` (base64 of its DER form) by its id. Raises InvalidError."""
    try:
        key = decode_public_key(text)
    except WireError as error:
        raise InvalidError(f"the public key of the audit trail cannot be read: {error}", "bad_head") from error
    return {key_id(key): key}
