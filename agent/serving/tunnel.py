"""The device's outbound WebSocket, through which a gateway sends requests (wire 9).

Invariant: a tunnel that breaks is opened again with jittered back-off for as long as the process lives; nothing that
comes through it reaches anything but inference, health and figures. What is in memory for it is bounded: streams, bytes
of bodies, frames that wait to be written by its one writer. Never sees the device's key, only short credentials.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ssl
import time
from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

import msgspec
import structlog
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus, WebSocketException
from websockets.typing import Subprotocol

from agent.serving.refusal import RefusedError
from agent.serving.streams import Handle, Streams
from agent.serving_protocol import TunnelRequest
from wire.errors import MalformedError, WireError
from wire.tunnel import MAX_FRAME, SUBPROTOCOL, Frame, Kind, ServedModel, Status, decode_frame, encode_frame

log = structlog.get_logger()

STATUS_SECONDS: Final = 1.0
STEADY_SECONDS: Final = 10.0
"""A tunnel that held this long starts its back-off anew."""
CLOSE_SECONDS: Final = 2.0
_WAITING_FRAMES: Final = 32
_LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")


class Tunnel:
    """The tunnel of one serving process. ``delay(attempt)``: seconds before the next attempt.

    state: "none" before the first ``open``, then "connecting" or "open"; error: why it is not open.
    """

    def __init__(self, handle: Handle, served: Callable[[], list[ServedModel]], delay: Callable[[int], float]) -> None:
        self.state = "none"
        self.error = ""
        self.draining = False
        self._handle = handle
        self._served = served
        self._delay = delay
        self._request: TunnelRequest | None = None
        self._task: asyncio.Task[None] | None = None
        self._renewed = asyncio.Event()
        self._changed = asyncio.Event()
        self._socket: ClientConnection | None = None
        self._streams: Streams | None = None
        self._frames: asyncio.Queue[Frame] = asyncio.Queue(_WAITING_FRAMES)

    async def open(self, request: TunnelRequest) -> None:
        """Open the tunnel, or use ``request`` from the next connection on; another address reconnects at once.

        Raises RefusedError (400) when the address or the CA file cannot be used.
        """
        url = urlsplit(request.url)
        if url.scheme != "wss" and not (url.scheme == "ws" and url.hostname in _LOOPBACK):
            raise RefusedError(400, f"{request.url[:200]!r}: a tunnel needs a wss:// address", "bad_request")
        context(request)
        before, self._request = self._request, request
        moved = before is not None and before.url != request.url
        if self._socket is None or moved:  # else: a tunnel that breaks later waits like all others
            self._renewed.set()
        if self._task is None:
            self._task = asyncio.create_task(self._keep_open(), name="tunnel")
        elif moved and self._socket is not None:
            await self._socket.close(1001)

    def poke(self) -> None:
        """What is served has changed: tell the gateway now."""
        self._changed.set()

    async def finish(self) -> None:
        """Return when the requests that came through the tunnel are answered and the answers written, or soon."""
        if self._streams is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_SECONDS):
                    await self._streams.answered()
                    await self._frames.join()

    async def close(self) -> None:
        """Close the tunnel for good."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self.state = "none"

    async def _keep_open(self) -> None:
        attempt = 0
        while True:
            request = self._request
            assert request is not None
            self._renewed.clear()
            self.state, begun = "connecting", time.monotonic()
            try:
                await self._once(request)
                self.error = "the gateway closed the tunnel"
            except InvalidStatus as error:
                self.error = f"the gateway refused the tunnel with status {error.response.status_code}"
            except (OSError, TimeoutError, WebSocketException, WireError, RefusedError) as error:
                self.error = f"{type(error).__name__}: {error}"[:500]
            except Exception as error:  # whatever it is, the device must stay reachable; the log keeps why
                log.exception("tunnel failed")
                self.error = f"{type(error).__name__}: {error}"[:500]
            attempt = 0 if time.monotonic() - begun > STEADY_SECONDS else attempt + 1
            self.state = "connecting"
            wait = self._delay(attempt)
            log.info("tunnel closed", reason=self.error, attempt=attempt, wait_s=round(wait, 2))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._renewed.wait(), wait)

    async def _once(self, request: TunnelRequest) -> None:
        token = base64.urlsafe_b64encode(request.credential.encode()).decode()
        async with connect(
            request.url,
            ssl=context(request),
            subprotocols=[Subprotocol(SUBPROTOCOL)],
            compression=None,
            additional_headers={"Authorization": f"Bearer {token}"},
            user_agent_header="muster-serving",
            proxy=None if urlsplit(request.url).hostname in _LOOPBACK else True,
            max_size=MAX_FRAME,
            close_timeout=CLOSE_SECONDS,
        ) as socket:
            if socket.subprotocol != SUBPROTOCOL:
                raise RefusedError(400, "the other side does not speak this tunnel's protocol", "bad_request")
            self._socket, self.state, self.error = socket, "open", ""
            self._renewed.clear()
            log.info("tunnel open", url=request.url)
            try:
                await self._talk(socket)
            finally:
                self._socket = None

    async def _talk(self, socket: ClientConnection) -> None:
        """Read, write and tell until one of them ends: each is of no use without the others."""
        frames: asyncio.Queue[Frame] = asyncio.Queue(_WAITING_FRAMES)
        streams = Streams(self._handle, frames.put)
        self._frames, self._streams = frames, streams
        parts = (self._read(socket, streams), self._write(socket, frames), self._tell(frames))
        tasks = [asyncio.create_task(part) for part in parts]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            self._streams = None
            streams.close()
            await asyncio.gather(*tasks, return_exceptions=True)
        try:
            for task in done:
                task.result()
        except WireError as error:
            await socket.close(1002, str(error)[:120])
            raise

    async def _read(self, socket: ClientConnection, streams: Streams) -> None:
        async for message in socket:
            if not isinstance(message, bytes):
                raise MalformedError("a frame that is text")
            await streams.accept(decode_frame(message))

    async def _write(self, socket: ClientConnection, frames: asyncio.Queue[Frame]) -> None:
        """The only place that writes: frames of several answers take turns in the queue."""
        while True:
            await socket.send(encode_frame(await frames.get()))
            frames.task_done()

    async def _tell(self, frames: asyncio.Queue[Frame]) -> None:
        while True:
            self._changed.clear()
            status = Status(models=self._served()[:256], draining=self.draining)
            await frames.put(Frame(Kind.STATUS, 0, msgspec.json.encode(status), end=True))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), STATUS_SECONDS)


def context(request: TunnelRequest) -> ssl.SSLContext | None:
    """Return the TLS context that trusts only the CA file of ``request``. Raises RefusedError (400)."""
    if urlsplit(request.url).scheme == "ws":
        return None
    try:
        made = ssl.create_default_context(cafile=request.ca_file)
    except (OSError, ValueError) as error:
        raise RefusedError(400, f"CA file {request.ca_file}: {error}", "bad_request") from error
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    return made
