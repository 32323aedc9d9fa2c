"""The trained sample, once a session; an application with the real database; a real server with TLS."""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import ipaddress
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from fastapi import FastAPI

from controller.builds.artifacts import ArtifactStore
from controller.builds.routes import router
from controller.builds.sign import BuilderKey, builder_key
from controller.database.connection import Database
from controller.local.sample import Sample, train
from controller.settings import Settings
from controller.tenants import store, tokens
from controller.tenants.guard import install_errors, require_declared
from wire.envelope import decode_public_key


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    return train(tmp_path_factory.mktemp("sample"), lambda _text, _share: None)


@dataclass
class Site:
    """An application and one token a role, in tenant "acme"; ``other``: an operator of tenant "other"."""

    app: FastAPI
    database: Database
    artifacts: ArtifactStore
    tokens: dict[str, str]
    key: BuilderKey
    data: Path

    def client(self, role: str = "operator") -> httpx.AsyncClient:
        transport = httpx.ASGITransport(self.app)
        headers = {"Authorization": f"Bearer {self.tokens[role]}"}
        return httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers)

    async def upload(self, content: bytes, role: str = "operator") -> str:
        sha256 = hashlib.sha256(content).hexdigest()
        async with self.client(role) as client:
            answer = await client.put(f"/api/v1/artifacts/{sha256}", content=content)
        assert answer.status_code in (200, 201), answer.text
        return sha256


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    database = Database(tmp_path / "state.db")
    database.migrate()
    made: dict[str, str] = {}
    with database.begin() as connection:
        now = time.time()
        for tenant in ("acme", "other"):
            store.add_tenant(connection, tenant, now)
        for role in ("admin", "operator", "viewer", "builder", "gateway"):
            made[role] = tokens.make(connection, tenant="acme", name=role, role=role, now=now).text
        made["other"] = tokens.make(connection, tenant="other", name="other", role="operator", now=now).text
    app = FastAPI()
    install_errors(app)
    app.include_router(router)
    require_declared(app)
    key = builder_key(tmp_path)
    app.state.database = database
    app.state.settings = Settings(data=str(tmp_path), max_artifact_bytes=4 * 1024**2)
    app.state.artifacts = ArtifactStore(tmp_path / "artifacts")
    app.state.builder_keys = {key.id: decode_public_key(key.public)}
    yield Site(app, database, app.state.artifacts, made, key, tmp_path)
    database.close()


@dataclass
class Served:
    """A site behind TLS on 127.0.0.1."""

    site: Site
    url: str
    ca_file: Path


@pytest.fixture
async def served(site: Site, tmp_path: Path) -> AsyncIterator[Served]:
    certificate, key = _certificate(tmp_path)
    config = uvicorn.Config(
        site.app,
        port=0,
        ssl_certfile=str(certificate),
        ssl_keyfile=str(key),
        log_config=None,
        lifespan="off",
        timeout_graceful_shutdown=2,
    )
    server = uvicorn.Server(config)
    running = asyncio.create_task(server.serve())
    async with asyncio.timeout(10):
        while not server.started:
            await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield Served(site, f"https://127.0.0.1:{port}", certificate)
    server.should_exit = True
    await running


def _certificate(directory: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    paths = directory / "server.pem", directory / "server.key"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return paths
