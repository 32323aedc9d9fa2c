"""Several sources for one artifact, most of them bad: real HTTP on loopback."""

from __future__ import annotations

import asyncio
import gzip
import random
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.builds.fetch import Fetcher, Mirror, Patience
from agent.builds.store import Store
from agent.errors import ControllerError, DeviceError, TrustError
from tests.agent.builds.test_fetch import BODY, QUICK, SHA256, Answer, Server, cut_after, dripping, endless, good, says

EVIL = bytes(len(BODY))


def evil(request: dict[str, str], send: Callable[[bytes], None]) -> None:
    good(request, send, EVIL)


def swapped(request: dict[str, str], send: Callable[[bytes], None]) -> None:
    """Honours no If-Range: whoever resumes gets the end of another file."""
    good({"range": request["range"]} if "range" in request else {}, send, EVIL, tag='"other"')


def to(location: str) -> Answer:
    return says("302 Found", f"Location: {location}")


BOMB = gzip.compress(b" " * 30_000_000)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "blobs", 0)


@pytest.fixture
def play(store: Store) -> Iterator[Callable[..., tuple[list[Server], Fetcher]]]:
    servers: list[Server] = []

    def start(
        mirrors: list[Answer | list[Answer]], *controller: Answer, **options: Any
    ) -> tuple[list[Server], Fetcher]:
        made = [Server(*(answers if isinstance(answers, list) else [answers])) for answers in mirrors]
        made.append(Server(*controller))
        servers.extend(made)
        fetcher = Fetcher(
            store,
            made[-1].url(),
            None,
            lambda: "token",
            mirrors=[Mirror(f"{server.url()}/blobs") for server in made[:-1]],
            patience=options.pop("patience", QUICK),
            rng=random.Random(1),
            **options,
        )
        return made, fetcher

    yield start
    for server in servers:
        server.close()


async def fetch(fetcher: Fetcher, seconds: float = 10.0) -> Path:
    async with asyncio.timeout(seconds):
        return await fetcher.fetch(SHA256, len(BODY))


async def test_the_first_mirror_is_asked_first_and_sees_no_token(play: Any) -> None:
    (mirror, second, controller), fetcher = play([good, good], good)
    assert (await fetch(fetcher)).read_bytes() == BODY
    assert [request["path"] for request in mirror.requests] == [f"/blobs/{SHA256}"]
    assert "authorization" not in mirror.requests[0]
    assert second.requests == controller.requests == []


@pytest.mark.parametrize(
    "bad",
    [
        evil,
        says("404 Not Found"),
        says("403 Forbidden"),
        says("401 Who"),
        says("503 Busy"),
        to("http://127.0.0.1:1/elsewhere"),
        to("file:///etc/passwd"),
        says("200 OK", "Content-Encoding: gzip", body=BOMB),
        says("200 OK", body=BODY[:-1]),
        says("200 OK", body=BODY + b"x"),
        endless,
        dripping,
        lambda _request, send: send(b"\xff\xfe not http\r\n\r\n"),
        lambda _request, send: send(b""),
    ],
    ids=["evil", "404", "403", "401", "503", "redirect", "to-file", "bomb", "short", "long", "endless", "dripping",
         "not-http", "closed"],
)  # fmt: skip
async def test_whatever_a_mirror_does_the_controller_gives_the_file(store: Store, play: Any, bad: Answer) -> None:
    (mirror, controller), fetcher = play([bad], good)
    assert (await fetch(fetcher)).read_bytes() == BODY
    assert mirror.requests
    assert controller.requests[0]["authorization"] == "Bearer token"
    assert store.has(SHA256, len(BODY))


async def test_a_mirror_that_is_not_there_costs_no_pause(store: Store, play: Any) -> None:
    (controller,), _ = play([], good)
    with socket.create_server(("127.0.0.1", 0)) as gone:
        nobody = Mirror(f"http://127.0.0.1:{gone.getsockname()[1]}")
    patience = Patience(backoff=30.0)
    fetcher = Fetcher(store, controller.url(), None, lambda: "token", mirrors=[nobody], patience=patience)
    begun = time.monotonic()
    assert (await fetch(fetcher)).read_bytes() == BODY
    assert time.monotonic() - begun < 10.0


