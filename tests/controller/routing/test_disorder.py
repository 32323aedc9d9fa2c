"""Everything at once: devices that come, go and fail, clients that leave in the middle. Afterwards nothing is held."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import struct
from collections import Counter

from controller.routing.attempt import Outcome

MODEL = "digits"
INFER = f"/v2/models/{MODEL}/infer"


def request(house, body: bytes) -> bytes:
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {house.token}\r\nContent-Length: {len(body)}"
    return f"{head}\r\n\r\n".encode() + body


async def test_nothing_is_held_after_disorder_and_no_answer_is_another_ones(house, eventually):
    chance = random.Random(5)

    async def respond(device, asked):
        what = chance.random()
        if what < 0.2:
            await asyncio.sleep(chance.random() * 0.3)
        elif what < 0.3:
            return await device.answer(asked.stream, chance.choice([429, 500, 503]), b"{}")
        elif what < 0.33:
            return None  # no answer at all
        return await device.answer(asked.stream, 200, asked.body)

    devices = [await house.join(respond=respond) for _ in range(4)]
    await house.until_ready()
    over = asyncio.Event()

    async def come_and_go() -> None:
        while not over.is_set():
            await asyncio.sleep(0.2)
            device = chance.choice(devices)
            device.cut()
            await device.connect()

    async def break_off() -> None:
        for _ in range(30):
            broken = socket.socket()
            broken.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(broken, ("127.0.0.1", house.port))
            sent = request(house, os.urandom(chance.choice([10, 1000, 300_000])))
            await loop.sock_sendall(broken, sent[: chance.randrange(len(sent) + 1)])
            await asyncio.sleep(chance.random() * 0.1)
            broken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, not an end
            broken.close()

    statuses: Counter[int] = Counter()

    async def ask() -> None:
        for _ in range(40):
            body = os.urandom(chance.choice([1, 5000, 150_000]))
            answer = await house.infer(body, muster_deadline_ms="2000")
            statuses[answer.status_code] += 1
            assert answer.status_code != 200 or answer.content == body
            if chance.random() < 0.2:
                left = asyncio.create_task(house.infer(body))
                await asyncio.sleep(chance.random() * 0.1)
                left.cancel()

    moving = asyncio.create_task(come_and_go())
    await asyncio.gather(*(ask() for _ in range(4)), break_off())
    over.set()
    await moving
    assert statuses[200] > 100
    assert set(statuses) <= {200, 429, 500, 502, 503, 504}

    async def nothing_held() -> bool:
        held = [await house.metric(f"muster_gateway_{name}") for name in ("requests_in_flight", "body_bytes")]
        return held == [0, 0]

    await eventually(nothing_held)
    page = (await house.client.get("/metrics")).text
    told = {line.split('"')[1] for line in page.splitlines() if line.startswith("muster_gateway_attempts_total")}
    assert told <= {one.value for one in Outcome} - {Outcome.AWAY.value}


async def test_requests_on_one_connection_are_answered_in_their_order(house):
    async def slowly(device, asked):
        await asyncio.sleep(0.1)  # longer than a request goes without somebody who looks for its client
        await device.answer(asked.stream, 200, asked.body)

    await house.join(respond=slowly)
    await house.until_ready()
    reader, writer = await asyncio.open_connection("127.0.0.1", house.port)
    bodies = [b"a", b"b" * 70_000, b"c" * 3, b"d" * 200_000, b""]
    for body in bodies:
        writer.write(request(house, body))
    for body in bodies:
        head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)).lower()
        assert head.startswith(b"http/1.1 200 ")
        length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
        assert await asyncio.wait_for(reader.readexactly(length), 10) == body
    with contextlib.suppress(OSError):
        writer.close()
