"""A trail as a file, one JSON object a line: the rows, then the signed heads; and its check without any controller.

Invariant: the check believes nothing in the file that it can work out: hashes are worked out again, and heads count
only under a key. The key in the file is the file's own claim: whoever wants to be sure hands in a head, with its key,
that was kept elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import fields
from typing import Any, Final

import msgspec

from controller.audit import heads as signed
from controller.audit.heads import Head
from controller.audit.seal import Broken, Intact, Row, verify
from controller.errors import InvalidError

FORMAT: Final = 1
MAX_LINE: Final = 16 * 1024**2


class KeptHead(msgspec.Struct, frozen=True, kw_only=True):
    """A head to keep elsewhere: the envelope as text, and the key that signed it."""

    head: str
    public_key: str


def first_line(tenant: str, public_key: str) -> str:
    """Return the line that begins a file."""
    return _line({"muster_audit": FORMAT, "tenant": tenant, "public_key": public_key})


def row_line(row: Row) -> str:
    """Return the line of a row."""
    return _line({"row": {field.name: getattr(row, field.name) for field in fields(Row)}})


def head_line(envelope: bytes) -> str:
    """Return the line of a signed head."""
    return _line({"head": envelope.decode()})


def check(lines: Iterable[str], kept: KeptHead | None = None) -> Intact | Broken:
    """Follow the rows in ``lines`` and compare them with the heads there, and with one that was ``kept`` elsewhere.

    Raises InvalidError when this is no such file, or when a head is not signed as it says.
    """
    documents = _documents(lines)
    beginning = next(documents, {})
    if beginning.get("muster_audit") != FORMAT or not isinstance(beginning.get("public_key"), str):
        raise InvalidError("this is no exported audit trail: `muster audit export` writes one", "bad_export")
    keys = signed.keys_of(beginning["public_key"])
    rows: list[Row] = []
    found: list[Head] = []
    for document in documents:
        if "row" in document:
            rows.append(_row(document["row"]))
        elif "head" in document:
            found.append(signed.read(str(document["head"]).encode(), keys))
        else:
            raise InvalidError("a line is neither a row nor a head", "bad_export")
    if kept is not None:
        found.append(signed.read(kept.head.encode(), signed.keys_of(kept.public_key)))
    tenant = beginning.get("tenant")
    named = [row.tenant for row in rows] + [head.tenant for head in found]
    if strange := next((one for one in named if one != tenant), None):
        raise InvalidError(f"this is the trail of {tenant!r}, and a line or the head is of {strange!r}", "bad_export")
    return verify(rows, heads=sorted(found, key=lambda head: head.number))


def _documents(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, 1):
        try:
            if len(line) > MAX_LINE:
                raise ValueError("too long")
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InvalidError(f"line {number} is not JSON: {error}", "bad_export") from error
        if not isinstance(found, dict):
            raise InvalidError(f"line {number} is no JSON object", "bad_export")
        yield found


def _row(values: Any) -> Row:
    try:
        row = msgspec.convert(values, Row)
    except msgspec.ValidationError as error:
        raise InvalidError(f"a row cannot be read: {error}", "bad_export") from error
    return row


def _line(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=True, allow_nan=False) + "\n"
