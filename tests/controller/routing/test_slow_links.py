"""Devices behind a link that is slow, or that stands still: the first is waited for, the second is not."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from controller.routing import answer as answers

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


class TestSlowClients:
    @pytest.fixture(autouse=True)
    def short(self, monkeypatch):
        monkeypatch.setattr(answers, "PIECE_SECONDS", 1.0)

    @staticmethod
    async def asking(house) -> tuple[socket.socket, bytes]:
        """Ask for a large answer through a socket that takes little at a time; return it and the answer's body."""
        body = os.urandom(6 * 1024**2)

        async def large(device, asked):
            await device.answer(asked.stream, 200, body)

        await house.join(respond=large)
        await house.until_ready()
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, ("127.0.0.1", house.port))
        request = f"GET /v2/models/{MODEL} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {house.token}\r\n\r\n"
        await loop.sock_sendall(client, request.encode())
        return client, body

    async def test_a_client_on_a_slow_link_gets_all_of_its_answer(self, house):
        client, body = await self.asking(house)
        loop = asyncio.get_running_loop()
        began, taken = time.perf_counter(), bytearray()
        while not taken.endswith(body[-64:]):
            data = await loop.sock_recv(client, 65536)
            assert data, f"the gateway closed after {len(taken)} bytes"
            taken += data
            await asyncio.sleep(len(data) / RATE)
        assert taken.endswith(body)
        assert time.perf_counter() - began > 1.5  # longer than one piece may take
        client.close()

    async def test_a_client_that_takes_nothing_is_let_go(self, house):
        client, _ = await self.asking(house)
        async with asyncio.timeout(10):
            while await house.metric("muster_gateway_body_bytes") == 0:
                await asyncio.sleep(0.01)
            while await house.metric("muster_gateway_body_bytes") or await house.metric(
                "muster_gateway_requests_in_flight"
            ):
                await asyncio.sleep(0.01)
        client.close()
