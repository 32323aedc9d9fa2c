"""What the gateway adds: `python -m benchmarks.gateway [--seconds N] [--plain] [--json FILE]`.

Three processes on this machine: the gateway as it is run (with authentication, routing and metrics), one device that
echoes (once as a plain HTTP server, once through its tunnel) and the client. "Added" is the median through the gateway
less the median of the same echo asked directly, one request at a time; the rate is with 16 connections; the gateway's
CPU time is read from the system. The client and the device share the machine's cores with the gateway, so the rate is
that of all three together, and CPU time per request is the fair figure.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import datetime
import json
import multiprocessing
import socket
import ssl
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec
import psutil
import uvicorn
import uvloop
import websockets
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from rich.console import Console
from rich.table import Table
from sqlalchemy import insert

from controller.database import tables
from controller.database.connection import Database
from controller.routing.gateway import run_gateway
from controller.tenants import tokens
from wire.enrolment import TunnelCredential
from wire.envelope import TUNNEL, encode_public_key, seal
from wire.tunnel import (
    CHUNK,
    SUBPROTOCOL,
    Frame,
    Kind,
    ResponseHead,
    ServedModel,
    Status,
    decode_frame,
    encode_frame,
)

DEVICE = "d-" + "a" * 26
MODEL = "digits"
PATH = f"/v2/models/{MODEL}/infer"
BODY = json.dumps({"inputs": [{"name": "x", "shape": [1, 64], "datatype": "FP32", "data": [0.5] * 64}]}).encode()
CONNECTIONS = 16


def gateway_process(pipe: Connection, database: str, certificate: str, key: str) -> None:
    """Run a gateway; tells its port and ends when the pipe closes."""

    async def serve() -> None:
        stop = asyncio.Event()
        asyncio.get_running_loop().add_reader(pipe.fileno(), stop.set)
        await run_gateway(
            database_path=Path(database),
            host="127.0.0.1",
            port=0,
            certificate=Path(certificate) if certificate else None,
            key=Path(key) if key else None,
            max_body_bytes=16 * 1024**2,
            on_ready=pipe.send,
            stop=stop,
        )

    uvloop.run(serve())


def device_process(pipe: Connection, url: str, credential: str, ca_file: str) -> None:
    """Run an echoing device: its own HTTP server, and a tunnel to the gateway."""
    uvloop.run(_device(pipe, url, credential, ca_file))


async def _echo(scope: Any, receive: Any, send: Any) -> None:
    body = b""
    while True:
        message = await receive()
        body += message["body"]
        if not message["more_body"]:
            break
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _device(pipe: Connection, url: str, credential: str, ca_file: str) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    server = uvicorn.Server(uvicorn.Config(_echo, http="httptools", lifespan="off", log_config=None, access_log=False))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    context = ssl.create_default_context(cafile=ca_file) if ca_file else None
    async with websockets.connect(
        url,
        additional_headers={"Authorization": f"Bearer {credential}"},
        subprotocols=[websockets.Subprotocol(SUBPROTOCOL)],
        compression=None,
        ssl=context,
    ) as tunnel:
        model = ServedModel(name=MODEL, version="1", build="b", ready=True, queued=0, p50_ms=1.0)
        status = encode_frame(Frame(Kind.STATUS, 0, msgspec.json.encode(Status(models=[model]))))

        async def say() -> None:
            while True:
                await tunnel.send(status)
                await asyncio.sleep(1)

        saying = asyncio.create_task(say())
        pipe.send(listener.getsockname()[1])
        ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(pipe.fileno(), ended.set)
        answering = asyncio.create_task(_answer(tunnel))
        await asyncio.wait([asyncio.create_task(ended.wait()), answering], return_when=asyncio.FIRST_COMPLETED)
        saying.cancel()
        answering.cancel()
    server.should_exit = True
    await serving


async def _answer(tunnel: websockets.ClientConnection) -> None:
    bodies: dict[int, list[bytes]] = {}
    async for data in tunnel:
        assert isinstance(data, bytes)
        frame = decode_frame(data)
        parts = bodies.setdefault(frame.stream, [])
        parts.append(frame.body)
        if not frame.end:
            continue
        body = b"".join(bodies.pop(frame.stream))
        head = ResponseHead(status=200, headers={"content-type": "application/json"}, body_bytes=len(body))
        first = Frame(Kind.RESPONSE, frame.stream, msgspec.json.encode(head), body[:CHUNK], len(body) <= CHUNK)
        await tunnel.send(encode_frame(first))
        for start in range(CHUNK, len(body), CHUNK):
            chunk = body[start : start + CHUNK]
            await tunnel.send(encode_frame(Frame(Kind.BODY, frame.stream, b"", chunk, start + CHUNK >= len(body))))


class Client:
    """One HTTP/1.1 connection that is kept: the least a client can cost."""

    def __init__(self, port: int, token: str, context: ssl.SSLContext | None) -> None:
        self._port = port
        self._context = context
        self._head = (
            f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n"
            "Content-Type: application/json\r\nContent-Length: "
        ).encode()

    async def connect(self) -> None:
        """Open the connection."""
        host = "localhost" if self._context else None
        self._reader, self._writer = await asyncio.open_connection(
            "127.0.0.1", self._port, ssl=self._context, server_hostname=host, limit=1024**2
        )

    async def ask(self, body: bytes) -> float:
        """Send one request and return the seconds until its whole answer was there."""
        start = time.perf_counter()
        self._writer.write(b"%b%d\r\n\r\n%b" % (self._head, len(body), body))
        head = await self._reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"not answered: {head[:200]!r}")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        answer = await self._reader.readexactly(length)
        taken = time.perf_counter() - start
        if answer != body:
            raise RuntimeError("the echo differs")
        return taken

    def close(self) -> None:
        """Close the connection."""
        self._writer.close()


async def one_at_a_time(client: Client, body: bytes, seconds: float) -> list[float]:
    """Return the seconds of each request of one connection."""
    end, times = time.perf_counter() + seconds, []
    while time.perf_counter() < end:
        times.append(await client.ask(body))
    return times


async def measure(
    direct_port: int, gateway_port: int, token: str, pid: int, seconds: float, ca_file: str
) -> dict[str, float]:
    """Return all figures."""
    context = ssl.create_default_context(cafile=ca_file) if ca_file else None
    direct, through = Client(direct_port, token, None), Client(gateway_port, token, context)
    await direct.connect()
    await through.connect()
    await one_at_a_time(direct, BODY, 0.3)
    await one_at_a_time(through, BODY, 0.5)
    plain_times: list[float] = []
    gateway_times: list[float] = []
    for _ in range(5):  # in turns, so that other work on the machine meets both
        plain_times += await one_at_a_time(direct, BODY, seconds / 10)
        gateway_times += await one_at_a_time(through, BODY, seconds / 10)
    plain, with_gateway = statistics.median(plain_times), statistics.median(gateway_times)
    gateway_times.sort()

    clients = [Client(gateway_port, token, context) for _ in range(CONNECTIONS)]
    for client in clients:
        await client.connect()
    process = psutil.Process(pid)
    before, begun = process.cpu_times(), time.perf_counter()
    counts = [len(times) for times in await asyncio.gather(*(one_at_a_time(one, BODY, seconds) for one in clients))]
    took, after = time.perf_counter() - begun, process.cpu_times()
    cpu = after.user + after.system - before.user - before.system

    large = b"x" * (8 * 1024 * 1024)
    large_times = [await through.ask(large) for _ in range(5)]
    memory = process.memory_info().rss
    for client in (direct, through, *clients):
        client.close()
    return {
        "direct_p50_ms": plain * 1000,
        "gateway_p50_ms": with_gateway * 1000,
        "added_p50_ms": (with_gateway - plain) * 1000,
        "gateway_p99_ms": gateway_times[len(gateway_times) * 99 // 100] * 1000,
        "requests_per_second": sum(counts) / took,
        "gateway_cpu_us_per_request": cpu / sum(counts) * 1e6,
        "requests_per_second_per_core": sum(counts) / cpu,
        "large_body_mib_per_second": 8 / statistics.median(large_times),
        "gateway_memory_mib": memory / 1024**2,
    }


def prepare(directory: Path, tls: bool) -> tuple[Path, str, str, str, str]:
    """Make a registry with one device; return its path, a token, a credential and the certificate's files."""
    database = Database(directory / "state.db")
    database.migrate()
    now = time.time()
    token = tokens.first_start(database, now)
    assert token is not None
    key = ed25519.Ed25519PrivateKey.generate()
    with database.begin() as c:
        joined = {"id": "j", "tenant": "default", "secret_sha256": "", "uses_left": 0, "tags": []}
        c.execute(insert(tables.join_tokens).values(created=now, expires=now, **joined))
        device = {"id": DEVICE, "tenant": "default", "name": "bench", "tags": [], "join_token": "j", "online": True}
        public = encode_public_key(key.public_key())
        c.execute(insert(tables.devices).values(public_key=public, enrolled=now, sequence=0, **device))
    database.close()
    payload = msgspec.json.encode(TunnelCredential(device=DEVICE, issued=now, expires=now + 3600))
    credential = base64.urlsafe_b64encode(seal(payload, TUNNEL, key)).decode()
    certificate, key_file = (_certificate(directory)) if tls else ("", "")
    return database.path, token, credential, certificate, key_file


