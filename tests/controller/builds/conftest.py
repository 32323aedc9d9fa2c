"""The trained sample, once a session; small models to try the converter with; an application with the real database;
a real server with TLS."""

from __future__ import annotations

import asyncio
import base64
import datetime
import hashlib
import ipaddress
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from fastapi import FastAPI
from onnx import TensorProto, helper, numpy_helper

from controller.builds import publish_routes
from controller.builds.artifacts import ArtifactStore
from controller.builds.publish import Entry, Vouching
from controller.builds.routes import router
from controller.builds.sign import BuilderKey, builder_key
from controller.database.connection import Database
from controller.local.sample import Sample, train
from controller.settings import Settings
from controller.tenants import store, tokens
from controller.tenants.guard import install_errors, require_declared
from controller.trust import routes as trust_routes
from controller.trust import store as trust_store
from controller.trust.keeping import Keeper
from wire.envelope import decode_public_key

Write = Callable[..., Path]


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

    async def vouch(self, build: str, envelope: bytes, model: str = "digits", profile: str = "generic-x86_64") -> None:
        """Publish a build whose envelope was uploaded."""
        entry = Entry(profile, model, build, envelope, {})
        await Vouching(SiteRepository(self), self.key).add("acme", profile, [entry], time.time())


class SiteRepository:
    """The signed repository as a builder reaches it."""

    def __init__(self, site: Site) -> None:
        self.site = site

    async def role(self, tenant: str, role: str) -> bytes | None:
        with self.site.database.read() as connection:
            return trust_store.newest(connection, tenant, role)

    async def hand_in(self, roles: Mapping[str, bytes]) -> None:
        body = {"roles": {name: base64.b64encode(data).decode() for name, data in roles.items()}}
        async with self.site.client("builder") as client:
            answer = await client.post("/api/v1/trust/roles", json=body)
        assert answer.status_code == 200, answer.text


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
    for routes in (router, publish_routes.router, trust_routes.router):
        app.include_router(routes)
    require_declared(app)
    key = builder_key(tmp_path)
    keeper = Keeper(database, tmp_path / "keys/trust", (decode_public_key(key.public),), ("generic-x86_64",))
    with database.begin() as connection:
        for tenant in ("acme", "other"):
            keeper.found(connection, tenant, time.time())
    app.state.keeper = keeper
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


@pytest.fixture
def stranger_ca(tmp_path: Path) -> Path:
    """A CA file that vouches for nobody here."""
    directory = tmp_path / "stranger"
    directory.mkdir()
    return _certificate(directory)[0]


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


@pytest.fixture
def write_model(tmp_path: Path) -> Write:
    """Writes a classifier `x` FP32 [rows, 4] -> `y` FP32 [rows, 3], of which each part can be replaced."""

    def write(
        *,
        nodes: list[Any] | None = None,
        inputs: list[Any] | None = None,
        outputs: list[Any] | None = None,
        constants: list[Any] | None = None,
        opset: int = 17,
        rows: int | str = "rows",
        change: Callable[[onnx.ModelProto], None] | None = None,
    ) -> Path:
        weight = numpy_helper.from_array(np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32), "w")
        graph = helper.make_graph(
            nodes or [helper.make_node("MatMul", ["x", "w"], ["y"])],
            "g",
            inputs or [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, 4])],
            outputs or [helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, 3])],
            [weight] if constants is None else constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
        model.ir_version = 10
        if change is not None:
            change(model)
        path = tmp_path / "source.onnx"
        path.write_bytes(model.SerializeToString())
        return path

    return write


@pytest.fixture
def write_data(tmp_path: Path) -> Write:
    """Writes rows that fit `write_model`; arrays given as None are left out."""

    def write(**changes: Any) -> Path:
        rng = np.random.default_rng(2)
        arrays: dict[str, Any] = {
            "calibration_x": rng.normal(size=(64, 4)).astype(np.float32),
            "heldout_x": rng.normal(size=(100, 4)).astype(np.float32),
            "heldout_label": rng.integers(0, 3, 100),
            "golden_x": rng.normal(size=(16, 4)).astype(np.float32),
        }
        arrays = {name: array for name, array in (arrays | changes).items() if array is not None}
        path = tmp_path / "data.npz"
        np.savez(path, **arrays)
        return path

    return write
