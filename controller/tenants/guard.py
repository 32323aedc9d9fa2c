"""Every route's permission, and how errors are answered.

Invariant: a route without a declaration stops the start (``require_declared``); what a route declares is checked
before its function runs. A cookie alone authorises nothing that changes state: the request must come from the
console's own pages. Does not know what a role may do (`access.py`) nor how tokens are kept (`tokens.py`).

    @router.get("/api/v1/devices")
    def devices(principal: Annotated[Principal, Depends(permit("devices.read"))]) -> ...

    @router.get("/healthz", dependencies=[Depends(public("tells only that the process runs"))])
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, cast
from urllib.parse import urlsplit

import structlog
from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.exceptions import RequestValidationError, WebSocketRequestValidationError
from fastapi.routing import iter_route_contexts
from sqlalchemy import Connection
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, Response
from starlette.websockets import WebSocket

from controller.database.connection import Database
from controller.errors import ControllerError, DeniedError, UnauthenticatedError
from controller.tenants import tokens
from controller.tenants.access import ACTIONS, Denied, Principal, allowed
from controller.tenants.access_tokens import AccessTokens
from controller.tenants.attempts import network
from controller.tenants.guesses import Guesses

SESSION_COOKIE: Final = "muster_session"
DEVICE_TOKEN_PREFIX: Final = "mud."  # noqa: S105 - the beginning of a token, not a token
_MAX_ERRORS: Final = 5

log = structlog.get_logger()


class _DeviceSessions(Protocol):
    def verify(self, text: str) -> Principal: ...


@dataclass(frozen=True)
class Permit:
    """A dependency: recognises the caller and checks one action in the caller's own tenant."""

    action: str

    def __call__(self, connection: HTTPConnection) -> Principal:
        """Return the caller. Raises UnauthenticatedError or DeniedError."""
        principal = identify(connection)
        verdict = allowed(principal, self.action, principal.tenant)
        if isinstance(verdict, Denied):
            raise DeniedError(verdict.rule, "denied")
        return principal


@dataclass(frozen=True)
class Public:
    """A dependency that marks a route as open to everybody, and says why that is right."""

    reason: str

    def __call__(self) -> None:
        """Let everybody through."""


def permit(action: str) -> Permit:
    """Return the dependency that asks for ``action``. Raises ValueError for an action that no role has."""
    if action not in ACTIONS:
        raise ValueError(f"{action!r} is not in the table of actions (controller/tenants/access.py)")
    return Permit(action)


def public(reason: str) -> Public:
    """Return the dependency that marks an open route."""
    if not reason:
        raise ValueError("an open route needs a reason")
    return Public(reason)


def identify(connection: HTTPConnection) -> Principal:
    """Return who sent this request: an API token, an access token, a device's session token or a console cookie.

    Device tokens are verified by ``app.state.device_sessions`` (controller/devices/session.py), access tokens by
    ``app.state.access_tokens``; `app.py` sets both. Raises UnauthenticatedError or TooManyError.
    """
    header = connection.headers.get("authorization", "")
    scheme, _, credential = header.partition(" ")
    if header and scheme.lower() != "bearer":
        raise UnauthenticatedError("use `Authorization: Bearer TOKEN`", "bad_scheme")
    if credential.startswith(DEVICE_TOKEN_PREFIX):
        return cast("_DeviceSessions", connection.app.state.device_sessions).verify(credential)
    database = cast("Database", connection.app.state.database)
    if credential.count(".") == 2 and not credential.startswith(f"{tokens.PREFIX}."):
        grant = cast("AccessTokens", connection.app.state.access_tokens).read(credential.strip(), time.time())
        with database.read() as c:
            return tokens.stands_for(c, grant, time.time())
    if header:
        with database.read() as c:
            return verify_token(connection, c, credential.strip())
    cookie = connection.cookies.get(SESSION_COOKIE)
    if cookie is None:
        raise UnauthenticatedError("send an API token: `Authorization: Bearer TOKEN`", "no_credential")
    if not (_only_reads(connection) or from_own_page(connection)):
        raise UnauthenticatedError("a session of the console may be used by the console's own pages only", "other_site")
    with database.read() as c:
        return tokens.verify_session(c, cookie, time.time())


