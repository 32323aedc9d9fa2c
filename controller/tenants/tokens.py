"""API tokens, one-time login codes and console sessions: secrets that are shown once and kept as hashes.

Invariant: a token is believed only when its secret's SHA-256 fits in constant time, and it is neither expired nor
revoked. Does not decide what a principal may do (`access.py`) nor read requests (`guard.py`).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from sqlalchemy import Connection

from controller.audit.store import record
from controller.database.connection import Database
from controller.errors import ConflictError, InvalidError, NotFoundError, UnauthenticatedError
from controller.tenants import store
from controller.tenants.access import ADMIN, TOKEN_ROLES, Principal
from controller.tenants.access_tokens import Grant

PREFIX: Final = "mut"
DEFAULT_TENANT: Final = "default"
LOGIN_SECONDS: Final = 300.0
SESSION_SECONDS: Final = 12 * 3600.0
_NAME: Final = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z")
_TEXT: Final = re.compile(rf"^{PREFIX}\.([a-z2-7]{{16}})\.([A-Za-z0-9_-]{{43}})\Z")


_NOT_KNOWN: Final = "this API token is not known: make one with `muster tokens create`"


class WrongSecretError(UnauthenticatedError):
    """The id is that of a token, the secret is not its own. Told as if there were no such token."""


@dataclass(frozen=True, slots=True)
class NewToken:
    """A token at its birth: ``text`` is shown once and never stored."""

    id: str
    text: str

    def __repr__(self) -> str:  # a secret must not end up in a log
        return f"NewToken(id={self.id!r})"


def make(
    connection: Connection, *, tenant: str, name: str, role: str, now: float, expires: float | None = None
) -> NewToken:
    """Store a new API token and return it. ``expires``: seconds since 1970, None for never.

    Raises InvalidError for an unknown role or a name that is not plain.
    """
    if role not in TOKEN_ROLES:
        raise InvalidError(f"{role!r} is not a role of tokens; these are: {', '.join(TOKEN_ROLES)}", "bad_role")
    if not _NAME.match(name):
        raise InvalidError("a token's name has 1 to 63 letters, digits, '.', '_' or '-'", "bad_name")
    if expires is not None and expires <= now:
        raise InvalidError("a token cannot expire before it begins", "bad_expiry")
    token, secret = base32(10), secrets.token_urlsafe(32)
    store.add_token(
        connection,
        token=token,
        tenant=tenant,
        name=name,
        role=role,
        secret_sha256=sha256(secret),
        created=now,
        expires=expires,
    )
    return NewToken(token, f"{PREFIX}.{token}.{secret}")


def verify(connection: Connection, text: str, now: float) -> Principal:
    """Return the principal behind the token ``text``. Raises UnauthenticatedError with what to do."""
    match = _TEXT.match(text)
    row = store.find_token(connection, match[1]) if match else None
    if match is None or row is None:
        raise UnauthenticatedError(_NOT_KNOWN, "bad_token")
    if not hmac.compare_digest(row.secret_sha256, sha256(match[2])):
        raise WrongSecretError(_NOT_KNOWN, "bad_token")
    return _principal(row, now)


def named(text: str) -> str | None:
    """Return the id in the token ``text``; None when it has not the form of one."""
    match = _TEXT.match(text)
    return match[1] if match else None


def stands_for(connection: Connection, grant: Grant, now: float) -> Principal:
    """Return the principal for whose API token an access token stands. Raises UnauthenticatedError."""
    row = store.find_token(connection, grant.token)
    if row is None:
        raise UnauthenticatedError(_NOT_KNOWN, "bad_token")
    return replace(_principal(row, now), by_access_token=True)


def revoke(connection: Connection, tenant: str, token: str, now: float) -> store.TokenRow:
    """Make the token hold no more, from now on; its console sessions end with it. Return it as it was.

    Raises NotFoundError, or ConflictError (code "last_admin") for the admin token that holds longest: nobody could make
    another one after it.
    """
    row = store.find_token(connection, token)
    if row is None or row.tenant != tenant:
        raise NotFoundError(f"there is no token {token!r}", "no_token")
    ends = store.valid_tokens(connection, tenant, ADMIN, now)
    own = ends.pop(token, 0.0)
    if own > max(ends.values(), default=0.0):
        raise ConflictError(
            "no other admin token holds as long as this one: make another one before revoking it", "last_admin"
        )
    store.revoke_token(connection, token, now)
    return row


def make_login_code(connection: Connection, token: str, now: float) -> str:
    """Return a code that opens one console session for the token with this id, within ``LOGIN_SECONDS``."""
    code = secrets.token_urlsafe(32)
    store.add_login_code(connection, sha256(code), token, now + LOGIN_SECONDS, now)
    return code


def open_session(connection: Connection, code: str, now: float) -> str:
    """Use up a login code and return the text of a new console session, good for ``SESSION_SECONDS``.

    Raises UnauthenticatedError.
    """
    token = store.use_login_code(connection, sha256(code), now)
    row = store.find_token(connection, token) if token else None
    if row is None:
        raise UnauthenticatedError(
            "this login link was used or has expired: make a new one with `muster login`", "bad_login_code"
        )
    return begin_session(connection, _principal(row, now).id, now)


def begin_session(connection: Connection, token: str, now: float) -> str:
    """Return the text of a new console session for the token with this id, good for ``SESSION_SECONDS``."""
    text = secrets.token_urlsafe(32)
    store.add_session(connection, sha256(text), token, now + SESSION_SECONDS, now)
    return text


def verify_session(connection: Connection, text: str, now: float) -> Principal:
    """Return the principal behind a console session. Raises UnauthenticatedError."""
    token = store.session_token(connection, sha256(text), now)
    row = store.find_token(connection, token) if token else None
    if row is None:
        raise UnauthenticatedError("this session is over: log in again with `muster login`", "bad_session")
    return _principal(row, now)


def has_session(connection: Connection, text: str, now: float) -> bool:
    """Whether there is a console session of that text."""
    return store.session_token(connection, sha256(text), now) is not None


def close_session(connection: Connection, text: str) -> None:
    """End a console session."""
    store.end_session(connection, sha256(text))


def first_start(database: Database, now: float, keep: Callable[[str], None] = lambda text: None) -> str | None:
    """Make the first tenant and its admin token; return the token's text this once, None on every later start.

    ``keep`` gets the text before it holds: a token that nobody knows would lock everybody out for good.
    """
    with database.begin() as connection:
        if store.tenant_names(connection):
            return None
        store.add_tenant(connection, DEFAULT_TENANT, now)
        token = make(connection, tenant=DEFAULT_TENANT, name="first-admin", role=ADMIN, now=now)
        record(
            connection,
            tenant=DEFAULT_TENANT,
            actor="system",
            action="tenants.first_start",
            thing=f"token:{token.id}",
            at=now,
        )
        keep(token.text)
    return token.text


def sha256(text: str) -> str:
    """Return the hash under which a secret is stored: it has 256 random bits, so no slow hash is needed."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def base32(size: int) -> str:
    """Return ``size`` random bytes in lower-case base32 without padding."""
    return base64.b32encode(secrets.token_bytes(size)).decode().rstrip("=").lower()


def _principal(row: store.TokenRow, now: float) -> Principal:
    if row.revoked is not None:
        raise UnauthenticatedError("this API token was revoked: ask an admin for another", "revoked_token")
    if row.expires is not None and row.expires <= now:
        raise UnauthenticatedError("this API token has expired: ask an admin for another", "expired_token")
    return Principal(tenant=row.tenant, role=row.role, id=row.id, name=row.name)
