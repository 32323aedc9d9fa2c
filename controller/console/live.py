"""The live stream of the console: addresses of the API whose answers are sent again when they change.

Invariant: what a page hears is exactly what the address answers to it: each answer is made by the application itself,
with the caller's own credential, so the guard and the tenant's borders hold here as everywhere. A query is answered at
most four times a second, less often where it is dear; pages with the same caller and address share one answer; a page
that reads slowly gets fewer, newer answers, never a queue of old ones. Changes nothing.

The page says ``{"watch": 1, "path": "/api/v1/devices?limit=50"}`` and ``{"unwatch": 1}``. It hears ``{"now": seconds}``
first, then for each query ``{"id", "value"}``, later ``{"id", "patch"}`` (`difference.py`), or ``{"id", "status",
"code", "error"}``.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final
from urllib.parse import unquote

import msgspec
import structlog
from fastapi import APIRouter, Depends, WebSocket
from starlette.websockets import WebSocketDisconnect

from controller.console.difference import difference
from controller.errors import ControllerError, UnauthenticatedError
from controller.tenants.access import Principal
from controller.tenants.guard import identify, permit

SHORTEST: Final = 0.25  # seconds between two answers to one query
SHARE: Final = 0.1  # of the time, at most, goes into one query
LONGEST: Final = 2.0  # without any change a query is answered again so often: time alone changes things, too
CREDENTIAL_SECONDS: Final = 5.0  # so often a page's session is looked at again
MAX_WATCHES: Final = 24  # of one page
MAX_PAGES: Final = 200
MAX_PAGES_EACH: Final = 40  # of one token
MAX_MESSAGE: Final = 8192
MAX_ANSWER: Final = 4 * 1024**2
_PREFIX: Final = "/api/v1/"
_SPECIAL: Final = frozenset({"/api/v1/live"})

log = structlog.get_logger()
Application = Callable[[MutableMapping[str, Any], Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Any]


class Changes:
    """Counts what was written, and wakes those who wait for it. ``note`` may be called from any thread."""

    def __init__(self) -> None:
        self.number = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._event = asyncio.Event()

    def note(self) -> None:
        """Something was written."""
        self.number += 1
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits any more
                self._loop.call_soon_threadsafe(self._wake)

    async def after(self, number: int, seconds: float) -> None:
        """Return once ``self.number`` is not ``number`` any more, or after ``seconds``."""
        self._loop = asyncio.get_running_loop()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self.number == number:
                    await self._event.wait()

    def _wake(self) -> None:
        self._event.set()
        self._event = asyncio.Event()


class Command(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a page may say."""

    watch: Annotated[int, msgspec.Meta(ge=1, le=2**31)] | None = None
    unwatch: Annotated[int, msgspec.Meta(ge=1, le=2**31)] | None = None
    path: Annotated[str, msgspec.Meta(max_length=4000)] = ""


@dataclass(eq=False)
class Answer:
    """An answer, its number, and what turns the one before into it."""

    number: int
    status: int
    value: Any
    patch: list[Any] | None


@dataclass(eq=False)
class SharedQuery:
    """One address for one caller. ``pages``: who watches, with how many watches."""

    path: str
    headers: list[tuple[bytes, bytes]]
    pages: dict[Page, int] = field(default_factory=dict)
    answer: Answer | None = None
    task: asyncio.Task[None] | None = None


class Page:
    """One WebSocket. ``watched``: query and the number of the last answer sent, by the page's own ids."""

    def __init__(self, principal: Principal) -> None:
        self.principal = principal
        self.watched: dict[int, tuple[SharedQuery, int]] = {}
        self.news = asyncio.Event()


