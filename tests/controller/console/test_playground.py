"""The console's way to the gateway, whose side is played here by answers that a device could make it give."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator
from pathlib import Path

import certifi
import pytest
import uvicorn

from controller.console import playground
from controller.console.playground import Playground, RefusedError
from controller.errors import TooLargeError, UnavailableError
from controller.listening import Server, listen

Answer = tuple[int, dict[str, str], bytes]


class Far:
    """The gateway's side: what it answers, and what it was asked."""

    def __init__(self) -> None:
        self.answer: Answer = (200, {}, b"{}")
        self.asked: list[dict[bytes, bytes]] = []

    async def __call__(self, scope, receive, send):
        self.asked.append(dict(scope["headers"]))
        status, headers, body = self.answer
        named = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": named})
        await send({"type": "http.response.body", "body": body})


@pytest.fixture
async def far() -> AsyncIterator[tuple[Far, str]]:
    app, listener = Far(), listen("127.0.0.1", 0, "X")
    server = Server(uvicorn.Config(app, lifespan="off", log_config=None, timeout_graceful_shutdown=1))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    await server.listening.wait()
    yield app, f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    await serving


@pytest.fixture
async def asking(far) -> AsyncIterator[Playground]:
    made = Playground(far[1], Path(certifi.where()))
    yield made
    await made.close()


async def test_an_answer_and_its_headers_come_back(far, asking):
    far[0].answer = 200, {"muster-device": "d-a"}, b'{"outputs": []}'
    told, headers = await asking.ask("POST", "/v2/models/m/infer", "secret", b"{}")
    assert told == {"outputs": []}
    assert headers["muster-device"] == "d-a"
    assert far[0].asked[0][b"authorization"] == b"Bearer secret"


async def test_a_refusal_keeps_its_status_and_its_words(far, asking):
    far[0].answer = 429, {}, b'{"error": "every device is busy"}'
    with pytest.raises(RefusedError, match="every device is busy") as caught:
        await asking.ask("GET", "/v2/models/m", "s", None)
    assert caught.value.status == 429


@pytest.mark.parametrize(
    "body", [b"\x00\x01binary", b"[" * 2_000_000, b"[]", b""], ids=["binary", "deep", "list", "no"]
)
@pytest.mark.parametrize("status", [200, 400])
async def test_what_is_no_object_is_said_and_not_shown_as_empty(far, asking, body, status):
    far[0].answer = status, {"muster-device": "d-a"}, body
    with pytest.raises(RefusedError, match="d-a" if status == 200 else "answered 400"):
        await asking.ask("POST", "/v2/models/m/infer", "s", b"{}")


async def test_a_packed_answer_is_not_unpacked_beyond_the_bound(far, asking):
    packed = gzip.compress(b'{"a": "' + b"x" * (64 * 1024**2) + b'"}')
    far[0].answer = 200, {"content-encoding": "gzip", "muster-device": "d-a"}, packed
    with pytest.raises(RefusedError, match="no JSON"):
        await asking.ask("POST", "/v2/models/m/infer", "s", b"{}")


async def test_a_large_answer_is_refused(far, asking, monkeypatch):
    monkeypatch.setattr(playground, "MAX_ANSWER", 1000)
    far[0].answer = 200, {}, b" " * 1001
    with pytest.raises(TooLargeError):
        await asking.ask("POST", "/v2/models/m/infer", "s", b"{}")


async def test_the_credential_goes_to_no_proxy(far, asking, monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert (await asking.ask("GET", "/v2/models/m", "s", None))[0] == {}


async def test_a_gateway_that_is_not_there_is_said(asking, far):
    gone = Playground("http://127.0.0.1:9", Path(certifi.where()))
    with pytest.raises(UnavailableError, match="does it run"):
        await gone.ask("GET", "/v2/models/m", "s", None)
    await gone.close()


async def test_two_who_come_first_share_one_client(far, asking, monkeypatch):
    made = []
    real = playground.httpx.AsyncClient
    monkeypatch.setattr(playground.httpx, "AsyncClient", lambda **fields: made.append(1) or real(**fields))
    await asyncio.gather(*(asking.ask("GET", "/v2/models/m", "s", None) for _ in range(4)))
    assert made == [1]
