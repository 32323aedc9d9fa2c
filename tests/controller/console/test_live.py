"""The live stream over real sockets: what a page hears, how soon, and what it does not hear."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

from controller.console import live
from controller.tenants import store as tenants_store
from controller.tenants import tokens
from tests.controller.console.conftest import Served, device_id
from tests.controller.console.test_difference import apply


class Tab:
    """A page, as `web/src/lib/live.svelte.ts` behaves: values by watch id, patches applied."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.values: dict[int, Any] = {}
        self.errors: dict[int, dict[str, Any]] = {}
        self.heard: list[dict[str, Any]] = []
        self.bytes = 0

    async def say(self, **words: Any) -> None:
        await self.socket.send(msgspec.json.encode(words).decode())

    async def listen(self) -> None:
        async for text in self.socket:  # ends when the stream is closed
            self.bytes += len(text)
            told = msgspec.json.decode(text)
            self.heard.append(told)
            if "value" in told:
                self.values[told["id"]] = told["value"]
            elif "patch" in told:
                self.values[told["id"]] = apply(self.values[told["id"]], told["patch"])
            elif "status" in told:
                self.errors[told["id"]] = told

    async def until(self, ask: Any, what: str, seconds: float = 5.0) -> None:
        end = time.monotonic() + seconds
        while not ask():
            assert time.monotonic() < end, f"not within {seconds} s: {what}; heard {self.heard[-3:]}"
            await asyncio.sleep(0.01)


