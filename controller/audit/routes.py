"""The audit trail over HTTP: read and check, never write.

Invariant: a tenant sees its own rows only.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query

from controller.audit import sealer, store
from controller.audit.needs import Caller, Needs
from controller.audit.seal import Intact
from controller.database.connection import Database
from controller.database.http import database

router = APIRouter(prefix="/api/v1/audit", tags=["audit"])
Db = Annotated[Database, Depends(database)]
Reader = Annotated[Caller, Depends(Needs("audit.read"))]


@router.get("")
def trail(
    caller: Reader,
    db: Db,
    before: Annotated[int | None, Query(ge=1)] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
) -> dict[str, Any]:
    """Return rows, the newest first; ``next`` is the value of ``before`` for the next page, null at the end."""
    with db.read() as connection:
        rows = store.page(connection, caller.tenant, before, limit)
    return {"rows": [dict(row._mapping) for row in rows], "next": rows[-1].id if len(rows) == limit else None}


@router.get("/verify")
def verify(caller: Reader, db: Db) -> dict[str, Any]:
    """Follow the whole chain: intact up to which row, or broken at which row and why."""
    sealer.seal(db)
    verdict = sealer.check(db, caller.tenant)
    if isinstance(verdict, Intact):
        return {"intact": True, "number": verdict.number, "hash": verdict.hash}
    return {"intact": False, "number": verdict.number, "reason": verdict.reason}
