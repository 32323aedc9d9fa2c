"""A real gateway on a port of its own, its registry in a real database, and devices whose far side is played here."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import msgspec
import pytest
import websockets
from cryptography.hazmat.primitives.asymmetric import ed25519
from sqlalchemy import insert, update

from controller.database import tables
from controller.database.connection import Database
from controller.routing import fleet_view
from controller.routing.gateway import run_gateway
from controller.tenants import tokens
from wire.enrolment import TunnelCredential
from wire.envelope import TUNNEL, encode_public_key, seal
from wire.tunnel import (
    CHUNK,
    SUBPROTOCOL,
    Frame,
    Kind,
    RequestHead,
    ResponseHead,
    ServedModel,
    Status,
    decode_frame,
    encode_frame,
)

MODEL = "digits"
MAX_BODY = 12 * 1024 * 1024
_numbers = itertools.count()


def credential(
    device: str, key: ed25519.Ed25519PrivateKey, *, purpose: str = TUNNEL, issued: float = 0.0, life: float = 3600.0
) -> str:
    """Return the text of a tunnel credential; ``issued`` is an offset from now in seconds."""
    now = time.time() + issued
    payload = msgspec.json.encode(TunnelCredential(device=device, issued=now, expires=now + life))
    return base64.urlsafe_b64encode(seal(payload, purpose, key)).decode().rstrip("=")


@dataclass
class Asked:
    """A request as it reached a device."""

    stream: int
    head: RequestHead
    body: bytes


Answer = Callable[["Device", Asked], Awaitable[None]]


async def echo(device: Device, asked: Asked) -> None:
    """Answer with the body that was asked with."""
    await device.answer(asked.stream, 200, asked.body)


@dataclass
class Device:
    """A device's end of a tunnel. ``respond``: what it does with a request; ``asked``: all that reached it."""

    id: str
    key: ed25519.Ed25519PrivateKey
    url: str
    respond: Answer = echo
    asked: list[Asked] = field(default_factory=list)
    cancelled: list[int] = field(default_factory=list)
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    p50_ms: float | None = None
    close_code: int | None = None

    async def connect(self, text: str | None = None, *, announce: bool = True) -> None:
        """Open the tunnel and say that the model is ready; say so again each second."""
        self.closed = asyncio.Event()
        self.socket = await websockets.connect(
            self.url,
            additional_headers={"Authorization": f"Bearer {text or credential(self.id, self.key)}"},
            subprotocols=[websockets.Subprotocol(SUBPROTOCOL)],
            compression=None,
            ping_interval=None,
            close_timeout=1,
        )
        self.tasks = [asyncio.create_task(self._read())]
        if announce:
            await self.say()
            self.tasks.append(asyncio.create_task(self._say_on()))

    async def say(self, *, ready: bool = True, draining: bool = False, version: str = "1") -> None:
        """Send a status."""
        model = ServedModel(name=MODEL, version=version, build="b-1", ready=ready, queued=0, p50_ms=self.p50_ms)
        await self.send(Frame(Kind.STATUS, 0, msgspec.json.encode(Status(models=[model], draining=draining))))

    async def send(self, frame: Frame) -> None:
        await self.socket.send(encode_frame(frame))

    async def answer(self, stream: int, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        """Send a whole answer, in as many chunks as it takes."""
        head = ResponseHead(
            status=status, headers={"content-type": "application/json"} | (headers or {}), body_bytes=len(body)
        )
        await self.send(Frame(Kind.RESPONSE, stream, msgspec.json.encode(head), body[:CHUNK], len(body) <= CHUNK))
        for start in range(CHUNK, len(body), CHUNK):
            chunk = body[start : start + CHUNK]
            await self.send(Frame(Kind.BODY, stream, b"", chunk, start + CHUNK >= len(body)))

    def freeze(self) -> None:
        """Become silent without closing anything, as a stopped process is: nothing is read, nothing said."""
        for task in self.tasks:
            task.cancel()
        self.socket.transport.pause_reading()

    def cut(self) -> None:
        """Close the connection abruptly."""
        for task in self.tasks[1:]:
            task.cancel()
        self.socket.transport.abort()

    async def stop(self) -> None:
        for task in getattr(self, "tasks", []):
            task.cancel()
        if hasattr(self, "socket"):
            self.socket.transport.abort()

    async def _say_on(self) -> None:
        with contextlib.suppress(websockets.ConnectionClosed):
            while True:
                await asyncio.sleep(1)
                await self.say()

    async def _read(self) -> None:
        parts: dict[int, tuple[RequestHead, bytearray]] = {}
        answers = set()
        try:
            async for data in self.socket:
                assert isinstance(data, bytes)
                frame = decode_frame(data)
                if frame.kind is Kind.CANCEL:
                    self.cancelled.append(frame.stream)
                    parts.pop(frame.stream, None)
                    continue
                if frame.kind is Kind.REQUEST:
                    head = msgspec.json.decode(frame.head, type=RequestHead)
                    parts[frame.stream] = (head, bytearray())
                parts[frame.stream][1].extend(frame.body)
                if frame.end:
                    head, body = parts.pop(frame.stream)
                    assert len(body) == head.body_bytes
                    asked = Asked(frame.stream, head, bytes(body))
                    self.asked.append(asked)
                    answers.add(asyncio.create_task(self.respond(self, asked)))
        except websockets.ConnectionClosed:
            pass
        finally:
            for answer in answers:
                answer.cancel()
            self.close_code = self.socket.close_code
            self.closed.set()


@dataclass
class House:
    """The gateway that runs for a test, and what is needed to talk to it."""

    database: Database
    port: int
    client: httpx.AsyncClient
    token: str
    devices: list[Device]
    stop: asyncio.Event
    task: asyncio.Task[None]

    def enrol(self, tenant: str = "default") -> Device:
        """Store a device and return its far side, not yet connected."""
        number = next(_numbers)
        name = "d-" + "".join(chr(97 + int(digit)) for digit in f"{number:026d}")
        key = ed25519.Ed25519PrivateKey.generate()
        with self.database.begin() as c:
            c.execute(
                insert(tables.devices).values(
                    id=name,
                    tenant=tenant,
                    name=name,
                    tags=[],
                    public_key=encode_public_key(key.public_key()),
                    join_token=f"join-{tenant}",
                    enrolled=time.time() + number,
                    online=True,
                    sequence=0,
                )
            )
        device = Device(name, key, f"ws://127.0.0.1:{self.port}/tunnel")
        self.devices.append(device)
        return device

    async def join(self, tenant: str = "default", respond: Answer = echo) -> Device:
        """Enrol and connect a device, and wait until the gateway routes to it."""
        device = self.enrol(tenant)
        device.respond = respond
        await device.connect()
        await self.until_tunnels(sum(not one.closed.is_set() and hasattr(one, "socket") for one in self.devices))
        return device

    async def until_tunnels(self, count: int) -> None:
        """Wait until the gateway has ``count`` tunnels."""

        async def reached() -> bool:
            return bool((await self.client.get("/healthz")).json()["tunnels"] == count)

        await until(reached)

    async def until_ready(self, ready: bool = True, version: str = "") -> None:
        """Wait until the model is ready, or is not."""
        path = f"/v2/models/{MODEL}{'/versions/' + version if version else ''}/ready"

        async def reached() -> bool:
            return (await self.client.get(path)).status_code == (200 if ready else 503)

        await until(reached)

    def revoke(self, device: Device) -> None:
        with self.database.begin() as c:
            c.execute(update(tables.devices).where(tables.devices.c.id == device.id).values(revoked=time.time()))

    def make_token(self, role: str, tenant: str = "default", expires: float | None = None) -> str:
        with self.database.begin() as c:
            return tokens.make(c, tenant=tenant, name="test", role=role, now=time.time() - 100, expires=expires).text

    async def infer(
        self, body: bytes = b"{}", path: str = f"/v2/models/{MODEL}/infer", **headers: str
    ) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.client.post(path, content=body, headers=named)

    async def metric(self, name: str) -> float:
        """Return the sum of the samples that begin with ``name``."""
        page = (await self.client.get("/metrics")).text
        return sum(float(line.rsplit(" ", 1)[1]) for line in page.splitlines() if line.startswith(name))


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 10) -> None:
    """Wait until ``condition`` holds."""
    async with asyncio.timeout(seconds):
        while True:
            if await condition():
                return
            await asyncio.sleep(0.01)


