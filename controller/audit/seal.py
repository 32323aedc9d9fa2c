"""The chain that makes tampering with the audit trail visible.

Invariant: each sealed row's hash covers its content, its number and the hash of the row before it, so an edited,
removed or moved row breaks the chain at its number. Someone who rewrites every later row as well, or cuts rows off at
the end, is found by the heads that were signed before (`heads.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

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


class Signed(Protocol):
    """What was once the newest row."""

    @property
    def number(self) -> int: ...
    @property
    def hash(self) -> str: ...


def verify(rows: Iterable[Row], start: Intact | None = None, heads: Sequence[Signed] = ()) -> Intact | Broken:
    """Follow the chain through ``rows`` (in order of number), beginning after ``start`` or before row 1.

    heads: signed ones, whose rows must be there with these hashes.
    """
    verdict = follow(rows, start, heads)
    return verdict if isinstance(verdict, Broken) else reaches(verdict, heads)


def reaches(held: Intact, heads: Sequence[Signed]) -> Intact | Broken:
    """Judge a chain that ends at ``held``: a head beyond it tells of rows that were cut off."""
    last = max((head.number for head in heads), default=0)
    if last > held.number:
        return Broken(
            held.number + 1, f"the trail ends at row {held.number}, but row {last} was signed: rows were cut off"
        )
    return held


def follow(rows: Iterable[Row], start: Intact | None = None, heads: Sequence[Signed] = ()) -> Intact | Broken:
    """Follow the chain as ``verify`` does, when more rows may come after ``rows``."""
    held = start or Intact(0, FIRST)
    hashes: dict[int, set[str]] = {}
    for head in heads:
        hashes.setdefault(head.number, set()).add(head.hash)
    for row in rows:
        if row.number != held.number + 1:
            return Broken(held.number + 1, f"row {held.number + 1} is missing: row {row.number} follows {held.number}")
        if row.previous_hash != held.hash:
            return Broken(row.number, f"row {row.number} does not follow the row that stands before it")
        if chain(held.hash, row) != row.hash:
            return Broken(row.number, f"the content of row {row.number} does not fit its hash: it was changed")
        if hashes.get(row.number, {row.hash}) != {row.hash}:
            return Broken(row.number, f"row {row.number} is not the one that was signed: the trail was rewritten")
        held = Intact(row.number, row.hash)
    return held
