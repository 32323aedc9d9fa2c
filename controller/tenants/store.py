"""Statements on tenants, API tokens, login codes and console sessions.

Invariant: no secret is stored, only its SHA-256. Decides nothing: `tokens.py` judges the rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from sqlalchemy import Connection, Row, delete, insert, or_, select, update

from controller.database.tables import api_tokens, login_codes, sessions, tenants

FORGOTTEN: Final = 90 * 86_400.0  # seconds that a token is kept after it expired or was revoked
MAX_SESSIONS: Final = 50  # of one token, and as many login codes
TokenRow = Row[tuple[str, str, str, str, str, float, float | None, float | None]]


def add_tenant(connection: Connection, name: str, now: float) -> None:
    """Store a new tenant."""
    connection.execute(insert(tenants).values(name=name, created=now))


def tenant_names(connection: Connection) -> list[str]:
    """Return the names of all tenants, in order."""
    return list(connection.scalars(select(tenants.c.name).order_by(tenants.c.name)))


def add_token(
    connection: Connection,
    *,
    token: str,
    tenant: str,
    name: str,
    role: str,
    secret_sha256: str,
    created: float,
    expires: float | None,
) -> None:
    """Store an API token by the hash of its secret; drop those that ended long ago, whom only the audit trail knows."""
    before = created - FORGOTTEN
    old = select(api_tokens.c.id).where(or_(api_tokens.c.expires < before, api_tokens.c.revoked < before))
    for table in (sessions, login_codes):
        connection.execute(delete(table).where(table.c.token_id.in_(old)))
    connection.execute(delete(api_tokens).where(api_tokens.c.id.in_(old)))
    connection.execute(
        insert(api_tokens).values(
            id=token,
            tenant=tenant,
            name=name,
            role=role,
            secret_sha256=secret_sha256,
            created=created,
            expires=expires,
        )
    )


def find_token(connection: Connection, token: str) -> TokenRow | None:
    """Return the row of an API token."""
    return connection.execute(select(api_tokens).where(api_tokens.c.id == token)).one_or_none()


def tokens_of(connection: Connection, tenant: str, limit: int) -> Sequence[TokenRow]:
    """Return a tenant's API tokens, those that were not revoked before the others, and of these the newest first."""
    order = (api_tokens.c.revoked.is_not(None), api_tokens.c.created.desc(), api_tokens.c.id)
    statement = select(api_tokens).where(api_tokens.c.tenant == tenant).order_by(*order).limit(limit)
    return connection.execute(statement).all()


def valid_tokens(connection: Connection, tenant: str, role: str, now: float) -> dict[str, float]:
    """Return the ids of the tokens with ``role`` that hold at ``now``, and until when (infinity for ever)."""
    statement = select(api_tokens.c.id, api_tokens.c.expires).where(
        api_tokens.c.tenant == tenant,
        api_tokens.c.role == role,
        api_tokens.c.revoked.is_(None),
        or_(api_tokens.c.expires.is_(None), api_tokens.c.expires > now),
    )
    return {row.id: math.inf if row.expires is None else row.expires for row in connection.execute(statement)}


def revoke_token(connection: Connection, token: str, now: float) -> None:
    """Note that a token holds no more, and end its console sessions and login codes."""
    connection.execute(update(api_tokens).where(api_tokens.c.id == token).values(revoked=now))
    connection.execute(delete(sessions).where(sessions.c.token_id == token))
    connection.execute(delete(login_codes).where(login_codes.c.token_id == token))


def add_login_code(connection: Connection, code_sha256: str, token: str, expires: float, now: float) -> None:
    """Store a login code; drop those that have expired, and the oldest of a token with too many."""
    connection.execute(delete(login_codes).where(login_codes.c.expires <= now))
    newest = select(login_codes.c.code_sha256).where(login_codes.c.token_id == token)
    kept = newest.order_by(login_codes.c.expires.desc()).limit(MAX_SESSIONS - 1)
    connection.execute(
        delete(login_codes).where(login_codes.c.token_id == token, login_codes.c.code_sha256.not_in(kept))
    )
    connection.execute(insert(login_codes).values(code_sha256=code_sha256, token_id=token, expires=expires))


def use_login_code(connection: Connection, code_sha256: str, now: float) -> str | None:
    """Mark a login code as used and return its token's id; None when it is unknown, expired or was used before."""
    statement = (
        update(login_codes)
        .where(login_codes.c.code_sha256 == code_sha256, login_codes.c.used.is_(None), login_codes.c.expires > now)
        .values(used=now)
        .returning(login_codes.c.token_id)
    )
    return connection.execute(statement).scalar_one_or_none()


def add_session(connection: Connection, id_sha256: str, token: str, expires: float, now: float) -> None:
    """Store a console session; drop those that have expired, and the oldest of a token with too many."""
    connection.execute(delete(sessions).where(sessions.c.expires <= now))
    newest = select(sessions.c.id_sha256).where(sessions.c.token_id == token)
    kept = newest.order_by(sessions.c.expires.desc()).limit(MAX_SESSIONS - 1)
    connection.execute(delete(sessions).where(sessions.c.token_id == token, sessions.c.id_sha256.not_in(kept)))
    connection.execute(insert(sessions).values(id_sha256=id_sha256, token_id=token, expires=expires))


def session_token(connection: Connection, id_sha256: str, now: float) -> str | None:
    """Return the token's id behind a console session that holds at ``now``."""
    statement = select(sessions.c.token_id).where(sessions.c.id_sha256 == id_sha256, sessions.c.expires > now)
    return connection.execute(statement).scalar_one_or_none()


def end_session(connection: Connection, id_sha256: str) -> None:
    """Forget a console session."""
    connection.execute(delete(sessions).where(sessions.c.id_sha256 == id_sha256))
