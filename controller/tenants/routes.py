"""API tokens and console sessions over HTTP.

Invariant: a token's text appears in one answer, at its birth; a role below admin neither sees nor makes tokens.
"""

from __future__ import annotations

import time
from typing import Annotated, Any, Final, cast

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import BaseModel, ConfigDict, Field

from controller.audit.store import record
from controller.database.connection import Database
from controller.database.http import database
from controller.errors import DeniedError, UnauthenticatedError
from controller.tenants import store, tokens
from controller.tenants.access import ROLES, Denied, Principal, allowed
from controller.tenants.access_tokens import AccessTokens
from controller.tenants.attempts import Attempts
from controller.tenants.guard import SESSION_COOKIE, from_own_page, permit, public, verify_token

MAX_LISTED: Final = 500
LOGIN_PATH: Final = "/login"

router = APIRouter(tags=["tenants"])
Db = Annotated[Database, Depends(database)]
TokenWriter = Annotated[Principal, Depends(permit("tokens.write"))]


class TokenRequest(BaseModel):
    """``seconds``: how long the token holds; absent for ever."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(max_length=63)
    role: str = Field(max_length=16)
    seconds: float | None = Field(default=None, gt=0, le=10 * 365 * 86_400)


@router.post("/api/v1/tokens", status_code=201)
def create_token(request: TokenRequest, principal: TokenWriter, db: Db) -> dict[str, Any]:
    """Make an API token; ``token`` in the answer is shown this once."""
    now = time.time()
    expires = None if request.seconds is None else now + request.seconds
    with db.begin() as connection:
        token = tokens.make(
            connection, tenant=principal.tenant, name=request.name, role=request.role, now=now, expires=expires
        )
        record(
            connection,
            tenant=principal.tenant,
            actor=principal.actor,
            action="tokens.create",
            thing=f"token:{token.id}",
            at=now,
            body={"name": request.name, "role": request.role, "expires": expires},
        )
    return {"id": token.id, "token": token.text, "role": request.role, "name": request.name, "expires": expires}


@router.get("/api/v1/tokens")
def list_tokens(principal: Annotated[Principal, Depends(permit("tokens.read"))], db: Db) -> dict[str, Any]:
    """Return the tenant's tokens without their secrets."""
    with db.read() as connection:
        rows = store.tokens_of(connection, principal.tenant, MAX_LISTED)
    shown = ("id", "name", "role", "created", "expires", "revoked")
    return {"tokens": [{name: getattr(row, name) for name in shown} for row in rows]}


@router.delete("/api/v1/tokens/{token}", status_code=204)
def revoke_token(token: str, principal: TokenWriter, db: Db) -> None:
    """Make a token hold no more."""
    now = time.time()
    with db.begin() as connection:
        before = tokens.revoke(connection, principal.tenant, token, now)
        record(
            connection,
            tenant=principal.tenant,
            actor=principal.actor,
            action="tokens.revoke",
            thing=f"token:{token}",
            at=now,
            body={
                "name": before.name,
                "role": before.role,
                "before": {"revoked": before.revoked, "expires": before.expires},
                "after": {"revoked": now},
            },
        )


@router.get("/api/v1/whoami")
def whoami(principal: Annotated[Principal, Depends(permit("tenants.read"))]) -> dict[str, Any]:
    """Return who the caller is and what the role may do."""
    return {
        "tenant": principal.tenant,
        "role": principal.role,
        "id": principal.id,
        "name": principal.name,
        "actions": sorted(ROLES[principal.role]),
    }


@router.post("/api/v1/login-links", status_code=201)
def create_login_link(principal: Annotated[Principal, Depends(permit("sessions.write"))], db: Db) -> dict[str, Any]:
    """Make a link that opens one console session with the caller's own token."""
    now = time.time()
    with db.begin() as connection:
        code = tokens.make_login_code(connection, principal.id, now)
        record(
            connection,
            tenant=principal.tenant,
            actor=principal.actor,
            action="sessions.create",
            thing=f"token:{principal.id}",
            at=now,
        )
    return {"path": f"{LOGIN_PATH}/{code}", "expires": now + tokens.LOGIN_SECONDS}


