"""The requests inside one open tunnel: frames to requests, answers to frames (wire 9.2, 9.3).

Invariant: at most ``MAX_STREAMS`` requests and ``MAX_BUFFERED`` bytes of bodies at a time; each request is answered
once, or cancelled by the gateway, or given up when its deadline passes before its answer begins. Only the listed paths
are reachable.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Protocol

import msgspec
import orjson
import structlog

from wire.errors import MalformedError
from wire.tunnel import CHUNK, Frame, Kind, RequestHead, ResponseHead

log = structlog.get_logger()

MAX_STREAMS: Final = 256
MAX_BODY: Final = 16 * 1024**2
MAX_BUFFERED: Final = 64 * 1024**2
MAX_SECONDS: Final = 3600.0
GRACE_SECONDS: Final = 1.0
"""A request is answered at its deadline by inference itself; what is not, this much later, is given up."""
_METHODS: Final = ("GET", "POST")
_PATHS: Final = ("/health", "/stats", "/metrics", "/v2")
_FORBIDDEN: Final = ("/v2/repository",)
_DROPPED: Final = frozenset(("content-length", "transfer-encoding", "connection", "host", "muster-deadline-ms"))


class AnswerLike(Protocol):
    """A whole HTTP answer."""

    @property
    def status(self) -> int:
        """HTTP status."""

    @property
    def headers(self) -> dict[str, str]:
        """Names in lower case."""

    @property
    def body(self) -> bytes:
        """The whole body."""


Handle = Callable[[str, str, Mapping[str, str], bytes], Awaitable[AnswerLike]]
"""Called with method, path with query, headers and body; cancelled when nobody waits for the answer any more."""


class _Stream:
    __slots__ = ("body", "deadline", "expiry", "head", "task")

    def __init__(self, head: RequestHead, deadline: float) -> None:
        self.head = head
        self.deadline = deadline
        self.body = bytearray()
        self.task: asyncio.Task[None] | None = None
        self.expiry: asyncio.TimerHandle | None = None


class Streams:
    """All requests of one connection. ``put(frame)`` waits while too many frames wait to be written."""

    def __init__(self, handle: Handle, put: Callable[[Frame], Awaitable[None]]) -> None:
        self._handle = handle
        self._put = put
        self._streams: dict[int, _Stream] = {}
        self._buffered = 0

    def __len__(self) -> int:
        return len(self._streams)

    async def accept(self, frame: Frame) -> None:
        """Take one frame from the gateway. Raises MalformedError for one that a gateway must not send."""
        if frame.kind is Kind.REQUEST:
            await self._begin(frame)
        elif frame.kind is Kind.BODY:
            stream = self._streams.get(frame.stream)
            if stream is not None and stream.task is None:  # else refused before, or answered without its body
                await self._more(frame, stream)
        elif frame.kind is Kind.CANCEL:
            stream = self._streams.get(frame.stream)
            if stream is not None:
                if stream.task is not None:
                    stream.task.cancel()
                self._end(frame.stream, stream)
        else:
            raise MalformedError(f"a gateway does not send {frame.kind.name}")

    async def answered(self) -> None:
        """Return when every request that is in work now has given its answer to ``put``."""
        tasks = [stream.task for stream in self._streams.values() if stream.task is not None]
        await asyncio.gather(*tasks, return_exceptions=True)

    def close(self) -> None:
        """Give every request up."""
        for number, stream in list(self._streams.items()):
            if stream.task is not None:
                stream.task.cancel()
            self._end(number, stream)

    async def _begin(self, frame: Frame) -> None:
        if frame.stream == 0 or frame.stream in self._streams:
            raise MalformedError(f"stream {frame.stream} cannot begin now")
        try:
            head = msgspec.json.decode(frame.head, type=RequestHead)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise MalformedError(f"a request whose head cannot be read: {error}") from error
        refusal = self._refusal(head)
        if refusal is not None:
            await self._answer(frame.stream, *refusal)
            return
        loop = asyncio.get_running_loop()
        stream = _Stream(head, loop.time() + min(head.deadline_ms, 1000 * MAX_SECONDS) / 1000)
        self._streams[frame.stream] = stream
        self._buffered += head.body_bytes
        stream.expiry = loop.call_at(stream.deadline, self._late, frame.stream, stream)
        await self._more(frame, stream)

    def _refusal(self, head: RequestHead) -> tuple[int, str] | None:
        path = head.path.partition("?")[0]
        if head.method not in _METHODS:
            return 405, f"{head.method} does not pass the tunnel"
        if not any(path == one or path.startswith(one + "/") for one in _PATHS) or path.startswith(_FORBIDDEN):
            return 404, "this path does not pass the tunnel"
        if head.body_bytes > MAX_BODY:
            return 413, f"the body is larger than {MAX_BODY} bytes; send fewer rows at a time"
        if len(self._streams) >= MAX_STREAMS or self._buffered + head.body_bytes > MAX_BUFFERED:
            return 503, "this device has too many requests in its tunnel"
        return None

    async def _more(self, frame: Frame, stream: _Stream) -> None:
        stream.body += frame.body
        if len(stream.body) > stream.head.body_bytes or (frame.end and len(stream.body) < stream.head.body_bytes):
            self._end(frame.stream, stream)
            await self._answer(frame.stream, 400, "the body has not the length that its head names")
        elif frame.end:
            stream.task = asyncio.create_task(self._run(frame.stream, stream))

    async def _run(self, number: int, stream: _Stream) -> None:
        head = stream.head
        body = bytes(stream.body)
        stream.body.clear()
        headers = {name.lower(): value for name, value in head.headers.items() if name.lower() not in _DROPPED}
        left = stream.deadline - asyncio.get_running_loop().time()
        headers["muster-deadline-ms"] = str(max(int(1000 * left), 1))
        try:
            answer = await self._handle(head.method, head.path, headers, body)
            if stream.expiry is not None:  # on a slow link an answer is long on its way: who no longer wants it cancels
                stream.expiry.cancel()
            await self._send(number, answer.status, answer.headers, answer.body)
        except Exception:  # one request's failure must not take the tunnel down; the gateway is told, the log keeps why
            log.exception("request failed", path=head.path)
            await self._answer(number, 500, "the device failed on this request")
        finally:
            self._end(number, stream)

    async def _answer(self, number: int, status: int, reason: str) -> None:
        headers = {"content-type": "application/json"}
        if status == 503:
            headers["retry-after"] = "1"
        await self._send(number, status, headers, orjson.dumps({"error": reason}))

    async def _send(self, number: int, status: int, headers: dict[str, str], body: bytes) -> None:
        head = msgspec.json.encode(ResponseHead(status=status, headers=headers, body_bytes=len(body)))
        await self._put(Frame(Kind.RESPONSE, number, head, body[:CHUNK], end=len(body) <= CHUNK))
        for start in range(CHUNK, len(body), CHUNK):
            await self._put(Frame(Kind.BODY, number, b"", body[start : start + CHUNK], end=start + CHUNK >= len(body)))

    def _late(self, number: int, stream: _Stream) -> None:
        """The deadline is over. A request in work is answered in this moment; one without its body is refused."""
        if stream.task is None:
            stream.task = asyncio.create_task(self._refuse_late(number, stream))
        stream.expiry = asyncio.get_running_loop().call_later(GRACE_SECONDS, self._give_up, number, stream)

    async def _refuse_late(self, number: int, stream: _Stream) -> None:
        try:
            await self._answer(number, 504, "the body was not there within the time that the request allows")
        finally:
            self._end(number, stream)

    def _give_up(self, number: int, stream: _Stream) -> None:
        """The gateway has long given up: forget what is left of the request."""
        if stream.task is not None:
            stream.task.cancel()
        self._end(number, stream)

    def _end(self, number: int, stream: _Stream) -> None:
        if self._streams.get(number) is stream:
            del self._streams[number]
            self._buffered -= stream.head.body_bytes
            if stream.expiry is not None:
                stream.expiry.cancel()
