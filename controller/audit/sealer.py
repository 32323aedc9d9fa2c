"""Numbers and chains new audit rows, and checks the whole chain of a tenant.

Invariant: one sealer runs at a time (the write transaction sees to it), and a row is sealed once. Does not decide what
a hash covers (`seal.py`).
"""

from __future__ import annotations

from typing import Final

from controller.audit import seal as chains
from controller.audit import store
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


def check(database: Database, tenant: str) -> Intact | Broken:
    """Follow the chain of ``tenant`` from its first row to its last, in pieces of ``BATCH`` rows."""
    held = Intact(0, chains.FIRST)
    with database.read() as connection:
        while rows := store.sealed(connection, tenant, held.number, BATCH):
            verdict = chains.verify((_row(found, found.number or 0) for found in rows), held)
            if isinstance(verdict, Broken):
                return verdict
            held = verdict
    return held


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
