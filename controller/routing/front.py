"""The gateway's front: clients' requests and devices' tunnels on one port.

Invariant: nothing is forwarded that was not authenticated and allowed in its own tenant; the bytes held for all
requests together are bounded; every request is answered with a status of its own, errors as {"error": ...}. A raw ASGI
application, because a framework's machinery costs more than everything that is done here. Does not choose devices
(`choose.py`) and does not carry frames (`tunnels.py`).
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time

import structlog
from starlette.types import Receive, Scope, Send

from controller.errors import (
    ControllerError,
    DeniedError,
    InvalidError,
    NotFoundError,
    UnauthenticatedError,
    UnavailableError,
)
from controller.http_protocol import MAX_DROPPED
from controller.routing.answer import retry_headers, send_answer, send_json, send_whole
from controller.routing.attempt import RETRY_AFTER, GiveUp
from controller.routing.budget import Budget
from controller.routing.fleet_view import FleetView
from controller.routing.forward import Forwarder, Order
from controller.routing.hub import PATH, Hub, refuse
from controller.routing.metrics import CONTENT_TYPE, Metrics
from controller.routing.request import GoneError, Head, Target, parse_target, read_body, read_head, request_id_of
from controller.routing.waiting import ClientWatch
from controller.tenants.access import Denied, Principal, allowed
from wire.version import __version__

log = structlog.get_logger()


class Gateway:
    """The ASGI application."""

    def __init__(
        self, view: FleetView, hub: Hub, forwarder: Forwarder, metrics: Metrics, budget: Budget, max_body_bytes: int
    ) -> None:
        self._draining = False
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._view = view
        self._hub = hub
        self._forwarder = forwarder
        self._metrics = metrics
        self._budget = budget
        self._max_body_bytes = max_body_bytes
        self._ids = itertools.count(1)
        self._id_prefix = secrets.token_hex(6)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or one tunnel."""
        path: str = scope["path"]
        if scope["type"] == "websocket":
            if path == PATH and not self._draining:
                return await self._hub.serve(scope, receive, send)
            await receive()
            if path == PATH:
                return await refuse(send, UnavailableError("this gateway is stopping: connect again", "stopping"))
            return await send({"type": "websocket.close", "code": 1008})
        target = parse_target(path)
        try:
            if target is not None:
                await self._model(scope, receive, send, target)
            else:
                await self._other(scope, send, path)
        except GoneError:
            return None  # nobody is there to be answered
        except ControllerError as error:
            await self._refuse(scope, send, error)
        return None

    async def drain(self, seconds: float) -> None:
        """Answer new requests with 503 from now on, and wait at most ``seconds`` for those that were begun."""
        self._draining = True
        try:
            async with asyncio.timeout(seconds):
                while self._in_flight:
                    self._idle.clear()
                    await self._idle.wait()
        except TimeoutError:
            log.warning("requests were cut off at the end", count=self._in_flight)

    # what is not a model's

    async def _other(self, scope: Scope, send: Send, path: str) -> None:
        if path == "/metrics":
            principal = await self._authenticated(read_head(scope))
            _require(principal, "metrics.read")
            return await send_whole(send, 200, [(b"content-type", CONTENT_TYPE)], self._metrics.page(principal.tenant))
        answers: dict[str, tuple[int, dict[str, object]]] = {
            "/v2": (200, {"name": "muster-gateway", "version": __version__, "extensions": []}),
            "/healthz": (200, {"live": True, "tunnels": len(self._hub)}),
            "/v2/health/live": (200, {"live": True}),
            "/v2/health/ready": (200 if self._ready else 503, {"ready": self._ready}),
        }
        if path not in answers:
            raise NotFoundError("there is nothing at this address; requests go to /v2/models/MODEL/infer", "no_path")
        if scope["method"] != "GET":
            raise _MethodError("this address takes GET only", "bad_method")
        status, fields = answers[path]
        return await send_json(send, status, fields)

    @property
    def _ready(self) -> bool:
        return self._view.ready and not self._draining

    # models

    async def _model(self, scope: Scope, receive: Receive, send: Send, target: Target) -> None:
        """Answer a request about a model, and count it: under its tenant and model as soon as they are known."""
        started = asyncio.get_running_loop().time()
        tenant = model = ""
        try:
            method = "POST" if target.verb == "infer" else "GET"
            if scope["method"] != method:
                raise _MethodError(f"this address takes {method} only", "bad_method")
            if self._draining:
                raise UnavailableError("this gateway is stopping: send the request again", "stopping")
            head = read_head(scope)
            principal = await self._authenticated(head)
            tenant = principal.tenant
            _require(principal, "models.infer")
            if not self._view.has_model(tenant, target.model, target.version):
                raise NotFoundError(f"there is no model {_named(target)} in tenant {tenant}", "no_model")
            if target.verb == "ready":
                ready = bool(self._view.eligible(tenant, target.model, target.version))
                return await send_json(send, 200 if ready else 503, {"name": target.model, "ready": ready})
            model = target.model
            self._in_flight += 1
            self._metrics.in_flight.inc()
            try:
                status = await self._forward(scope["method"], receive, send, target, tenant, head, started)
            finally:
                self._metrics.in_flight.dec()
                self._in_flight -= 1
                if not self._in_flight:
                    self._idle.set()
        except ControllerError as error:
            self._metrics.request(tenant, model, error.status)
            raise
        self._metrics.request(tenant, model, status)
        self._metrics.seconds.observe(asyncio.get_running_loop().time() - started)
        return None

    async def _forward(
        self, method: str, receive: Receive, send: Send, target: Target, tenant: str, head: Head, started: float
    ) -> int:
        """Have the request answered by a device, send its answer on and return the status."""
        deadline = started + head.seconds
        body, reserved = await read_body(receive, head, self._max_body_bytes, self._budget, tenant, deadline)
        request_id = head.request_id or f"{self._id_prefix}-{next(self._ids):x}"
        watch = ClientWatch(receive)
        try:
            order = Order(
                tenant=tenant,
                model=target.model,
                version=target.version,
                method=method,
                path=target.path,
                headers=head.forwarded | {"x-request-id": request_id},
                body=body,
                deadline=deadline,
            )
            result = await self._forwarder.deliver(order, watch)
            watch.stop()
            del order, body  # a client that is slow to take its answer must not hold its request as well
            self._budget.give(tenant, reserved)
            reserved = 0
            if isinstance(result, GiveUp):
                headers = retry_headers(result.retry_after, request_id)
                await send_json(send, result.status, {"error": result.reason, "code": result.code}, headers)
                return result.status
            assert result.stream.head is not None
            await send_answer(send, result, request_id)
            return result.stream.head.status
        finally:
            watch.stop()
            self._budget.give(tenant, reserved)

    async def _authenticated(self, head: Head) -> Principal:
        if head.token is None:
            raise UnauthenticatedError("send an API token: `Authorization: Bearer TOKEN`", "no_credential")
        try:
            return self._view.principal(head.token, time.time())
        except (UnauthenticatedError, UnavailableError):
            await self._view.looked_again()  # the token may have been made this moment
            return self._view.principal(head.token, time.time())

    async def _refuse(self, scope: Scope, send: Send, error: ControllerError) -> None:
        headers = retry_headers(RETRY_AFTER if error.status in (429, 503) else None, request_id_of(scope))
        if error.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        if self._draining or _announced(scope) > MAX_DROPPED:  # else the rest is dropped, so that the answer is read
            headers.append((b"connection", b"close"))
        await send_json(send, error.status, {"error": str(error), "code": error.code}, headers)


class _MethodError(InvalidError):
    status = 405


def _announced(scope: Scope) -> int:
    """Return the length of the body that a request announces; 0 when it announces none."""
    length = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
    return int(length) if length.isdigit() else 0


def _require(principal: Principal, action: str) -> None:
    verdict = allowed(principal, action, principal.tenant)
    if isinstance(verdict, Denied):
        raise DeniedError(verdict.rule, "denied")


def _named(target: Target) -> str:
    return f"{target.model!r}" + (f" version {target.version!r}" if target.version else "")
