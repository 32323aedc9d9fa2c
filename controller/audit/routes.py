"""The audit trail over HTTP: read and check, never write.

Invariant: a tenant sees its own rows only. The guard lives above this package, so it is handed in.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Protocol, cast

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import StreamingResponse

from controller.audit import exported, sealer, store
from controller.audit.head_files import HeadFiles
from controller.audit.seal import Intact
from controller.database.connection import Database
from controller.database.http import database
from controller.errors import NotFoundError


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
    def verify(request: Request, db: Annotated[Database, Depends(database)], principal: _Tenanted = reader) -> Any:
        """Follow the whole chain: intact up to which row, or broken at which row and why.

        ``signed``: the newest signed head that the chain was compared with.
        """
        sealer.seal(db)
        signed = [head for head, _ in _files(request).of(principal.tenant)]
        verdict = sealer.check(db, principal.tenant, signed)
        last = {"number": signed[-1].number, "at": signed[-1].at} if signed else None
        if isinstance(verdict, Intact):
            return {"intact": True, "number": verdict.number, "hash": verdict.hash, "signed": last}
        return {"intact": False, "number": verdict.number, "reason": verdict.reason, "signed": last}

    @router.get("/head")
    def head(request: Request, db: Annotated[Database, Depends(database)], principal: _Tenanted = reader) -> Any:
        """Return the signed head of the trail, to be kept elsewhere: ``head`` (an envelope) and ``public_key``."""
        found = sealer.newest_head(db, _files(request), principal.tenant, time.time())
        if found is None:
            raise NotFoundError("there is no row in the audit trail yet", "no_head")
        newest, envelope = found
        kept = {"head": envelope.decode(), "public_key": _files(request).public_key}
        return kept | {"number": newest.number, "hash": newest.hash, "at": newest.at}

    @router.get("/export", response_class=StreamingResponse)
    def export(request: Request, db: Annotated[Database, Depends(database)], principal: _Tenanted = reader) -> Any:
        """Return the whole trail with its signed heads, one JSON object a line, for `muster audit verify --file`."""
        files = _files(request)
        sealer.newest_head(db, files, principal.tenant, time.time())
        lines = _exported(db, files, principal.tenant)
        return StreamingResponse(lines, media_type="application/jsonl", headers={"cache-control": "no-store"})

    return router


def _files(request: Request) -> HeadFiles:
    return cast("HeadFiles", request.app.state.audit_heads)


def _exported(db: Database, files: HeadFiles, tenant: str) -> Iterator[str]:
    yield exported.first_line(tenant, files.public_key)
    for rows in sealer.pieces(db, tenant):
        yield "".join(exported.row_line(row) for row in rows)
    for _, envelope in files.of(tenant):
        yield exported.head_line(envelope)
