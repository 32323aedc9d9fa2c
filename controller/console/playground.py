"""Inference for people: the console's requests go through the gateway like everybody's, with the caller's credential.

Invariant: nothing is answered here that the gateway would refuse to the same caller; bodies and answers are bounded;
the client's deadline is the gateway's. A browser could not ask the gateway itself: it listens on another origin, under
the fleet's own certificate authority. Not the way for programs: they ask the gateway.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final

import httpx
import msgspec
from fastapi import APIRouter, Depends, Request
from fastapi import Path as PathParameter
from starlette.concurrency import run_in_threadpool

from controller.builds.documents import ModelName
from controller.database.connection import Database
from controller.devices import list_store
from controller.errors import ControllerError, TooLargeError, UnavailableError
from controller.tenants.access import Principal
from controller.tenants.guard import SESSION_COOKIE, permit

MAX_BODY: Final = 4 * 1024**2
MAX_ANSWER: Final = 16 * 1024**2
SECONDS: Final = 30.0
_TIMES: Final = {"queue_ms": "muster-queue-ms", "compute_ms": "muster-compute-ms"}

Asker = Annotated[Principal, Depends(permit("models.infer"))]
Model = Annotated[ModelName, PathParameter()]


class RefusedError(ControllerError):
    """The gateway or the device refused: its status and its words go on to the caller."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message, "refused")
        self.status = status


class Playground:
    """Asks the gateway at ``url``, whose certificate descends from the one in ``ca_file``."""

    def __init__(self, url: str, ca_file: Path) -> None:
        self._url = url
        self._ca_file = ca_file
        self._client: httpx.AsyncClient | None = None

    async def ask(self, method: str, path: str, credential: str, body: bytes | None) -> tuple[Any, httpx.Headers]:
        """Return the decoded answer and its headers. Raises RefusedError, UnavailableError, TooLargeError."""
        if self._client is None:
            context = await run_in_threadpool(ssl.create_default_context, cafile=str(self._ca_file))
        if self._client is None:  # still: two who came at once share one
            # no proxy of the environment: the gateway is on this machine, and the credential is for nobody else
            self._client = httpx.AsyncClient(base_url=self._url, verify=context, timeout=SECONDS + 5.0, trust_env=False)
        client = self._client
        headers = {
            "Authorization": f"Bearer {credential}",
            "Content-Type": "application/json",
            "Muster-Deadline-Ms": str(int(SECONDS * 1000)),
        }
        try:
            async with client.stream(method, path, content=body, headers=headers) as answer:
                content = bytearray()
                async for piece in answer.aiter_raw():  # unpacking would pass the bound
                    content += piece
                    if len(content) > MAX_ANSWER:
                        raise TooLargeError(f"the answer is larger than {MAX_ANSWER} bytes", "too_large")
        except httpx.TimeoutException as error:
            raise UnavailableError(f"the gateway did not answer within {SECONDS + 5:.0f} s", "no_gateway") from error
        except httpx.HTTPError as error:
            why = str(error) or type(error).__name__
            raise UnavailableError(f"the gateway cannot be reached: {why}; does it run?", "no_gateway") from error
        try:
            told = msgspec.json.decode(bytes(content))
        except (msgspec.DecodeError, RecursionError):
            told = None
        if answer.status_code >= 400:
            words = told.get("error") if isinstance(told, dict) else None
            raise RefusedError(answer.status_code, str(words or f"the gateway answered {answer.status_code}"))
        if not isinstance(told, dict):
            device = answer.headers.get("muster-device", "")
            raise RefusedError(502, f"device {device} gave an answer that is no JSON object and cannot be shown here")
        return told, answer.headers

    async def close(self) -> None:
        """Let the connection go."""
        if self._client is not None:
            await self._client.aclose()


def playground_router(playground: Callable[[], Playground], database: Callable[[], Database]) -> APIRouter:
    """Return the routes; `app.py` hands down what they need."""
    router = APIRouter(prefix="/api/v1", tags=["console"])

    @router.get("/models/{name}/metadata")
    async def metadata(name: Model, request: Request, principal: Asker) -> Any:
        """Return the V2 metadata of a model as a ready device tells it: inputs and outputs."""
        told, _ = await playground().ask("GET", f"/v2/models/{name}", _credential(request), None)
        return told

    @router.post("/models/{name}/infer", max_body_size=2 * MAX_BODY)  # over MAX_BODY the answer says what to do
    async def infer(name: Model, request: Request, principal: Asker) -> dict[str, Any]:
        """Send a V2 inference request in JSON; say who answered, and where the time went (milliseconds)."""
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > MAX_BODY:
                raise TooLargeError(f"a request has at most {MAX_BODY} bytes here: ask the gateway", "too_large")
        began = time.perf_counter()
        answer, headers = await playground().ask("POST", f"/v2/models/{name}/infer", _credential(request), bytes(body))
        took = (time.perf_counter() - began) * 1000
        device = headers.get("muster-device", "")
        return {
            "answer": answer,
            "device": device,
            "device_name": await run_in_threadpool(_name_of, database(), principal.tenant, device),
            "attempts": int(headers.get("muster-attempts", "1")),
            "total_ms": took,
            **{name: _number(headers.get(header)) for name, header in _TIMES.items()},
        }

    return router


def _credential(request: Request) -> str:
    """The caller's own: an API token, or the console session, which the gateway knows as well."""
    scheme, _, credential = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return credential.strip()
    return request.cookies.get(SESSION_COOKIE, "")


def _name_of(database: Database, tenant: str, device: str) -> str:
    with database.read() as connection:
        row = list_store.rows_of(connection, tenant, [device]).get(device)
    return "" if row is None else str(row.name)


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
