"""Devices behind a link that is slow, or that stands still: the first is waited for, the second is not."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

MODEL = "digits"
RATE = 2.5 * 1024**2  # bytes a second


@asynccontextmanager
async def slow_link(port: int, *, down: float = 0.0, up: float = 0.0) -> AsyncIterator[int]:
    """Yield a port in front of ``port`` that carries ``down`` bytes a second to who connects, ``up`` back; 0: all."""

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, rate: float) -> None:
        try:
            while data := await reader.read(32768):
                writer.write(data)
                await writer.drain()
                if rate:
                    await asyncio.sleep(len(data) / rate)
        except OSError:
            pass
        finally:
            writer.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far = socket.socket()
        far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)  # as little as a link holds
        far.setblocking(False)
        await asyncio.get_running_loop().sock_connect(far, ("127.0.0.1", port))
        far_reader, far_writer = await asyncio.open_connection(sock=far, limit=32768)
        await asyncio.gather(carry(reader, far_writer, up), carry(far_reader, writer, down))

    server = await asyncio.start_server(connected, "127.0.0.1", 0, limit=32768)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@pytest.mark.parametrize("way", ["down", "up"])
async def test_a_large_body_on_a_slow_link_arrives_and_nobody_becomes_suspect(house, way):
    async with slow_link(house.port, **{way: RATE}) as port:
        slow, other = house.enrol(), house.enrol()
        for device in (slow, other):
            device.url = f"ws://127.0.0.1:{port}/tunnel"
            await device.connect()
        await house.until_tunnels(2)
        await house.until_ready()
        body = os.urandom(10 * 1024**2)
        answer = await house.infer(body, muster_deadline_ms="60000")
        assert (answer.status_code, answer.headers.get("muster-attempts")) == (200, "1")
        assert answer.content == body
        assert await house.metric("muster_gateway_suspects_total") == 0
        assert not slow.closed.is_set()
        assert not other.closed.is_set()


async def test_a_small_request_overtakes_a_large_body_on_a_slow_link(house):
    async with slow_link(house.port, down=RATE) as port:
        device = house.enrol()
        device.url = f"ws://127.0.0.1:{port}/tunnel"
        await device.connect()
        await house.until_ready()
        bulk = asyncio.create_task(house.infer(os.urandom(8 * 1024**2), muster_deadline_ms="60000"))
        while (await house.metric("muster_gateway_body_bytes")) < 8 * 1024**2:
            await asyncio.sleep(0.01)
        assert (await house.infer(b"small")).content == b"small"
        assert not bulk.done()
        assert [len(one.body) for one in device.asked] == [5]
        await bulk


async def test_a_large_body_that_stands_still_is_given_to_another_device(house):
    stuck, good = await house.join(), await house.join()
    stuck.p50_ms, good.p50_ms = 1.0, 900.0
    await stuck.say()
    await good.say()
    await house.until_ready()
    stuck.tasks[0].cancel()  # reads no more, but says each second that all is well
    stuck.socket.transport.pause_reading()
    body = os.urandom(10 * 1024**2)
    began = time.perf_counter()
    answer = await house.infer(body, muster_deadline_ms="60000")
    assert (answer.status_code, answer.content) == (200, body)
    assert answer.headers["muster-device"] == good.id
    assert time.perf_counter() - began < 15  # and not half of the deadline
