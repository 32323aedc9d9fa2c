"""Statements on the signed metadata of tenants' repositories: plain functions that take a connection.

Invariant: bytes are stored as they were signed, each version once; of a role that is signed often only the newest
versions are kept, enough for a device that reads while others publish. Roots are all kept: a device that was away
follows them one by one. Decides nothing about trust (`publish.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Connection, and_, delete, func, insert, select

from controller.database.tables import trust_metadata
from controller.trust.layout import ROOT

KEPT: Final = 16  # versions of a role; a device reads snapshot and roles within seconds of the timestamp
_m = trust_metadata.c


def newest(connection: Connection, tenant: str, role: str) -> bytes | None:
    """Return the newest version of ``role``."""
    statement = select(_m.content).where(_m.tenant == tenant, _m.role == role).order_by(_m.version.desc()).limit(1)
    found: bytes | None = connection.execute(statement).scalar_one_or_none()
    return found


def version(connection: Connection, tenant: str, role: str, number: int) -> bytes | None:
    """Return one version of ``role``."""
    statement = select(_m.content).where(_m.tenant == tenant, _m.role == role, _m.version == number)
    found: bytes | None = connection.execute(statement).scalar_one_or_none()
    return found


def roles(connection: Connection, tenant: str) -> Sequence[Any]:
    """Return role, version, expires, length and sha256 of the newest version of each role, by name."""
    last = (
        select(_m.role, func.max(_m.version).label("version")).where(_m.tenant == tenant).group_by(_m.role).subquery()
    )
    statement = select(_m.role, _m.version, _m.expires, _m.length, _m.sha256).join(
        last, and_(_m.role == last.c.role, _m.version == last.c.version)
    )
    return connection.execute(statement.where(_m.tenant == tenant).order_by(_m.role)).all()


def tenants(connection: Connection) -> list[str]:
    """Return the tenants that have a repository."""
    return list(connection.scalars(select(_m.tenant).where(_m.role == ROOT).distinct().order_by(_m.tenant)))


def add(
    connection: Connection,
    *,
    tenant: str,
    role: str,
    number: int,
    content: bytes,
    length: int,
    sha256: str,
    expires: float,
    at: float,
) -> None:
    """Store a new version, and drop those that nobody asks for any more."""
    connection.execute(
        insert(trust_metadata).values(
            tenant=tenant,
            role=role,
            version=number,
            content=content,
            length=length,
            sha256=sha256,
            expires=expires,
            created=at,
        )
    )
    if role != ROOT:
        connection.execute(
            delete(trust_metadata).where(_m.tenant == tenant, _m.role == role, _m.version <= number - KEPT)
        )