async def test_what_one_began_another_finishes(play: Any) -> None:
    (mirror, controller), fetcher = play([cut_after(100_000)], good)
    assert (await fetch(fetcher)).read_bytes() == BODY
    assert controller.requests[0]["range"] == "bytes=100000-"
    assert "if-range" not in controller.requests[0]  # the tag was the mirror's
    assert len(mirror.requests) == 1


async def test_a_file_swapped_in_the_middle_never_gets_in(store: Store, play: Any) -> None:
    """Both halves are well-formed; only the hash of the whole tells. The wrong end is thrown away, and fetched anew."""
    (_, mirror, controller), fetcher = play([cut_after(100_000), swapped], good)
    assert (await fetch(fetcher)).read_bytes() == BODY
    assert mirror.requests[0]["range"] == "bytes=100000-"
    assert controller.requests[0].get("range") is None
    _, fetcher = play([], cut_after(100_000), swapped)
    store.path(SHA256).unlink()
    with pytest.raises(TrustError) as caught:
        await fetch(fetcher)
    assert caught.value.code == "wrong_hash"
    assert not store.has(SHA256, len(BODY))
    assert not store.part(SHA256).exists()


async def test_a_mirror_that_lied_twice_is_asked_no_more(play: Any) -> None:
    (mirror, controller), fetcher = play([evil], *[says("503 Busy")] * 3, good)
    assert (await fetch(fetcher)).read_bytes() == BODY
    assert len(mirror.requests) == 2
    assert len(controller.requests) == 4


async def test_when_all_are_bad_the_controller_has_the_last_word(store: Store, play: Any) -> None:
    (first, second, controller), fetcher = play([evil, says("404 Not Found")], says("403 Forbidden"))
    with pytest.raises(ControllerError) as caught:
        await fetch(fetcher)
    assert caught.value.code == "refused"
    assert (len(first.requests), len(second.requests), len(controller.requests)) == (2, 1, 1)
    assert not store.has(SHA256, len(BODY))


async def test_all_of_them_together_are_given_up(play: Any) -> None:
    servers, fetcher = play([says("503 Busy"), says("503 Busy")], says("503 Busy"))
    with pytest.raises(ControllerError) as caught:
        await fetch(fetcher)
    assert caught.value.code == "no_progress"
    assert {len(server.requests) for server in servers} == {3}


async def test_the_callers_deadline_ends_it_and_keeps_what_came(store: Store, play: Any) -> None:
    def half(request: dict[str, str], send: Callable[[bytes], None]) -> None:
        cut_after(50_000)(request, send)
        time.sleep(5)

    _, fetcher = play([], half, patience=Patience(window=60))
    with pytest.raises(TimeoutError):
        await fetch(fetcher, 0.5)
    assert 0 < store.part(SHA256).stat().st_size <= 50_000
    assert not store.has(SHA256, len(BODY))


async def test_a_blob_is_synced_before_it_has_its_name(store: Store, play: Any) -> None:
    from agent import durable

    _, fetcher = play([], good)
    names: list[str] = []
    before = durable.set_hook(names.append)
    try:
        await fetch(fetcher)
    finally:
        durable.set_hook(before)
    assert names.index("fetch.part:after") < names.index("blobs.adopt:before") < names.index("blobs.adopt:renamed")


def test_a_mirror_address_that_is_none_is_refused_at_once(store: Store) -> None:
    for url in ("file:///srv/blobs", "http://192.0.2.1/blobs", "nonsense"):
        with pytest.raises(DeviceError) as caught:
            Fetcher(store, "http://127.0.0.1:1", None, lambda: "t", mirrors=[Mirror(url)])
        assert caught.value.code == "bad_address"
