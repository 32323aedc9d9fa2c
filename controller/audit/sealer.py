"""Numbers and chains new audit rows, and checks the whole chain of a tenant.

Invariant: one sealer runs at a time (the write transaction sees to it), and a row is sealed once. Does not decide what
a hash covers (`seal.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from controller.audit import seal as chains
from controller.audit import store
from controller.audit.head_files import HeadFiles
from controller.audit.heads import Head
from controller.audit.seal import Broken, Intact, Row
from controller.database.connection import Database

BATCH: Final = 1_000


def seal(database: Database) -> int:
    """Seal at most ``BATCH`` rows that have no number yet, each in the chain of its tenant; return how many."""
    with database.read() as connection:
        if not store.unsealed(connection, 1):  # most of the time: no write transaction for nothing
            return 0
    with database.begin() as connection:
        heads: dict[str, Intact] = {}
        rows = store.unsealed(connection, BATCH)
        for found in rows:
            head = heads.get(found.tenant) or _head(store.last_sealed(connection, found.tenant))
            row = _row(found, head.number + 1)
            row_hash = chains.chain(head.hash, row)
            store.set_seal(connection, found.id, row.number, head.hash, row_hash)
            heads[found.tenant] = Intact(row.number, row_hash)
    return len(rows)


def check(
    database: Database, tenant: str, heads: Sequence[chains.Signed] = (), start: Intact | None = None
) -> Intact | Broken:
    """Follow the chain of ``tenant`` from its first row (or after ``start``) to its last, in pieces of ``BATCH`` rows.

    heads: signed ones, to compare with.
    """
    held = start or Intact(0, chains.FIRST)
    for rows in pieces(database, tenant, held.number):
        verdict = chains.follow(rows, held, heads)
        if isinstance(verdict, Broken):
            return verdict
        held = verdict
    return chains.reaches(held, heads)


def pieces(database: Database, tenant: str, after: int = 0) -> Iterator[list[Row]]:
    """Yield the sealed rows of ``tenant`` in order, ``BATCH`` at a time: a sealed row never changes."""
    while True:
        with database.read() as connection:
            rows = [_row(found, found.number or 0) for found in store.sealed(connection, tenant, after, BATCH)]
        if not rows:
            return
        yield rows
        after = rows[-1].number


def sign_heads(database: Database, files: HeadFiles, now: float) -> list[str]:
    """Sign the newest row of each trail that grew since its last head; return what is wrong with the others.

    A trail that does not go on from its last head as it was signed is not signed: the old head is the evidence.
    Raises UnavailableError.
    """
    with database.read() as connection:
        tenants = store.tenants_of(connection)
    wrong: list[str] = []
    for tenant in tenants:
        held = files.of(tenant)
        last = Intact(held[-1][0].number, held[-1][0].hash) if held else None
        verdict = check(database, tenant) if last is None else _goes_on(database, tenant, last)
        if isinstance(verdict, Broken):
            wrong.append(f"{tenant}: {verdict.reason}")
        elif verdict.number > (last.number if last else 0):
            files.add(Head(tenant=tenant, number=verdict.number, hash=verdict.hash, at=now))
    return wrong


def newest_head(database: Database, files: HeadFiles, tenant: str, now: float) -> tuple[Head, bytes] | None:
    """Sign the newest row of ``tenant`` unless that was done; return the newest head, None when there are no rows."""
    seal(database)
    sign_heads(database, files, now)
    held = files.of(tenant)
    return held[-1] if held else None


def _goes_on(database: Database, tenant: str, last: Intact) -> Intact | Broken:
    with database.read() as connection:
        rows = store.sealed(connection, tenant, last.number - 1, 1)
    if not rows or rows[0].number != last.number:
        return Broken(last.number, f"row {last.number}, which was signed, is missing")
    if rows[0].hash != last.hash:
        return Broken(last.number, f"row {last.number} is not the one that was signed")
    return check(database, tenant, start=last)


def _head(row: store.AuditRow | None) -> Intact:
    if row is None:
        return Intact(0, chains.FIRST)
    return Intact(row.number or 0, row.hash or "")


def _row(found: store.AuditRow, number: int) -> Row:
    return Row(
        tenant=found.tenant,
        at=found.at,
        actor=found.actor,
        action=found.action,
        thing=found.thing,
        reason=found.reason,
        body=found.body,
        number=number,
        previous_hash=found.previous_hash or "",
        hash=found.hash or "",
    )