class LiveQueries:
    """All pages and their queries. ``application``: answers the queries; ``changes``: when to look again."""

    def __init__(self, application: Application, changes: Changes) -> None:
        self._application = application
        self._changes = changes
        self._queries: dict[tuple[str, str], SharedQuery] = {}
        self._pages: Counter[str] = Counter()  # by the id of their token

    async def serve(self, socket: WebSocket, principal: Principal) -> None:
        """Serve one page until it goes or its session ends."""
        if self._pages.total() >= MAX_PAGES or self._pages[principal.id] >= MAX_PAGES_EACH:
            await socket.close(1013, "as many pages are open as may be: close some")
            return
        self._pages[principal.id] += 1
        page = Page(principal)
        await socket.accept()
        try:
            async with asyncio.TaskGroup() as group:
                telling = group.create_task(self._tell(socket, page))
                await self._listen(socket, page)
                telling.cancel()
        except* WebSocketDisconnect:
            pass
        finally:
            self._pages -= Counter({principal.id: 1})  # an entry of none goes
            for id_ in list(page.watched):
                self._unwatch(page, id_)

    async def _listen(self, socket: WebSocket, page: Page) -> None:
        while True:
            message = await socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            text = message.get("text") or ""
            try:
                if len(text) > MAX_MESSAGE:
                    raise ValueError("too long")
                command = msgspec.json.decode(text, type=Command)
                if command.unwatch is not None:
                    self._unwatch(page, command.unwatch)
                if command.watch is not None:
                    self._watch(socket, page, command.watch, command.path)
            except (msgspec.MsgspecError, ValueError) as error:
                await socket.close(1008, f"that is no command: {error}"[:120])
                return

    def _watch(self, socket: WebSocket, page: Page, id_: int, path: str) -> None:
        if not path.startswith(_PREFIX) or path.partition("?")[0] in _SPECIAL or not path.isascii():
            raise ValueError("only addresses below /api/v1/ can be watched")
        self._unwatch(page, id_)
        if len(page.watched) >= MAX_WATCHES:
            raise ValueError(f"a page watches at most {MAX_WATCHES} addresses")
        key = (page.principal.id, path)
        query = self._queries.get(key)
        if query is None:
            query = self._queries[key] = SharedQuery(path, _headers(socket))
            query.task = asyncio.create_task(self._answer_again(query), name=f"live {path}")
        query.pages[page] = query.pages.get(page, 0) + 1
        page.watched[id_] = (query, 0)
        page.news.set()

    def _unwatch(self, page: Page, id_: int) -> None:
        found = page.watched.pop(id_, None)
        if found is None:
            return
        query, _ = found
        query.pages[page] -= 1
        if not query.pages[page]:
            del query.pages[page]
        if not query.pages:
            del self._queries[page.principal.id, query.path]
            if query.task is not None:
                query.task.cancel()

    async def _answer_again(self, query: SharedQuery) -> None:
        """Answer ``query`` at first and after changes, as long as somebody watches."""
        while True:
            began, seen = time.monotonic(), self._changes.number
            status, value = await self._ask(query)
            cost = time.monotonic() - began
            held = query.answer
            if held is None or held.status != status:
                query.answer = Answer(1 if held is None else held.number + 1, status, value, None)
            elif patch := difference(held.value, value):
                query.answer = Answer(held.number + 1, status, value, patch)
            if query.answer is not held:
                for page in query.pages:
                    page.news.set()
            pause = max(SHORTEST, cost / SHARE)
            await asyncio.sleep(pause)
            await self._changes.after(seen, max(LONGEST - pause, 0.0))

    async def _ask(self, query: SharedQuery) -> tuple[int, Any]:
        """Return status and decoded answer of the query's address."""
        path, _, text = query.path.partition("?")
        scope: MutableMapping[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": unquote(path),
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": text.encode(),
            "headers": query.headers,
            "client": None,
            "server": None,
            "state": {},
        }
        status, body = 500, bytearray()
        sent = False

        async def receive() -> Mapping[str, Any]:
            nonlocal sent
            if sent:
                await asyncio.Event().wait()  # the caller stays
            sent = True
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Mapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            elif len(body) <= MAX_ANSWER:
                body.extend(message.get("body", b""))

        try:
            await self._application(scope, receive, send)
        except Exception as error:  # the application has answered 500 and logged it; the stream must go on
            log.debug("a live query failed", path=query.path, error=str(error))
        if len(body) > MAX_ANSWER:
            return 413, {"error": "this answer is too large to be watched", "code": "too_large"}
        try:
            return status, msgspec.json.decode(bytes(body))
        except msgspec.DecodeError:
            return 415, {"error": "this address does not answer in JSON", "code": "not_json"}

    async def _tell(self, socket: WebSocket, page: Page) -> None:
        """Send what is new, as fast as the page takes it."""
        await _send(socket, {"now": time.time()})
        looked = time.monotonic()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CREDENTIAL_SECONDS):
                    await page.news.wait()
            if time.monotonic() - looked >= CREDENTIAL_SECONDS:
                looked = time.monotonic()
                try:
                    await asyncio.to_thread(identify, socket)
                except UnauthenticatedError as error:
                    await _send(socket, {"id": 0, "status": 401, "code": error.code, "error": str(error)})
                    await socket.close(4401, "the session is over")
                    return
                except ControllerError:
                    pass  # the database is busy: look again later
            page.news.clear()
            for id_, (query, number) in list(page.watched.items()):
                answer = query.answer
                if answer is None or answer.number == number or id_ not in page.watched:
                    continue
                page.watched[id_] = (query, answer.number)
                await _send(socket, {"id": id_} | _words(answer, number))


def _words(answer: Answer, number: int) -> dict[str, Any]:
    if answer.status != 200:
        told = answer.value if isinstance(answer.value, dict) else {}
        words = {"code": str(told.get("code", "")), "error": str(told.get("error", "this address has no answer"))}
        return {"status": answer.status} | words
    if answer.patch is not None and answer.number == number + 1:
        return {"patch": answer.patch}
    return {"value": answer.value}


def _headers(socket: WebSocket) -> list[tuple[bytes, bytes]]:
    """The caller's credential, and nothing else of the request."""
    return [(name, value) for name, value in socket.scope["headers"] if name in (b"cookie", b"authorization", b"host")]


async def _send(socket: WebSocket, message: Any) -> None:
    await socket.send_text(msgspec.json.encode(message).decode())


def live_router(queries: Callable[[], LiveQueries]) -> APIRouter:
    """Return the route of the stream; ``queries`` is given by `app.py`."""
    router = APIRouter(prefix="/api/v1", tags=["console"])

    @router.websocket("/live")
    async def stream(socket: WebSocket, principal: Principal = Depends(permit("fleet.read"))) -> None:  # noqa: B008
        """The stream."""
        await queries().serve(socket, principal)

    return router
