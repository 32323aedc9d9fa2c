"""The audit trail over HTTP: read and check, never write.

Invariant: a tenant sees its own rows only. The guard lives above this package, so it is handed in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Protocol

from fastapi import APIRouter, Depends, Query

from controller.audit import sealer, store
from controller.audit.seal import Intact
from controller.database.connection import Database
from controller.database.http import database


class _Tenanted(Protocol):
    @property
    def tenant(self) -> str: ...


def audit_router(permit: Callable[[str], Callable[..., _Tenanted]]) -> APIRouter:
    """Return the routes; ``permit`` is that of `controller/tenants/guard.py`."""
    router = APIRouter(prefix="/api/v1/audit", tags=["audit"])
    # A default, not an annotation: annotations are read as text, which cannot name a local variable.
    reader = Depends(permit("audit.read"))

    @router.get("")
    def trail(
        db: Annotated[Database, Depends(database)],
        principal: _Tenanted = reader,
        before: Annotated[int | None, Query(ge=1, le=2**63 - 1)] = None,
        limit: Annotated[int, Query(ge=1, le=500)] = 100,
        q: Annotated[str | None, Query(max_length=100)] = None,
    ) -> dict[str, Any]:
        """Rows whose actor, action, thing or reason has ``q`` in it, the newest first.

        ``next`` is the value of ``before`` for the next page, null at the end.
        """
        with db.read() as connection:
            rows = store.page(connection, principal.tenant, before, limit, q)
        return {
            "rows": [dict(row._mapping) for row in rows],
            "next": rows[-1].id if len(rows) == limit else None,
        }

    @router.get("/verify")
    def verify(db: Annotated[Database, Depends(database)], principal: _Tenanted = reader) -> dict[str, Any]:
        """Follow the whole chain: intact up to which row, or broken at which row and why."""
        sealer.seal(db)
        verdict = sealer.check(db, principal.tenant)
        if isinstance(verdict, Intact):
            return {"intact": True, "number": verdict.number, "hash": verdict.hash}
        return {"intact": False, "number": verdict.number, "reason": verdict.reason}

    return router