@asynccontextmanager
async def tab(served: Served, token: str | None = None, **headers: str) -> AsyncIterator[Tab]:
    url = served.url.replace("http", "ws") + "/api/v1/live"
    fields = headers or {"Authorization": f"Bearer {token or served.token}"}
    async with connect(url, additional_headers=fields) as socket:
        opened = Tab(socket)
        listening = asyncio.create_task(opened.listen())
        try:
            yield opened
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that the stream has asked the application for, one entry a time."""
    found: list[str] = []
    original = live.LiveQueries._ask

    async def counted(self: live.LiveQueries, query: live.SharedQuery) -> tuple[int, Any]:
        found.append(query.path)
        return await original(self, query)

    monkeypatch.setattr(live.LiveQueries, "_ask", counted)
    return found


def add(served: Served, number: int, **fields: Any) -> str:
    served.add_devices([{"id": device_id(number), "name": f"cam-{number}"} | fields])
    return device_id(number)


async def test_a_page_hears_the_same_as_the_address_answers_then_what_changes(served: Served) -> None:
    device = await asyncio.to_thread(add, served, 1)
    async with tab(served) as page:
        await page.say(watch=7, path="/api/v1/devices?sort=name")
        await page.until(lambda: 7 in page.values, "the first answer")
        assert abs(page.heard[0]["now"] - time.time()) < 5
        with served.client() as client:
            asked = client.get("/api/v1/devices?sort=name").json()
            assert page.values[7] == asked
            began = time.monotonic()
            client.patch(f"/api/v1/devices/{device}", json={"name": "hall-3"}).raise_for_status()
        await page.until(lambda: page.values[7]["devices"][0]["name"] == "hall-3", "the new name", 2.0)
        assert time.monotonic() - began < 2.0
        patches = [told for told in page.heard if "patch" in told]
        assert patches[-1]["patch"] == [[["devices", 0, "name"], "hall-3"]]


async def test_many_changes_are_told_at_most_four_times_a_second(served: Served) -> None:
    device = await asyncio.to_thread(add, served, 1)
    async with tab(served) as page:
        await page.say(watch=1, path="/api/v1/devices")
        await page.until(lambda: 1 in page.values, "the first answer")
        heard, began, number = len(page.heard), time.monotonic(), 0
        with served.client() as client:
            while time.monotonic() - began < 1.5:
                number += 1
                await asyncio.to_thread(client.patch, f"/api/v1/devices/{device}", json={"name": f"n{number}"})
        await page.until(lambda: page.values[1]["devices"][0]["name"] == f"n{number}", "the last name")
        took = time.monotonic() - began
        assert number > 10
        assert len(page.heard) - heard <= took / live.SHORTEST + 1


async def test_nothing_is_said_and_hardly_asked_while_nothing_changes(served: Served, asked: list[str]) -> None:
    async with tab(served) as page:
        await page.say(watch=1, path="/api/v1/devices")
        await page.until(lambda: 1 in page.values, "the first answer")
        heard, questions = len(page.heard), len(asked)
        await asyncio.sleep(live.LONGEST + 0.5)
        assert len(page.heard) == heard
        assert 1 <= len(asked) - questions <= 2  # time alone changes things, too


async def test_an_address_that_is_left_is_not_asked_any_more(served: Served) -> None:
    async with tab(served) as page:
        await page.say(watch=1, path="/api/v1/devices")
        await page.until(lambda: 1 in page.values, "the first answer")
        await page.say(unwatch=1)
        heard = len(page.heard)
        await asyncio.to_thread(add, served, 5)
        await asyncio.sleep(1.0)
        assert len(page.heard) == heard


async def test_what_an_address_refuses_is_refused_here_in_its_own_words(served: Served) -> None:
    with served.database.begin() as c:
        viewer = tokens.make(c, tenant="default", name="v", role="viewer", now=time.time())
    async with tab(served, viewer.text) as page:
        await page.say(watch=1, path="/api/v1/tokens")
        await page.say(watch=2, path="/api/v1/devices/d-none")
        await page.say(watch=3, path="/api/v1/devices")
        await page.until(lambda: len(page.errors) == 2 and 3 in page.values, "two refusals and an answer")
        assert page.errors[1]["status"] == 403
        assert "viewer" in page.errors[1]["error"]
        assert page.errors[2]["status"] == 404


async def test_a_page_sees_its_own_tenant_only(served: Served) -> None:
    await asyncio.to_thread(add, served, 1)
    with served.database.begin() as c:
        tenants_store.add_tenant(c, "other", time.time())
        stranger = tokens.make(c, tenant="other", name="s", role="admin", now=time.time())
    async with tab(served) as ours, tab(served, stranger.text) as theirs:
        for page in (ours, theirs):
            await page.say(watch=1, path="/api/v1/devices")
            await page.say(watch=2, path="/api/v1/overview")
            await page.until(lambda page=page: {1, 2} <= page.values.keys(), "both answers")
        assert ours.values[1]["total"] == 1
        assert theirs.values[1]["total"] == 0
        assert theirs.values[2]["devices"]["total"] == 0


@pytest.mark.parametrize(
    "words",
    [
        {"watch": 1, "path": "/metrics"},
        {"watch": 1, "path": "/api/v1/live"},
        {"watch": 1, "path": "/api/v1/../../healthz"},
        {"watch": 0, "path": "/api/v1/devices"},
        {"watch": 1, "path": "/api/v1/" + "x" * 5000},
        {"do": "something"},
    ],
)
async def test_what_is_no_command_ends_the_stream_or_is_refused(served: Served, words: dict[str, Any]) -> None:
    async with tab(served) as page:
        await page.say(**words)
        await page.until(lambda: page.errors or page.socket.close_code is not None, "a refusal")
        assert page.values == {}
    with served.client() as client:
        assert client.get("/healthz").status_code == 200


async def test_too_many_watches_are_refused(served: Served) -> None:
    async with tab(served) as page:
        for id_ in range(1, live.MAX_WATCHES + 2):
            await page.say(watch=id_, path=f"/api/v1/devices?limit={id_}")
        await page.until(lambda: page.socket.close_code is not None, "the stream is closed")
        assert page.socket.close_code == 1008
        assert f"at most {live.MAX_WATCHES}" in (page.socket.close_reason or "")


async def test_one_token_opens_so_many_pages_and_no_more_and_a_closed_one_makes_room(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "MAX_PAGES_EACH", 1)
    async with tab(served) as first:
        await first.until(lambda: first.heard, "it is open")
        with pytest.raises(InvalidStatus):
            async with tab(served):
                pass
    for _ in range(200):  # the server hears of the closed one a moment later
        try:
            async with tab(served) as second:
                await second.until(lambda second=second: second.heard, "it is open")
            break
        except InvalidStatus:
            await asyncio.sleep(0.01)
    assert second.heard


async def test_nobody_gets_in_without_a_credential_or_from_another_site(served: Served) -> None:
    url = served.url.replace("http", "ws") + "/api/v1/live"
    with pytest.raises(InvalidStatus) as refused:
        async with connect(url):
            pass
    assert refused.value.response.status_code == 401
    async with httpx.AsyncClient(base_url=served.url) as browser:
        await browser.get(served.login_path())
        cookie = "; ".join(f"{name}={value}" for name, value in browser.cookies.items())
    with pytest.raises(InvalidStatus):
        async with connect(url, additional_headers={"Cookie": cookie, "Origin": "http://evil.example"}):
            pass
    async with tab(served, Cookie=cookie, Origin=served.url) as page:
        await page.say(watch=1, path="/api/v1/whoami")
        await page.until(lambda: 1 in page.values, "the answer to the cookie's session")


async def test_a_page_whose_session_ended_is_told_and_hears_nothing_more(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "CREDENTIAL_SECONDS", 0.2)
    with served.database.begin() as c:
        token = tokens.make(c, tenant="default", name="t", role="operator", now=time.time())
    async with tab(served, token.text) as page:
        await page.say(watch=1, path="/api/v1/devices")
        await page.until(lambda: 1 in page.values, "the first answer")
        with served.database.begin() as c:
            tokens.revoke(c, "default", token.id, time.time())
        await page.until(lambda: page.socket.close_code == 4401, "the stream is closed")
        assert {told["status"] for told in page.errors.values()} == {401}


async def test_tabs_with_the_same_address_share_one_answer(served: Served, asked: list[str]) -> None:
    async with tab(served) as first, tab(served) as second:
        for page in (first, second):
            await page.say(watch=1, path="/api/v1/devices")
        await first.until(lambda: 1 in first.values and 1 in second.values, "both have it")
        count = len(asked)
        await asyncio.to_thread(add, served, 3)
        await first.until(lambda: first.values[1]["total"] == 1 and second.values[1]["total"] == 1, "both hear of it")
        assert len(asked) - count <= 2