@router.post("/api/v1/access-tokens", status_code=201)
def create_access_token(
    request: Request, response: Response, principal: Annotated[Principal, Depends(permit("sessions.write"))], db: Db
) -> dict[str, Any]:
    """Give an access token, good for ten minutes, to the caller's API token or console session."""
    now = time.time()
    text, grant = cast("AccessTokens", request.app.state.access_tokens).make(principal.id, now)
    with db.begin() as connection:
        record(
            connection,
            tenant=principal.tenant,
            actor=principal.actor,
            action="access_tokens.create",
            thing=f"token:{principal.id}",
            at=now,
            body={"access_token": grant.id, "expires": grant.expires},
        )
    response.headers["Cache-Control"] = "no-store"
    return {"access_token": text, "token_type": "Bearer", "expires": grant.expires}


class SessionRequest(BaseModel):
    """``token``: an API token."""

    model_config = ConfigDict(extra="forbid")
    token: str = Field(max_length=256)


@router.post(
    "/api/v1/sessions",
    status_code=204,
    dependencies=[Depends(public("the API token in the request is the credential"))],
)
def open_session(asked: SessionRequest, request: Request, response: Response, db: Db) -> None:
    """Open a console session with an API token, from the console's own login page; the answer sets the cookie."""
    _attempts(request).count("sessions", request)
    if not from_own_page(request):
        raise DeniedError("a session is opened by the console's own pages only", "other_site")
    now = time.time()
    with db.begin() as connection:
        principal = verify_token(request, connection, asked.token)
        verdict = allowed(principal, "sessions.write", principal.tenant)
        if isinstance(verdict, Denied):
            raise DeniedError(verdict.rule, "denied")
        text = tokens.begin_session(connection, principal.id, now)
        record(
            connection,
            tenant=principal.tenant,
            actor=principal.actor,
            action="sessions.create",
            thing=f"token:{principal.id}",
            at=now,
        )
    _set_cookie(response, request, text)


@router.get(LOGIN_PATH + "/{code}", dependencies=[Depends(public("the one-time code in the link is the credential"))])
def log_in(code: str, request: Request, db: Db) -> Response:
    """Use up the code, set the session's cookie and go to the console, which tells a browser if that failed."""
    _attempts(request).count("login", request)
    try:
        with db.begin() as connection:
            text = tokens.open_session(connection, code, time.time())
    except UnauthenticatedError:
        if "text/html" not in request.headers.get("accept", ""):
            raise
        return RedirectResponse("/?login=failed", status_code=303)
    answer = RedirectResponse("/", status_code=303)
    _set_cookie(answer, request, text)
    answer.headers["Referrer-Policy"] = "no-referrer"
    answer.headers["Cache-Control"] = "no-store"
    return answer


@router.post("/logout", status_code=204, dependencies=[Depends(public("ends only the session whose cookie is sent"))])
def log_out(request: Request, response: Response, db: Db) -> None:
    """End the console session of this browser."""
    text = request.cookies.get(SESSION_COOKIE)
    if text is not None:
        if not from_own_page(request):
            raise DeniedError("a session is ended by the console's own pages only", "other_site")
        with db.read() as connection:
            held = tokens.has_session(connection, text, time.time())
        if held:  # a stranger's cookie takes no write lock
            with db.begin() as connection:
                tokens.close_session(connection, text)
    response.delete_cookie(SESSION_COOKIE)


def _attempts(request: Request) -> Attempts:
    """The application's count of logins, made at the first."""
    state = request.app.state
    if not hasattr(state, "login_attempts"):
        state.login_attempts = Attempts()
    found = state.login_attempts
    assert isinstance(found, Attempts)
    return found


def _set_cookie(response: Response, request: Request, text: str) -> None:
    response.set_cookie(
        SESSION_COOKIE,
        text,
        max_age=int(tokens.SESSION_SECONDS),
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",  # the loopback listener speaks plain HTTP
    )
