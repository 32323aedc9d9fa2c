"""The HTTP interface of serving: the Open Inference Protocol V2, /infer, /batch_infer, health, figures, a status page.

Invariant: every error is {"error": "..."}; inference goes around the framework (`answer.py`). Has no control over what
is served, except in a standalone repository, whose routes are handed in.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Route

from agent.serving.answer import Inference
from agent.serving.body import Receive, Scope, Send
from agent.serving.metrics import CONTENT_TYPE, Metrics, ModelFigures
from agent.serving.models import Loaded, Models
from agent.serving.page import HEADERS, page, read_status
from agent.serving.refusal import RefusedError
from agent.serving.runtimes import TensorSpec
from wire.version import __version__


class Server:
    """The ASGI application for ``models``.

    extra: further routes (a standalone repository's). status_file: where the agent beside it says how it stands.
    """

    def __init__(self, models: Models, extra: Sequence[BaseRoute] = (), status_file: Path | None = None) -> None:
        self.models = models
        self._status_file = status_file
        self.inference = Inference(models)
        self._metrics = Metrics(self._figures)
        self._started = time.monotonic()
        self._version = __version__
        model = "/v2/models/{model}"
        version = model + "/versions/{version}"
        self._framework = Starlette(
            routes=[
                Route("/", self._page),
                Route("/health", self._health),
                Route("/metrics", self._render_metrics),
                Route("/stats", self._stats),
                Route("/v2", self._about),
                Route("/v2/health/live", self._live),
                Route("/v2/health/ready", self._ready),
                Route(model, self._model),
                Route(version, self._model),
                Route(model + "/ready", self._model_ready),
                Route(version + "/ready", self._model_ready),
                # Answered before the framework; named here so that another method is a 405.
                *(Route(path, self._never, methods=["POST"]) for path in (model + "/infer", version + "/infer")),
                *(Route(path, self._never, methods=["POST"]) for path in ("/infer", "/batch_infer")),
                *extra,
            ],
            exception_handlers={HTTPException: _http_error, RefusedError: _refused},
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request (ASGI)."""
        if scope["type"] != "http":
            return
        if scope["method"] == "POST":
            path: str = scope["path"]
            if path.endswith("/infer") and path.startswith("/v2/models/"):
                parts = path.split("/")
                if len(parts) == 5:
                    await self.inference.infer(parts[3], None, scope, receive, send)
                    return
                if len(parts) == 7 and parts[4] == "versions":
                    await self.inference.infer(parts[3], parts[5], scope, receive, send)
                    return
            elif path == "/infer":
                await self.inference.infer_any(scope, receive, send)
                return
            elif path == "/batch_infer":
                await self.inference.infer_batch(scope, receive, send)
                return
        await self._framework(scope, receive, send)

    async def _about(self, _: Request) -> Response:
        return json({"name": "muster-serving", "version": self._version, "extensions": []})

    async def _live(self, _: Request) -> Response:
        return json({"live": True})

    async def _ready(self, _: Request) -> Response:
        ready = not self.models.draining and bool(self.models.names())
        return json({"ready": ready}, 200 if ready else 503)

    async def _model(self, request: Request) -> Response:
        loaded = self._find(request)
        return json(
            {
                "name": loaded.build.model,
                "versions": [loaded.build.version],
                "platform": "onnxruntime_onnx",
                "inputs": [_tensor(spec) for spec in loaded.signature.inputs],
                "outputs": [_tensor(spec) for spec in loaded.signature.outputs],
            }
        )

    async def _model_ready(self, request: Request) -> Response:
        loaded = self._find(request)
        return json({"name": loaded.build.model, "version": loaded.build.version, "ready": True})

    async def _health(self, _: Request) -> Response:
        models = self.models.served()
        status = "draining" if self.models.draining else "ok" if models else "no_models"
        uptime = round(time.monotonic() - self._started, 1)
        return json({"status": status, "uptime_s": uptime, "models": msgspec.to_builtins(models)})

    async def _stats(self, _: Request) -> Response:
        outcomes = {name: dict(tally.outcomes) for name, tally in self.models.tallies.items()}
        return json({"builds": msgspec.to_builtins(self.models.describe()), "outcomes": outcomes})

    async def _render_metrics(self, _: Request) -> Response:
        return Response(self._metrics.render(), media_type=CONTENT_TYPE)

    async def _page(self, _: Request) -> Response:
        status = await asyncio.to_thread(read_status, self._status_file)
        return HTMLResponse(page(self.models.describe(), self.models.draining, status), headers=HEADERS)

    async def _never(self, _: Request) -> Response:
        raise HTTPException(404, "not found")

    def _find(self, request: Request) -> Loaded:
        return self.inference.find(request.path_params["model"], request.path_params.get("version"))

    def _figures(self) -> Iterable[ModelFigures]:
        yield ModelFigures("", self.inference.unknown, 0, 0)
        for name, tally in self.models.tallies.items():
            queues = [loaded.dispatcher for loaded in self.models.loaded() if loaded.build.model == name]
            yield ModelFigures(
                name, tally, sum(queue.queued for queue in queues), sum(queue.queued_items for queue in queues)
            )


def json(value: Any, status: int = 200) -> Response:
    """Return ``value`` as a JSON response."""
    return Response(orjson.dumps(value), status, media_type="application/json")


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    reason = {404: f"nothing is at {request.url.path[:200]}", 405: f"{request.method} is not possible here"}
    response = json({"error": reason.get(error.status_code, str(error.detail))}, error.status_code)
    response.headers.update(error.headers or {})
    return response


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    return json({"error": str(error)}, error.status)
