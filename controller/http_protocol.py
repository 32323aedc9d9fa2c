"""HTTP/1.1 as uvicorn speaks it, with bounds on what a connection may do that is not a request.

Invariant: what a client sends without a request coming of it is bounded in bytes, and a connection on which none begins
or ends is closed in time; nothing of that is the application's to notice, because it is not asked yet. A body that was
refused is read to its end, within a bound: who closes before that takes the refusal from its reader as well. Knows no
application.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from controller.joined_writes import JoinedWrites

MAX_STRAY: Final = 64 * 1024  # bytes of a request's head, or of anything else that is neither head nor body
MAX_DROPPED: Final = 64 * 1024 * 1024  # bytes of a refused body
LOOK_SECONDS: Final = 30  # a connection is closed that waits for the same request at two looks


class BoundedHttp(HttpToolsProtocol):
    """The protocol of one connection. ``look`` is to be called every ``LOOK_SECONDS`` (`listening.Server` does)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._stray = 0
        self._dropped = 0
        self._moved = False
        self._heads = 0
        self._waited_for = -1

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection; a WebSocket that it becomes gets the same transport."""
        super().connection_made(cast(asyncio.Transport, JoinedWrites(transport, self.loop)))

    def data_received(self, data: bytes) -> None:
        """Take what came, and count it when no request came of it."""
        self._moved = False
        super().data_received(data)
        if self._moved:
            self._stray = 0
            return
        self._stray += len(data)
        if self._stray > MAX_STRAY and not self.transport.is_closing():
            self._refuse_head()

    def on_headers_complete(self) -> None:
        """A request begins."""
        self._moved = True
        self._heads += 1
        self._dropped = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of a body came; nobody wants that of a request that has its answer."""
        self._moved = True
        if self.cycle is not None and self.cycle.response_complete:
            self._dropped += len(body)
            if self._dropped > MAX_DROPPED:
                self.transport.close()
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A request is here as a whole."""
        self._moved = True
        super().on_message_complete()

    def look(self) -> None:
        """Close the connection when it waits for the same request as at the look before."""
        waits = self.timeout_keep_alive_task is None and (self.cycle is None or self.cycle.response_complete)
        if waits and self._waited_for == self._heads:
            self.transport.close()
        self._waited_for = self._heads if waits else -1

    def _refuse_head(self) -> None:
        text = b'{"error":"the head of a request has at most %d bytes","code":"head_too_large"}' % MAX_STRAY
        headers = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(text)
        if self.cycle is None or self.cycle.response_complete:
            self.transport.write(STATUS_LINE[431] + headers + text)
        self.transport.close()