def make_database(path: Path) -> tuple[Database, str]:
    """Return a database with the tenants "default" and "other", a model each, and an admin token of "default"."""
    database = Database(path)
    database.migrate()
    token = tokens.first_start(database, time.time() - 100)
    assert token is not None
    with database.begin() as c:
        c.execute(insert(tables.tenants).values(name="other", created=0.0))
        for tenant in ("default", "other"):
            c.execute(
                insert(tables.join_tokens).values(
                    id=f"join-{tenant}", tenant=tenant, secret_sha256="", uses_left=9, tags=[], created=0.0, expires=9e9
                )
            )
        c.execute(insert(tables.models).values(tenant="default", name=MODEL, created=0.0))
    return database, token


@pytest.fixture
def make_credential() -> Callable[..., str]:
    """Make the text of a tunnel credential."""
    return credential


@pytest.fixture
def eventually() -> Callable[[Callable[[], Awaitable[bool]]], Awaitable[None]]:
    """Wait until a condition holds."""
    return until


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Make the database once: migrations cost more than a test."""
    path = tmp_path_factory.mktemp("template") / "state.db"
    database, token = make_database(path)
    database.close()
    return path, token


@pytest.fixture
def registry(tmp_path: Path, template: tuple[Path, str]) -> tuple[Database, str]:
    """Return a database with two tenants and a model, and an admin's token."""
    shutil.copy(template[0], tmp_path / "state.db")
    return Database(tmp_path / "state.db"), template[1]


@pytest.fixture
async def house(registry: tuple[Database, str], monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    monkeypatch.setattr(fleet_view, "POLL_SECONDS", 0.03)  # tests enrol devices all the time
    database, token = registry
    stop = asyncio.Event()
    ready: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(
        run_gateway(
            database_path=database.path,
            host="127.0.0.1",
            port=0,
            certificate=None,
            key=None,
            max_body_bytes=MAX_BODY,
            on_ready=ready.set_result,
            stop=stop,
        )
    )
    done, _ = await asyncio.wait([task, ready], return_when=asyncio.FIRST_COMPLETED)
    if task in done:
        await task
    port = ready.result()
    client = httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{port}",
        headers={"Authorization": f"Bearer {token}"},
        timeout=30,
        limits=httpx.Limits(max_connections=64, max_keepalive_connections=64),
    )
    house = House(database, port, client, token, [], stop, task)
    try:
        yield house
    finally:
        for device in house.devices:
            await device.stop()
        await client.aclose()
        stop.set()
        await asyncio.wait_for(task, 15)
        database.close()
