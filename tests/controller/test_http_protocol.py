"""What a connection may do before, between and after requests: real sockets, one small application."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
import uvicorn

from controller import http_protocol, listening
from controller.http_protocol import MAX_STRAY, BoundedHttp
from controller.listening import Server, listen


async def refusing(scope, receive, send):
    """Answer without reading a body, as a server does that refuses it."""
    await send({"type": "http.response.start", "status": 413, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"no"})


@pytest.fixture
async def port() -> AsyncIterator[int]:
    listener = listen("127.0.0.1", 0, "X")
    config = uvicorn.Config(refusing, http=BoundedHttp, lifespan="off", log_config=None, timeout_graceful_shutdown=1)
    server = Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    await server.listening.wait()
    yield listener.getsockname()[1]
    server.should_exit = True
    await serving


async def test_a_head_without_end_is_refused(port):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n")
    sent = 0
    with contextlib.suppress(ConnectionError):
        while sent < 64 * MAX_STRAY:
            writer.write(b"X: " + b"y" * 8000 + b"\r\n")
            await asyncio.wait_for(writer.drain(), 10)
            sent += 8000
            await asyncio.sleep(0)
    assert sent < 64 * MAX_STRAY
    with contextlib.suppress(ConnectionError):  # what was still on its way may have cost the answer
        assert (await reader.read(12)) in (b"HTTP/1.1 431", b"")
    writer.close()


async def test_a_head_that_is_a_little_too_large_is_told_so(port):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * MAX_STRAY)
    assert (await asyncio.wait_for(reader.readline(), 10)).startswith(b"HTTP/1.1 431")
    assert b"head_too_large" in await reader.read()
    writer.close()


async def test_trailers_without_end_are_refused(port):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n")
    assert b"413" in await reader.readline()
    sent = 0
    with contextlib.suppress(ConnectionError):
        while sent < 1000:
            writer.write(b"X: " + b"y" * 8000 + b"\r\n")
            await asyncio.wait_for(writer.drain(), 10)
            sent += 1
            await asyncio.sleep(0)
    assert sent < 1000
    writer.close()


async def test_who_sends_a_large_body_reads_the_refusal(port):
    for _ in range(3):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        body = b"x" * (16 * 1024 * 1024)
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await asyncio.wait_for(writer.drain(), 10)  # as most clients do: first all is sent, then the answer read
        assert b"413" in await asyncio.wait_for(reader.readline(), 10)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")  # and the connection is good for the next request
        await reader.readuntil(b"\r\n\r\nno")
        assert b"413" in await asyncio.wait_for(reader.readline(), 10)
        writer.close()


async def test_a_refused_body_is_not_read_for_ever(port, monkeypatch):
    monkeypatch.setattr(http_protocol, "MAX_DROPPED", 1024 * 1024)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999999\r\n\r\n")
    assert b"413" in await reader.readline()
    sent = 0
    with contextlib.suppress(ConnectionError):
        while sent < 1000:
            writer.write(b"x" * 65536)
            await asyncio.wait_for(writer.drain(), 10)
            sent += 1
            await asyncio.sleep(0)
    assert sent < 1000
    writer.close()


@pytest.mark.parametrize("said", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\n"])
async def test_a_connection_on_which_no_request_comes_is_closed(port, monkeypatch, said):
    monkeypatch.setattr(listening, "LOOK_SECONDS", 0.2)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(said)
    assert await asyncio.wait_for(reader.read(), 10) == b""
    writer.close()


async def test_a_connection_between_two_requests_is_kept(port, monkeypatch):
    monkeypatch.setattr(listening, "LOOK_SECONDS", 0.2)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    idle_reader, idle_writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    await reader.readuntil(b"\r\n\r\nno")
    await asyncio.wait_for(idle_reader.read(), 10)  # at least two looks
    idle_writer.close()
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b"413" in await asyncio.wait_for(reader.readline(), 10)
    writer.close()
