"""A request that did not come through a socket of ours, given to the ASGI application.

Invariant: the application sees the same events as from a socket, so that nothing is answered differently. The answer is
collected whole: the tunnel names a body's length before the body.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import msgspec

from agent.serving.body import Event, Receive, Scope, Send


class Answer(msgspec.Struct, frozen=True):
    """A whole HTTP answer; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


Application = Callable[[Scope, Receive, Send], Awaitable[None]]


class Inward:
    """Calls ``application`` with requests that are plain data."""

    def __init__(self, application: Application) -> None:
        self._application = application

    async def __call__(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Return the application's answer. Cancelling this takes the request out of its queue."""
        path, _, query = path.partition("?")
        scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": query.encode(),
            "headers": [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()],
            "client": None,
            "server": None,
        }
        pending: list[Event] = [{"type": "http.request", "body": body, "more_body": False}]
        parts: list[bytes] = []
        status, answered = 500, {}

        async def receive() -> Event:
            if pending:
                return pending.pop()
            never: asyncio.Future[Event] = asyncio.get_running_loop().create_future()
            return await never  # a gateway that gives up cancels the task instead

        async def send(event: Event) -> None:
            nonlocal status, answered
            if event["type"] == "http.response.start":
                status = event["status"]
                answered = {name.decode("latin-1"): value.decode("latin-1") for name, value in event["headers"]}
            else:
                parts.append(event.get("body", b""))

        await self._application(scope, receive, send)
        return Answer(status, answered, b"".join(parts))
