"""Inference over ASGI: the request run within its deadline, one answer.

Invariant: every way in (HTTP, /infer, /batch_infer, the tunnel) runs through ``Inference``, so that limits, deadlines
and counts are the same for all. A client that goes away takes its request out of the queue. Plain ASGI, because a
framework's request and response objects cost as much as a small model.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import orjson

from agent.serving.admission import retry_header
from agent.serving.body import Bodies, GoneError, Receive, Scope, Send
from agent.serving.dispatch import Job, now
from agent.serving.infer import read_request, response
from agent.serving.models import Loaded, Models
from agent.serving.refusal import RefusedError
from agent.serving.tally import Tally

MAX_BATCH_REQUESTS: Final = 256
WATCH_AFTER: Final = 0.005
"""A request that is answered sooner is not worth watching its connection for."""

_JSON: Final = (b"content-type", b"application/json")


class Call:
    """One HTTP request on its way: when it came, until when its answer is of use, and its jobs."""

    __slots__ = ("_receive", "_timer", "_watch", "begun", "deadline", "jobs")

    def __init__(self, receive: Receive, begun: float, deadline: float) -> None:
        self._receive = receive
        self._timer: asyncio.TimerHandle | None = None
        self._watch: asyncio.Task[None] | None = None
        self.begun = begun
        self.deadline = deadline
        self.jobs: list[Job] = []

    def watch(self) -> None:
        """From now on, look out for the client going away; cheap for a request that is answered at once."""
        self._timer = asyncio.get_running_loop().call_later(WATCH_AFTER, self._begin)

    def close(self) -> None:
        """Give everything back."""
        if self._timer is not None:
            self._timer.cancel()
        if self._watch is not None:
            self._watch.cancel()
        for job in self.jobs:
            job.release()

    def _begin(self) -> None:
        self._watch = asyncio.get_running_loop().create_task(self._until_gone())

    async def _until_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        for job in self.jobs:
            job.refuse(RefusedError(499, "the client has gone", "cancelled"))


class Inference:
    """Answers inference requests for the active builds of ``models``."""

    def __init__(self, models: Models) -> None:
        self.models = models
        self._bodies = Bodies()
        self.unknown = Tally()
        """Counts the requests that name no served model."""

    async def infer(self, model: str, version: str | None, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer POST /v2/models/{model}[/versions/{version}]/infer."""
        begun = now()
        try:
            loaded = self.find(model, version)
        except RefusedError as error:
            await self._refuse(send, self.unknown, error)
            return
        await self._single(loaded, None, scope, receive, send, begun)

    async def infer_any(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer POST /infer: a V2 body that may name its model in "model"."""
        await self._single(None, None, scope, receive, send, now())

    async def infer_batch(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer POST /batch_infer: {"requests": [...]} -> {"responses": [...]}, each answered or refused by itself."""
        begun = now()
        try:
            body, seconds = await self._bodies.read(scope, receive)
            requests = _decode(body)
            requests = requests.get("requests") if isinstance(requests, dict) else None
            if not isinstance(requests, list) or not 0 < len(requests) <= MAX_BATCH_REQUESTS:
                raise RefusedError(
                    400, f'the body must be {{"requests": [1 to {MAX_BATCH_REQUESTS} requests]}}', "bad_request"
                )
        except GoneError:
            return
        except RefusedError as error:
            await self._refuse(send, self.unknown, error)
            return
        call = Call(receive, begun, begun + seconds)
        call.watch()
        try:
            responses = await asyncio.gather(*(self._one_of_batch(request, call) for request in requests))
        finally:
            call.close()
        await respond(send, 200, _encode({"responses": responses}))

    def find(self, model: str | None, version: str | None = None) -> Loaded:
        """Return the active build that ``model`` and ``version`` name. Raises RefusedError (404, 503)."""
        if self.models.draining:
            raise RefusedError(503, "this server is shutting down", "draining", 1.0)
        if model is None:
            only = self.models.only()
            if only is None:
                raise RefusedError(
                    400, f'say which "model"; served are: {", ".join(self.models.names()) or "none yet"}', "bad_request"
                )
            return only
        loaded = self.models.active(model)
        if loaded is None:
            served = ", ".join(self.models.names()) or "none yet"
            raise RefusedError(404, f"no model {model[:64]!r} is served; served are: {served}", "unknown_model")
        if version is not None and version != loaded.build.version:
            raise RefusedError(
                404,
                f"version {version[:64]!r} of {model!r} is not active, {loaded.build.version!r} is",
                "unknown_model",
            )
        return loaded

    async def _single(
        self, loaded: Loaded | None, version: str | None, scope: Scope, receive: Receive, send: Send, begun: float
    ) -> None:
        call: Call | None = None
        try:
            body, seconds = await self._bodies.read(scope, receive)
            request = _decode(body)
            if loaded is None:
                loaded = self.find(_model_of(request), version)
            elif not loaded.active:  # switched while the body was on its way
                loaded = self.find(loaded.build.model, version)
            call = Call(receive, begun, begun + seconds)
            answer = _encode(await self._run(loaded, request, call))
        except GoneError:
            (loaded.tally if loaded else self.unknown).refused("cancelled")
        except RefusedError as error:
            await self._refuse(send, loaded.tally if loaded else self.unknown, error)
        else:
            loaded.tally.answered(now() - begun)
            await respond(send, 200, answer, _times(call.jobs[-1]))
        finally:
            if call is not None:
                call.close()

    async def _one_of_batch(self, request: object, call: Call) -> dict[str, Any]:
        tally = self.unknown
        try:
            loaded = self.find(_model_of(request))
            tally = loaded.tally
            answer = await self._run(loaded, request, call, watch=False)
            tally.answered(now() - call.begun)
        except RefusedError as error:
            tally.refused(error.code)
            return {"error": str(error), "status": error.status}
        return answer

    async def _run(self, loaded: Loaded, request: object, call: Call, watch: bool = True) -> dict[str, Any]:
        parsed = read_request(request, loaded.signature)
        deadline = call.deadline if parsed.timeout is None else min(call.deadline, call.begun + parsed.timeout)
        job = loaded.submit(parsed, deadline)
        call.jobs.append(job)
        if watch:
            call.watch()
        return response(loaded.build.model, loaded.build.version, parsed, await job.future)

    async def _refuse(self, send: Send, tally: Tally, error: RefusedError) -> None:
        tally.refused(error.code)
        await respond_error(send, error)


async def respond(send: Send, status: int, body: bytes, headers: tuple[tuple[bytes, bytes], ...] = (_JSON,)) -> None:
    """Send one whole answer."""
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [length, *headers]})
    await send({"type": "http.response.body", "body": body})


async def respond_error(send: Send, error: RefusedError) -> None:
    """Send the answer that ``error`` stands for; nobody is there to read a 499."""
    if error.status == 499:
        return
    headers = [_JSON]
    if error.retry_after is not None:
        headers.append((b"retry-after", retry_header(error.retry_after).encode()))
    if error.status in (408, 413):
        headers.append((b"connection", b"close"))  # the rest of the body is not read
    await respond(send, error.status, _encode({"error": str(error)}), tuple(headers))


def _times(job: Job) -> tuple[tuple[bytes, bytes], ...]:
    """Headers that say where the time went on this device."""
    return (
        _JSON,
        (b"muster-queue-ms", f"{1000 * job.queued:.3f}".encode()),
        (b"muster-compute-ms", f"{1000 * job.computed:.3f}".encode()),
    )


def _model_of(request: object) -> str | None:
    model = request.get("model") if isinstance(request, dict) else None
    if model is not None and not isinstance(model, str):
        raise RefusedError(400, '"model" must be a text', "bad_request")
    return model


def _decode(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RefusedError(400, f"the body is not JSON: {error}", "bad_request") from error


def _encode(value: object) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
