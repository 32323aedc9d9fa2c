"""The role from start to stop."""

from __future__ import annotations

import asyncio
import datetime
import socket
import ssl
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from controller.errors import ConflictError, InvalidError
from controller.routing.gateway import run_gateway

MODEL = "digits"


def start(database: Path, port: int = 0, certificate: Path | None = None, key: Path | None = None):
    """Start a gateway; returns its task, a future of its port, and what stops it."""
    ready: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()
    task = asyncio.create_task(
        run_gateway(
            database_path=database,
            host="127.0.0.1",
            port=port,
            certificate=certificate,
            key=key,
            max_body_bytes=1000,
            on_ready=ready.set_result,
            stop=stop,
        )
    )
    return task, ready, stop


async def test_a_request_reaches_a_device_and_its_answer_comes_back(house):
    device = await house.join()
    await house.until_ready()
    answer = await house.infer(b'{"inputs": []}', x_request_id="abc-1", content_type="application/json")
    assert answer.status_code == 200
    assert answer.content == b'{"inputs": []}'
    assert answer.headers["muster-device"] == device.id
    assert answer.headers["muster-attempts"] == "1"
    assert float(answer.headers["muster-route-ms"]) >= 0
    assert answer.headers["x-request-id"] == "abc-1"
    asked = device.asked[0].head
    assert (asked.method, asked.path) == ("POST", f"/v2/models/{MODEL}/infer")
    assert asked.headers["x-request-id"] == "abc-1"
    assert asked.headers["content-type"] == "application/json"
    assert "authorization" not in asked.headers


async def test_a_taken_port_is_named(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        task, _, _ = start(tmp_path / "state.db", port)
        with pytest.raises(ConflictError, match=f"port {port} .*MUSTER_GATEWAY_PORT"):
            await asyncio.wait_for(task, 5)


async def test_an_address_that_does_not_exist_is_named(tmp_path):
    with pytest.raises((ConflictError, InvalidError), match=r"no-such-host\.invalid"):
        await run_gateway(
            database_path=tmp_path / "state.db",
            host="no-such-host.invalid",
            port=0,
            certificate=None,
            key=None,
            max_body_bytes=1,
            on_ready=lambda port: None,
            stop=asyncio.Event(),
        )


async def test_a_bad_certificate_is_named(tmp_path):
    (tmp_path / "c.pem").write_text("no certificate")
    task, _, _ = start(tmp_path / "state.db", 0, tmp_path / "c.pem", tmp_path / "c.pem")
    with pytest.raises(InvalidError, match=r"c\.pem"):
        await asyncio.wait_for(task, 5)


async def test_before_the_registry_was_read_it_is_not_ready(tmp_path):
    task, ready, stop = start(tmp_path / "nothing" / "state.db")
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{await ready}") as client:
        assert (await client.get("/v2/health/ready")).status_code == 503
        assert (await client.get("/v2/health/live")).status_code == 200
        answer = await client.post(f"/v2/models/{MODEL}/infer", headers={"Authorization": "Bearer mut.a.b"})
        assert (answer.status_code, answer.json()["code"]) == (503, "registry_unread")
    stop.set()
    await asyncio.wait_for(task, 10)


async def test_requests_that_were_begun_are_finished_at_the_end(house):
    release = asyncio.Event()

    async def slowly(device, asked):
        await release.wait()
        await device.answer(asked.stream, 200, b"done")

    device = await house.join(respond=slowly)
    await house.until_ready()
    request = asyncio.create_task(house.infer())
    async with asyncio.timeout(5):
        while not device.asked:
            await asyncio.sleep(0.005)
    house.stop.set()

    async with asyncio.timeout(5):
        while (answer := await house.infer()).status_code != 503:
            await asyncio.sleep(0.005)
    assert answer.json()["code"] == "stopping"
    assert answer.headers["connection"] == "close"
    assert not request.done()
    release.set()
    assert (await request).content == b"done"
    await asyncio.wait_for(house.task, 5)
    await asyncio.wait_for(device.closed.wait(), 5)
    assert device.close_code == 1012


async def test_tls(registry, tmp_path):
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(private, hashes.SHA256())
    )
    certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    key.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    task, ready, stop = start(registry[0].path, 0, certificate, key)
    context = ssl.create_default_context(cafile=str(certificate))
    async with httpx.AsyncClient(base_url=f"https://localhost:{await ready}", verify=context) as client:
        assert (await client.get("/v2/health/live")).json() == {"live": True}
    stop.set()
    await asyncio.wait_for(task, 10)
