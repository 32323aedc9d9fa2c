"""The agent's side door: `agent/serving_protocol.py` over a Unix socket.

Invariant: answers only requests that speak the same version of the protocol (others get 426), and only on a socket that
is this user's. Decides nothing: it asks ``Models`` and ``Tunnel``.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import msgspec
import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from agent.errors import AgentError
from agent.serving.models import Models
from agent.serving.refusal import RefusedError
from agent.serving.tunnel import Tunnel
from agent.serving_protocol import HEADER, VERSION, BuildRequest, LoadRequest, ServingState, TunnelRequest

log = structlog.get_logger()

MAX_BODY: Final = 256 * 1024
_STATUS: Final = {"bad_model": 422, "bad_build": 422, "bad_golden": 422, "disk_full": 507, "no_memory": 507}
_T = TypeVar("_T")
_Event = Any


class Control:
    """The ASGI application of the Unix socket. ``stop()`` begins the end of the process."""

    def __init__(
        self, models: Models, tunnel: Tunnel, address: tuple[str, int], started: float, stop: Callable[[], None]
    ) -> None:
        self._models = models
        self._tunnel = tunnel
        self._address = address
        self._started = started
        self._stop = stop
        model = "/control/v1/models/{name}"
        self._framework = Starlette(
            routes=[
                Route("/control/v1/state", self._state),
                Route(model + "/load", self._load, methods=["POST"]),
                Route(model + "/activate", self._activate, methods=["POST"]),
                Route(model + "/probe", self._probe, methods=["POST"]),
                Route(model + "/unload", self._unload, methods=["POST"]),
                Route(model + "/remove", self._remove, methods=["POST"]),
                Route("/control/v1/tunnel", self._open_tunnel, methods=["POST"]),
                Route("/control/v1/stop", self._end, methods=["POST"]),
            ],
            exception_handlers={AgentError: _failed, HTTPException: _http_error},
        )

    async def __call__(self, scope: Any, receive: Callable[[], Awaitable[_Event]], send: Any) -> None:
        """Answer one request (ASGI)."""
        if scope["type"] != "http":
            return
        spoken = dict(scope["headers"]).get(HEADER.lower().encode(), b"").decode("latin-1")
        if spoken != str(VERSION):
            reason = f"this serving process speaks version {VERSION} of the protocol, not {spoken[:20]!r}"
            await _json({"error": reason}, 426)(scope, receive, send)
            return
        await self._framework(scope, receive, send)

    def state(self) -> ServingState:
        """Return the whole process's state."""
        return ServingState(
            protocol=VERSION,
            pid=os.getpid(),
            started=self._started,
            http_host=self._address[0],
            http_port=self._address[1],
            tunnel=self._tunnel.state,
            tunnel_error=self._tunnel.error,
            builds=self._models.describe(),
        )

    async def _state(self, _: Request) -> Response:
        return _json(self.state())

    async def _load(self, request: Request) -> Response:
        asked = await _body(request, LoadRequest)
        return _json(await self._models.load(request.path_params["name"], asked.build, asked.directory))

    async def _activate(self, request: Request) -> Response:
        return _json(await self._models.activate(request.path_params["name"], await _build(request)))

    async def _probe(self, request: Request) -> Response:
        return _json(await self._models.probe(request.path_params["name"], await _build(request)))

    async def _unload(self, request: Request) -> Response:
        await self._models.unload(request.path_params["name"], await _build(request))
        return _json({})

    async def _remove(self, request: Request) -> Response:
        await self._models.remove(request.path_params["name"])
        return _json({})

    async def _open_tunnel(self, request: Request) -> Response:
        await self._tunnel.open(await _body(request, TunnelRequest))
        return _json({})

    async def _end(self, _: Request) -> Response:
        self._stop()
        return _json({})


async def _build(request: Request) -> str:
    return (await _body(request, BuildRequest)).build


async def _body(request: Request, kind: type[_T]) -> _T:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY:
            raise RefusedError(413, f"the body is larger than {MAX_BODY} bytes", "bad_request")
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise RefusedError(400, f"{kind.__name__}: {error}", "bad_request") from error


def _json(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


async def _failed(request: Request, error: Exception) -> Response:
    assert isinstance(error, AgentError)
    status = error.status if isinstance(error, RefusedError) else _STATUS.get(error.code, 500)
    log.warning("control request failed", path=request.url.path, status=status, reason=str(error))
    return _json({"error": str(error), "code": error.code}, status)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _json({"error": f"{request.method} {request.url.path[:200]}: {error.detail}"}, error.status_code)
