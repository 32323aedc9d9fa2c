"""The chain that makes tampering with the audit trail visible.

Invariant: each sealed row's hash covers its content, its number and the hash of the row before it, so an edited,
removed or moved row breaks the chain at its number. Does not stop someone who can rewrite every later row as well:
for that, the newest hash must be kept somewhere else too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

FIRST: Final = "0" * 64  # stands before row 1


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a tenant's trail, as stored. ``number`` counts from 1 without gaps."""

    tenant: str
    at: float
    actor: str
    action: str
    thing: str
    reason: str
    body: Mapping[str, Any]
    number: int
    previous_hash: str
    hash: str


@dataclass(frozen=True, slots=True)
class Intact:
    """The chain holds from its beginning to row ``number``, whose hash is ``hash``."""

    number: int
    hash: str


@dataclass(frozen=True, slots=True)
class Broken:
    """The chain breaks at row ``number``."""

    number: int
    reason: str


def chain(previous_hash: str, row: Row) -> str:
    """Return the hash of ``row`` after ``previous_hash``: SHA-256, hex. The hashes stored in ``row`` play no part."""
    content = {
        "tenant": row.tenant,
        "number": row.number,
        "at": row.at,
        "actor": row.actor,
        "action": row.action,
        "thing": row.thing,
        "reason": row.reason,
        "body": row.body,
    }
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(f"{previous_hash}\n{canonical}".encode()).hexdigest()


def verify(rows: Iterable[Row], start: Intact | None = None) -> Intact | Broken:
    """Follow the chain through ``rows`` (in order of number), beginning after ``start`` or before row 1."""
    held = start or Intact(0, FIRST)
    for row in rows:
        if row.number != held.number + 1:
            return Broken(held.number + 1, f"row {held.number + 1} is missing: row {row.number} follows {held.number}")
        if row.previous_hash != held.hash:
            return Broken(row.number, f"row {row.number} does not follow the row that stands before it")
        if chain(held.hash, row) != row.hash:
            return Broken(row.number, f"the content of row {row.number} does not fit its hash: it was changed")
        held = Intact(row.number, row.hash)
    return held
