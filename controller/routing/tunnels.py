"""The gateway's side of the tunnel (wire 9): one WebSocket a device, many requests in it.

Invariant: a device has at most one tunnel; what waits to be written is bounded in requests and bytes; a large body
gives way to small requests after each chunk; every stream ends exactly once: answered, out of time, broken or lost.
A frame that breaks the contract closes the tunnel. Does not choose devices and knows nothing of clients.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import msgspec
import structlog
from starlette.types import Message, Receive, Send

from controller.routing.attempt import Outcome
from controller.routing.budget import Budget
from controller.routing.standings import LiveDevice
from controller.routing.streams import Outgoing, Stream
from wire.errors import MalformedError
from wire.tunnel import MAX_HEAD, Frame, Kind, RequestHead, ResponseHead, Status, decode_frame, encode_frame

MAX_STREAMS: Final = 128  # requests of one tunnel without an answer
MAX_UNSENT: Final = 64 * 1024 * 1024  # bytes of bodies of one tunnel that wait to be written; a larger one waits alone
LAST_STREAM: Final = 0xFFFF_FFFF
GOODBYE_SECONDS: Final = 0.5

# WebSocket close codes
PROTOCOL_ERROR: Final = 1002
REVOKED: Final = 4003
REPLACED: Final = 4009
SILENT: Final = 4008
CLOSED: Final = 1000
ENDED: Final = 1001
_BY_THE_DEVICE: Final = frozenset({CLOSED, ENDED, PROTOCOL_ERROR, SILENT})

log = structlog.get_logger()
_decode_response = msgspec.json.Decoder(ResponseHead).decode
_decode_status = msgspec.json.Decoder(Status).decode
_encode = msgspec.json.Encoder().encode


class Tunnel:
    """One open tunnel. ``on_close`` is called once, at the moment when it takes no more requests."""

    def __init__(
        self,
        live: LiveDevice,
        send: Send,
        budget: Budget,
        *,
        max_answer: int,
        on_status: Callable[[Tunnel, Status], None],
        on_close: Callable[[Tunnel], None],
        on_late: Callable[[], None],
    ) -> None:
        self.live = live
        self.budget = budget
        self.status = Status(models=[])
        self._said = b""
        self.replaced = False
        self.contested = 0  # tunnels of this device in a row that were replaced while they were well
        self.closed = False
        self._send = send
        self._max_answer = max_answer
        self._on_status, self._on_close, self._on_late = on_status, on_close, on_late
        self._loop = asyncio.get_running_loop()
        self._streams: dict[int, Stream] = {}
        self._next = 1
        self._turns: deque[Outgoing] = deque()  # at most MAX_STREAMS
        self._cancels: deque[bytes] = deque()  # only for streams whose beginning was written
        self._unsent = 0
        self._wake = asyncio.Event()
        self._close_code = 1000
        self.close_reason = ""
        self._tasks: tuple[asyncio.Task[None], ...] = ()

    @property
    def lost(self) -> bool:
        """Whether it was the device that let go: it closed the tunnel, broke the contract or fell silent."""
        return self.closed and self._close_code in _BY_THE_DEVICE

    # requests

    def open(self, head: RequestHead, body: bytes) -> Stream | None:
        """Begin a request; None when the tunnel is closed or has as much to do as it may have.

        Whoever opens a stream calls ``drop`` when it is settled or not wanted any more.
        """
        if self.closed or len(self._streams) >= MAX_STREAMS:
            return None
        if self._unsent and self._unsent + len(body) > MAX_UNSENT:
            return None
        encoded = _encode(head)
        if len(encoded) > MAX_HEAD:
            return None
        number = self._next
        if number == LAST_STREAM:
            self.close(1012, "all stream numbers are used: connect again")
            return None
        self._next = number + 1
        outgoing = Outgoing(number, encoded, body, self._loop.time())
        stream = self._streams[number] = Stream(self, number, outgoing, self._loop.create_future())
        self._turns.append(outgoing)
        self._unsent += len(body)
        self.live.outstanding += 1
        self._wake.set()
        return stream

    def drop(self, stream: Stream) -> None:
        """Forget a stream; the device is told when it may still be working on it. To be called once a stream."""
        self.live.outstanding -= 1
        unanswered = self._streams.pop(stream.id, None) is not None
        outgoing = stream.outgoing
        if self.closed:
            return
        unfinished = not outgoing.finished
        if unfinished:
            self._unsent -= outgoing.left
            outgoing.stop()
            if outgoing in self._turns:
                self._turns.remove(outgoing)
        if outgoing.started and (unfinished or unanswered):
            self._cancels.append(encode_frame(Frame(Kind.CANCEL, stream.id, end=True)))
            self._wake.set()

    # the connection

    async def run(self, receive: Receive) -> None:
        """Carry frames both ways until either side closes."""
        if not self.closed:  # as it is when the device was revoked while its tunnel was being accepted
            self._tasks = (self._loop.create_task(self._read(receive)), self._loop.create_task(self._write()))
            try:
                await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                self.close(ENDED, "the tunnel ended")
                for task in self._tasks:
                    task.cancel()
                await asyncio.gather(*self._tasks, return_exceptions=True)
        for task in self._tasks:
            if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, OSError):
                log.error("a tunnel failed unexpectedly", device=self.live.device, exc_info=error)
        try:
            async with asyncio.timeout(GOODBYE_SECONDS):  # a device that reads no more must not hold this task
                await self._send({"type": "websocket.close", "code": self._close_code, "reason": self.close_reason})
        except (TimeoutError, OSError, RuntimeError) as error:  # already closed from the other side
            log.debug("no goodbye on a tunnel", device=self.live.device, error=str(error))

    def close(self, code: int, reason: str, *, replaced: bool = False) -> None:
        """Take no more requests, settle all streams as lost and let ``run`` end. Does nothing the second time."""
        if self.closed:
            return
        self.closed, self.replaced = True, replaced
        self._close_code, self.close_reason = code, reason[:120]
        self._on_close(self)
        for stream in self._streams.values():
            stream.end(Outcome.LOST, reason)
        self._streams.clear()
        self._turns.clear()
        self._cancels.clear()
        self._unsent = 0
        for task in self._tasks:
            task.cancel()

    async def _write(self) -> None:
        while True:
            if self._cancels:
                await self._send({"type": "websocket.send", "bytes": self._cancels.popleft()})
            elif self._turns:
                outgoing = self._turns.popleft()
                before = outgoing.left
                data = outgoing.next_frame()
                self._unsent -= before - outgoing.left
                if outgoing.finished and not outgoing.written:
                    outgoing.written = self._loop.time()
                await self._send({"type": "websocket.send", "bytes": data})
                if not outgoing.finished:
                    self._turns.append(outgoing)  # behind all that came meanwhile: one chunk a turn
            else:
                self._wake.clear()
                await self._wake.wait()

    async def _read(self, receive: Receive) -> None:
        while True:
            message: Message = await receive()
            if message["type"] == "websocket.disconnect":
                self.close(CLOSED, "the device closed the tunnel")
                return
            self.live.last_heard = self._loop.time()
            try:
                self._take(message)
            except MalformedError as error:
                log.warning(
                    "a device broke the contract, its tunnel is closed", device=self.live.device, why=str(error)
                )
                self.close(PROTOCOL_ERROR, str(error))
                return

    def _take(self, message: Message) -> None:
        data: Any = message.get("bytes")
        if data is None:
            raise MalformedError("a text message in a tunnel of binary frames")
        frame = decode_frame(data)
        if frame.kind is Kind.RESPONSE or frame.kind is Kind.BODY:
            stream = self._streams.get(frame.stream)
            if stream is not None:
                self._take_answer(stream, frame)
            elif frame.stream == 0 or frame.stream >= self._next:
                raise MalformedError(f"an answer on stream {frame.stream}, which was never opened")
            elif frame.kind is Kind.RESPONSE:
                self._on_late()
        elif frame.kind is Kind.STATUS and frame.stream == 0:
            if frame.head == self._said:  # most devices say the same each second
                return
            try:
                self.status = _decode_status(frame.head)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                raise MalformedError(f"status: {error}") from error
            self._said = frame.head
            self._on_status(self, self.status)
        else:
            raise MalformedError(f"a device may not send {frame.kind.name} on stream {frame.stream}")

    def _take_answer(self, stream: Stream, frame: Frame) -> None:
        if stream.done.done():
            return None
        if frame.kind is Kind.RESPONSE:
            if stream.head is not None:
                return stream.end(Outcome.BROKEN, "two heads for one answer")
            try:
                head = _decode_response(frame.head)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                return stream.end(Outcome.BROKEN, f"head: {error}")
            if head.status < 200 or head.status in (204, 205) or 300 <= head.status < 400:
                return stream.end(Outcome.BROKEN, f"status {head.status}, where an answer with a body belongs")
            if head.body_bytes > self._max_answer:
                return stream.end(Outcome.BROKEN, f"{head.body_bytes} bytes, at most {self._max_answer} are allowed")
            if not stream.reserve(head.body_bytes):
                return stream.end(Outcome.SATURATED, "the gateway holds as many bytes as it may")
            stream.begin_answer(head, self.live.last_heard)  # heard just now
        elif stream.head is None:
            return stream.end(Outcome.BROKEN, "a body before its head")
        if not stream.body:
            stream.body = frame.body if frame.end else bytearray(frame.body)
        else:
            stream.body += frame.body
        assert stream.head is not None
        received, announced = len(stream.body), stream.head.body_bytes
        if received > announced or (frame.end and received != announced):
            return stream.end(Outcome.BROKEN, f"{received} bytes, {announced} were announced")
        if frame.end:
            del self._streams[stream.id]
            stream.end(Outcome.ANSWERED)
        return None