def verify_token(connection: HTTPConnection, database: Connection, text: str) -> Principal:
    """Return the principal behind the API token ``text``, counting wrong secrets by token and address.

    Raises UnauthenticatedError or TooManyError.
    """
    state, token, address = connection.app.state, tokens.named(text), network(connection)
    if not hasattr(state, "guesses"):
        state.guesses = Guesses()
    guesses = cast("Guesses", state.guesses)
    if token is not None:
        guesses.check(token, address)
    try:
        principal = tokens.verify(database, text, time.time())
    except tokens.WrongSecretError:
        log.warning("a wrong secret was sent for an API token", token=token, address=address)
        guesses.wrong(token or "", address)
        raise
    guesses.right(principal.id, address)
    return principal


def from_own_page(connection: HTTPConnection) -> bool:
    """Whether the browser says that the request comes from a page of this very origin."""
    origin = connection.headers.get("origin")
    if origin is not None:
        host = connection.headers.get("host", "")
        return bool(host) and urlsplit(origin).netloc.lower() == host.lower()
    return connection.headers.get("sec-fetch-site") == "same-origin"


def require_declared(app: FastAPI, open_paths: Mapping[str, str] | None = None) -> None:
    """Raise RuntimeError unless each route of ``app`` has ``permit`` or ``public`` among its dependencies.

    ``open_paths`` declares what cannot have dependencies (mounts, plain Starlette routes): path to reason. The
    framework's own pages that describe the API are open: they tell nothing that the source does not.
    """
    described = {app.openapi_url, app.docs_url, app.redoc_url, app.swagger_ui_oauth2_redirect_url}
    bare = [
        context.path or repr(context.route)
        for context in iter_route_contexts(app.routes)
        if not _declared(getattr(context, "dependant", None))
        and context.path not in described
        and (context.path or "/") not in (open_paths or {})
    ]
    if bare:
        raise RuntimeError(f"these routes declare no permission (controller/tenants/guard.py): {', '.join(bare)}")


def install_errors(app: FastAPI) -> None:
    """Answer every error of ``app`` with JSON {"error": message, "code": code} and its status."""
    app.add_exception_handler(ControllerError, _answer_controller_error)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_exception_handler(WebSocketRequestValidationError, _answer_invalid)
    app.add_exception_handler(HTTPException, _answer_http)
    app.add_exception_handler(Exception, _answer_unexpected)


async def _answer_controller_error(connection: HTTPConnection, error: Exception) -> Response:
    assert isinstance(error, ControllerError)
    return await _answer(connection, error.status, str(error), error.code)


async def _answer_invalid(connection: HTTPConnection, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError | WebSocketRequestValidationError)
    found = cast("Sequence[Mapping[str, Any]]", error.errors())
    words = [f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}" for item in found[:_MAX_ERRORS]]
    return await _answer(connection, 400, "; ".join(words)[:2000], "bad_request")


async def _answer_http(connection: HTTPConnection, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    words = {
        404: "there is nothing at this address",
        405: "this address does not take that method",
        413: "this request is larger than this address takes",
    }
    message = words.get(error.status_code, str(error.detail))
    return await _answer(connection, error.status_code, message, f"http_{error.status_code}", error.headers)


async def _answer_unexpected(connection: HTTPConnection, error: Exception) -> Response:
    log.error("a request failed unexpectedly", path=connection.url.path, exc_info=error)
    return await _answer(connection, 500, "the controller failed at this request; its log says why", "internal")


async def _answer(
    connection: HTTPConnection, status: int, message: str, code: str, headers: Mapping[str, str] | None = None
) -> Response:
    response = JSONResponse({"error": message, "code": code}, status, headers)
    if status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    if isinstance(connection, WebSocket):
        if "websocket.http.response" in connection.scope.get("extensions", {}):
            await connection.send_denial_response(response)
        else:
            await connection.close(1008, message[:100])
    return response


def _only_reads(connection: HTTPConnection) -> bool:
    return connection.scope["type"] == "http" and connection.scope["method"] in ("GET", "HEAD")


def _declared(dependant: Dependant | None) -> bool:
    if dependant is None:
        return False
    return isinstance(dependant.call, Permit | Public) or any(_declared(inner) for inner in dependant.dependencies)