def _certificate(directory: Path) -> tuple[str, str]:
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(private, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    pem = private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    (directory / "key.pem").write_bytes(pem)
    (directory / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return str(directory / "cert.pem"), str(directory / "key.pem")


def run(seconds: float, tls: bool) -> dict[str, float]:
    """Start the processes, measure, and end them."""
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        database, token, credential, certificate, key = prepare(Path(name), tls)

        def start(target: Any, *arguments: str) -> tuple[int, int]:
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=target, args=(theirs, *arguments), daemon=True)
            process.start()
            theirs.close()
            stack.callback(process.join, 20)
            stack.callback(ours.close)
            if not ours.poll(30):
                raise RuntimeError(f"{target.__name__} did not start")
            assert process.pid is not None
            return ours.recv(), process.pid

        port, pid = start(gateway_process, str(database), certificate, key)
        url = f"wss://localhost:{port}/tunnel" if tls else f"ws://127.0.0.1:{port}/tunnel"
        direct_port, _ = start(device_process, url, credential, certificate)
        return uvloop.run(measure(direct_port, port, token, pid, seconds, certificate))


def main() -> None:
    """Measure, print, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement (default 5)")
    parser.add_argument("--plain", action="store_true", help="without TLS, on the clients' side and the tunnel's")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    figures = run(options.seconds, not options.plain)
    table = Table(
        title=f"The gateway with one echoing device, {'plain HTTP' if options.plain else 'TLS'}, {len(BODY)} bytes"
    )
    table.add_column("figure")
    table.add_column("value", justify="right")
    for label, text in (
        ("echo asked directly, p50", f"{figures['direct_p50_ms']:.3f} ms"),
        ("through the gateway, p50", f"{figures['gateway_p50_ms']:.3f} ms"),
        ("added by gateway and tunnel, p50", f"{figures['added_p50_ms']:.3f} ms"),
        ("through the gateway, p99", f"{figures['gateway_p99_ms']:.3f} ms"),
        (f"requests/s, {CONNECTIONS} connections", f"{figures['requests_per_second']:,.0f}"),
        ("gateway CPU per request", f"{figures['gateway_cpu_us_per_request']:.0f} µs"),
        ("requests/s per core of the gateway", f"{figures['requests_per_second_per_core']:,.0f}"),
        ("8 MiB echoed", f"{figures['large_body_mib_per_second']:.0f} MiB/s each way"),
        ("gateway memory at the end", f"{figures['gateway_memory_mib']:.0f} MiB"),
    ):
        table.add_row(label, text)
    Console().print(table)
    if options.json:
        options.json.write_text(json.dumps({"benchmark": "gateway", "tls": not options.plain, **figures}, indent=2))


if __name__ == "__main__":
    main()
