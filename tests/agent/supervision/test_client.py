"""The client against the real serving process, and against far sides that misbehave."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.errors import ServingError
from agent.serving import listen
from agent.serving.active import ActiveFile
from agent.serving.control import Control
from agent.serving.hosting import HttpServer
from agent.serving.models import Models
from agent.serving.tunnel import Tunnel
from agent.serving_protocol import SOCKET_NAME
from agent.supervision import client as module
from agent.supervision.client import ServingClient
from tests.agent.serving.builds import make_build


async def _nothing(*_: object) -> Any:
    raise AssertionError


@asynccontextmanager
async def serving(data: Path, stopped: list[bool] | None = None) -> AsyncIterator[tuple[ServingClient, Models]]:
    models = Models(ActiveFile(data / "serving"))
    tunnel = Tunnel(_nothing, models.served, lambda attempt: 60.0)
    control = Control(models, tunnel, ("127.0.0.1", 8000), 5.0, lambda: (stopped or []).append(True))
    server = HttpServer(control)
    task = asyncio.create_task(server.serve(sockets=[listen.unix(data / SOCKET_NAME)]))
    yield ServingClient(data / SOCKET_NAME), models
    server.end()
    await task
    await tunnel.close()
    await models.close()


async def test_a_build_s_whole_life(tmp_path: Path) -> None:
    build = make_build(tmp_path / "build")
    async with serving(tmp_path) as (client, _):
        state = await client.state()
        assert (state.protocol, state.pid, state.http_port, state.tunnel) == (1, os.getpid(), 8000, "none")
        assert (await client.load("tiny", build, tmp_path / "build")).state == "loaded"
        assert (await client.probe("tiny", build)).passed
        assert (await client.activate("tiny", build)).state == "active"
        assert [(b.model, b.build, b.state) for b in (await client.state()).builds] == [("tiny", build, "active")]
        with pytest.raises(ServingError, match=r"\(409\).*is active") as caught:
            await client.unload("tiny", build)
        assert caught.value.code == "conflict"
        await client.remove("tiny")
        await client.unload("tiny", build)
        assert (await client.state()).builds == []


async def test_refusals_carry_their_code(tmp_path: Path) -> None:
    broken = make_build(tmp_path / "broken", model_bytes=b"no model")
    async with serving(tmp_path) as (client, _):
        for code, call in {
            "bad_model": client.load("tiny", broken, tmp_path / "broken"),
            "bad_build": client.load("tiny", "b-other", tmp_path / "broken"),
            "no_build": client.load("tiny", broken, tmp_path / "nothing"),
            "unknown_build": client.activate("tiny", broken),
            "bad_request": client.tunnel("http://x", "c", "/ca"),
        }.items():
            with pytest.raises(ServingError) as caught:
                await call
            assert caught.value.code == code
        assert (await client.state()).builds == []


async def test_stop_reaches_the_process(tmp_path: Path) -> None:
    stopped: list[bool] = [False]
    async with serving(tmp_path, stopped) as (client, _):
        await client.stop()
        assert stopped == [False, True]


async def test_a_path_longer_than_an_address_works(tmp_path: Path) -> None:
    data = tmp_path / ("long" * 20) / ("path" * 20)
    data.mkdir(parents=True)
    async with serving(data) as (client, _):
        assert (await client.state()).pid == os.getpid()
        assert client.peer_pid() == os.getpid()
    assert (data / SOCKET_NAME).stat().st_mode & 0o777 == 0o600


async def test_another_version_of_the_protocol_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(tmp_path) as (client, _):
        monkeypatch.setattr(module, "VERSION", 2)
        with pytest.raises(ServingError, match="speaks version 1") as caught:
            await client.state()
        assert caught.value.code == "protocol"


async def test_names_cannot_leave_their_place_in_the_path(tmp_path: Path) -> None:
    async with serving(tmp_path) as (client, _):
        with pytest.raises(ServingError, match=r"\(404\)"):
            await client.load("../../tunnel?", "b", tmp_path)


async def test_nobody_there(tmp_path: Path) -> None:
    for path in (tmp_path / "none.sock", tmp_path / "missing" / "none.sock"):
        client = ServingClient(path)
        with pytest.raises(ServingError, match="does not answer") as caught:
            await client.state()
        assert caught.value.code == "unreachable"
        assert client.peer_pid() is None


Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]


@asynccontextmanager
async def far_side(path: Path, answer: bytes) -> AsyncIterator[ServingClient]:
    ended = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        if answer:
            writer.close()
        else:
            await ended.wait()
            writer.close()

    async with await asyncio.start_unix_server(talk, path):
        yield ServingClient(path)
        ended.set()


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf", "unreachable"),
        (b"no http at all\r\n\r\n", "unreachable"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "protocol"),
        (b"HTTP/1.1 500 X\r\nContent-Length: 1\r\n\r\n<", "refused"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"ffff\r\n" + b"x" * 0xFFFF + b"\r\n",
            "unreachable",
        ),
    ],
)
async def test_a_broken_answer_is_a_serving_error(tmp_path: Path, answer: bytes, code: str) -> None:
    async with far_side(tmp_path / "s", answer) as client:
        with pytest.raises(ServingError) as caught:
            await client.state()
        assert caught.value.code == code


async def test_an_endless_answer_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ANSWER", 1000)
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n" + b"x" * 4000
    async with far_side(tmp_path / "s", answer) as client:
        with pytest.raises(ServingError, match="more than 1000 bytes"):
            await client.state()


async def test_silence_ends_with_the_time_out(tmp_path: Path) -> None:
    async with far_side(tmp_path / "s", b"") as client:
        with pytest.raises(ServingError) as caught:
            await client.state(seconds=0.05)
        assert caught.value.code == "timeout"
