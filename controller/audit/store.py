"""Statements on the audit trail.

Invariant: a row is written in the transaction of the deed itself, so there is no deed without its row and no row
without its deed; a row is never changed except once, when the sealer numbers and chains it. Does not hash (`seal.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, func, insert, or_, select, update

from controller.audit.reason import given
from controller.database.tables import audit

AuditRow = Row[tuple[int, str, float, str, str, str, str, Any, int | None, str | None, str | None]]


def record(
    connection: Connection,
    *,
    tenant: str,
    actor: str,
    action: str,
    thing: str,
    at: float,
    reason: str = "",
    body: Mapping[str, Any] | None = None,
) -> None:
    """Note in the caller's transaction that ``actor`` did ``action`` to ``thing`` at ``at`` (seconds since 1970).

    ``reason``: that of the request when it is not given. ``body``: plain JSON with what changed, before and after;
    never a secret. Words longer than their columns are cut. Raises ValueError for numbers that JSON does not know.
    """
    json.dumps(body, allow_nan=False)  # what cannot be hashed would stop the sealer for good
    connection.execute(
        insert(audit).values(
            tenant=tenant,
            actor=actor[:128],
            action=action[:64],
            thing=thing[:200],
            at=at,
            reason=(reason or given.get())[:4096],
            body=dict(body or {}),
        )
    )


def page(
    connection: Connection, tenant: str, before: int | None, limit: int, words: str | None = None
) -> Sequence[AuditRow]:
    """Return a tenant's rows with an id below ``before`` and ``words`` in what people read, the newest first."""
    statement = select(audit).where(audit.c.tenant == tenant).order_by(audit.c.id.desc()).limit(limit)
    if before is not None:
        statement = statement.where(audit.c.id < before)
    if words:
        read = (audit.c.actor, audit.c.action, audit.c.thing, audit.c.reason)
        statement = statement.where(or_(*(column.icontains(words, autoescape=True) for column in read)))
    return connection.execute(statement).all()


def tenants_of(connection: Connection) -> list[str]:
    """Return the tenants that have rows, one step in the index for each of them however long their trails are."""
    first = select(func.min(audit.c.tenant).label("name")).cte("trails", recursive=True)
    after = select(func.min(audit.c.tenant)).where(audit.c.tenant > first.c.name).scalar_subquery()
    trails = first.union_all(select(after).where(first.c.name.is_not(None)))
    return list(connection.scalars(select(trails.c.name).where(trails.c.name.is_not(None))))


def unsealed(connection: Connection, limit: int) -> Sequence[AuditRow]:
    """Return the oldest rows that have no number yet."""
    # by tenant, so that the index finds them: a search by number alone would read the whole trail, every second
    mine = audit.c.tenant.in_(tenants_of(connection))
    statement = select(audit).where(mine, audit.c.number.is_(None)).order_by(audit.c.id).limit(limit)
    return connection.execute(statement).all()


def last_sealed(connection: Connection, tenant: str) -> AuditRow | None:
    """Return a tenant's row with the highest number."""
    statement = (
        select(audit).where(audit.c.tenant == tenant, audit.c.number.is_not(None)).order_by(audit.c.number.desc())
    )
    return connection.execute(statement.limit(1)).one_or_none()


def set_seal(connection: Connection, row: int, number: int, previous_hash: str, row_hash: str) -> None:
    """Number and chain one row."""
    connection.execute(
        update(audit).where(audit.c.id == row).values(number=number, previous_hash=previous_hash, hash=row_hash)
    )


def sealed(connection: Connection, tenant: str, after: int, limit: int) -> Sequence[AuditRow]:
    """Return a tenant's sealed rows with a number above ``after``, in order."""
    statement = select(audit).where(audit.c.tenant == tenant, audit.c.number > after).order_by(audit.c.number)
    return connection.execute(statement.limit(limit)).all()
