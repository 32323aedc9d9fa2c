"""A controller's repository of signed metadata behind a real TLS socket, and devices that follow it with TUF's own
client: the judge that knows nothing of our code."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import hashlib
import ipaddress
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from fastapi import FastAPI
from tuf.api.exceptions import DownloadHTTPError
from tuf.api.metadata import Metadata, TargetFile
from tuf.ngclient import Updater
from tuf.ngclient.fetcher import FetcherInterface

from controller import __main__ as program
from controller.builds import publish_routes
from controller.builds import routes as builds_routes
from controller.builds import store as builds_store
from controller.builds.api import BuilderApi
from controller.builds.artifacts import ArtifactStore
from controller.builds.publish import Entry, Vouching
from controller.builds.sign import BuilderKey, builder_key
from controller.commands.client import Login, write_login
from controller.database.connection import Database
from controller.settings import Settings
from controller.tenants import routes as tenants_routes
from controller.tenants import store as tenants_store
from controller.tenants import tokens
from controller.tenants.attempts import Attempts
from controller.tenants.guard import install_errors, require_declared
from controller.trust import layout, metadata, store
from controller.trust import routes as trust_routes
from controller.trust.keeping import Keeper
from wire.envelope import decode_public_key

PROFILES = ("generic", "raspberry_pi")
TENANT = "acme"


@dataclass
class Served:
    """The repository of tenant "acme" as served."""

    app: FastAPI
    database: Database
    keeper: Keeper
    tokens: dict[str, str]
    builder: BuilderKey
    data: Path
    ca_file: Path
    url: str = ""

    @property
    def metadata_url(self) -> str:
        return f"{self.url}/tuf/{TENANT}/metadata/"

    def newest(self, role: str) -> bytes:
        with self.database.read() as connection:
            found = store.newest(connection, TENANT, role)
        assert found is not None
        return found

    def versions(self) -> dict[str, int]:
        with self.database.read() as connection:
            return {row.role: row.version for row in store.roles(connection, TENANT)}

    def client(self, role: str = "admin") -> httpx.Client:
        context = ssl.create_default_context(cafile=str(self.ca_file))
        return httpx.Client(base_url=self.url, verify=context, headers={"Authorization": f"Bearer {self.tokens[role]}"})

    def publish(
        self, *builds: int, profile: str = "generic", key: BuilderKey | None = None, now: float = 0.0
    ) -> list[str]:
        """Have builds published as the builder does; return their paths."""
        return asyncio.run(self._publish([entry(number, profile) for number in builds], key or self.builder, now))

    async def _publish(self, entries: list[Entry], key: BuilderKey, now: float) -> list[str]:
        at = now or time.time()
        with self.database.begin() as connection:  # as if uploaded
            for one in entries:
                if builds_store.artifact_size(connection, TENANT, sha256(one.envelope)) is None:
                    builds_store.add_artifact(connection, TENANT, sha256(one.envelope), len(one.envelope), at)
        async with BuilderApi(self.url, self.ca_file, self.tokens["builder"]) as api:
            await Vouching(api, key).add(TENANT, entries[0].profile, entries, at)
        return [one.path for one in entries]

    def put(self, role: str, data: bytes) -> None:
        """What somebody who holds the database can do: store metadata that nobody checked."""
        document = Metadata.from_bytes(data)
        with self.database.begin() as connection:
            store.add(
                connection,
                tenant=TENANT,
                role=role,
                number=document.signed.version,
                content=data,
                length=len(data),
                sha256=sha256(data),
                expires=document.signed.expires.timestamp(),
                at=time.time(),
            )

    def builder_keyid(self) -> str:
        return metadata.public(decode_public_key(self.builder.public)).keyid

    def renew(self, profile: str, now: float, key: BuilderKey | None = None, *predecessors: BuilderKey) -> bool:
        """Have a builder sign again what is due."""

        async def work() -> bool:
            async with BuilderApi(self.url, self.ca_file, self.tokens["builder"]) as api:
                before = [decode_public_key(one.public) for one in predecessors]
                return await Vouching(api, key or self.builder, before).renew(TENANT, profile, now)

        return asyncio.run(work())

    def let_build(self, *keys: BuilderKey) -> None:
        """Have the trial keys sign that these vouch for builds from now on, and nobody else."""
        public = tuple(decode_public_key(key.public) for key in keys)
        assert dataclasses.replace(self.keeper, builders=public).keep(TENANT, time.time())

    def login(self, file: Path, role: str = "admin") -> None:
        write_login(
            file,
            Login(
                api_url=self.url,
                gateway_url=self.url,
                console_url="",
                ca_file=str(self.ca_file),
                token=self.tokens[role],
            ),
        )


class _Fetcher(FetcherInterface):
    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def _fetch(self, url: str) -> Iterator[bytes]:
        answer = self._client.get(url)
        if answer.status_code != 200:
            raise DownloadHTTPError(answer.text, answer.status_code)
        yield answer.content


class Device:
    """A device with the root that it got when it joined. What it saw stays in its directory, as on a real one."""

    def __init__(self, directory: Path, served: Served, root: bytes) -> None:
        self._directory, self._served, self._root = directory, served, root
        directory.mkdir(exist_ok=True)

    def find(self, path: str, at: float | None = None) -> TargetFile | None:
        """What the repository says about ``path``, at the time ``at``. Raises what TUF's client raises."""
        with self._served.client("viewer") as client:
            updater = Updater(
                str(self._directory),
                self._served.metadata_url,
                fetcher=_Fetcher(client),
                bootstrap=self._root,
            )
            if at is not None:
                updater._trusted_set.reference_time = datetime.datetime.fromtimestamp(at, datetime.UTC)
            updater.refresh()
            return updater.get_targetinfo(path)

    def must_find(self, path: str, at: float | None = None) -> TargetFile:
        """The same, where there must be something."""
        found = self.find(path, at)
        assert found is not None
        return found


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    data = tmp_path / "controller"
    data.mkdir()
    database = Database(data / "state.db")
    database.migrate()
    key = builder_key(data)
    public = decode_public_key(key.public)
    assert isinstance(public, Ed25519PublicKey)
    keeper = Keeper(database, data / "keys" / "trust", (public,), PROFILES)
    made: dict[str, str] = {}
    now = time.time()
    with database.begin() as connection:
        for tenant in (TENANT, "other"):
            tenants_store.add_tenant(connection, tenant, now)
            keeper.found(connection, tenant, now)
        for role in ("admin", "operator", "viewer", "builder"):
            made[role] = tokens.make(connection, tenant=TENANT, name=role, role=role, now=now).text
        made["other"] = tokens.make(connection, tenant="other", name="other", role="admin", now=now).text
    app = FastAPI()
    install_errors(app)
    app.state.database = database
    app.state.settings = Settings(data=str(data))
    app.state.artifacts = ArtifactStore(data / "artifacts")
    app.state.builder_keys = {key.id: public}
    app.state.keeper = keeper
    app.state.attempts = Attempts()
    for routes in (tenants_routes, builds_routes, trust_routes, publish_routes):
        app.include_router(routes.router)
    require_declared(app)
    certificate, private = _certificate(tmp_path)
    site = Served(app, database, keeper, made, key, data, certificate)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            port=0,
            ssl_certfile=str(certificate),
            ssl_keyfile=str(private),
            log_config=None,
            lifespan="off",
            timeout_graceful_shutdown=1,
        )
    )
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    until = time.monotonic() + 30
    while not server.started:
        assert thread.is_alive()
        assert time.monotonic() < until
        time.sleep(0.01)
    site.url = f"https://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    yield site
    server.should_exit = True
    thread.join(30)
    database.close()


@pytest.fixture
def new_device(served: Served, tmp_path: Path) -> Callable[..., Device]:
    """Makes a device that joins now: it is given the root that holds."""

    def make(name: str = "device") -> Device:
        return Device(tmp_path / name, served, served.newest(layout.ROOT))

    return make


@dataclass
class Done:
    code: int
    out: str
    err: str


@pytest.fixture
def muster(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Done]:
    """Runs `muster …` as the tenant's admin."""
    served.login(tmp_path / "login.json")
    monkeypatch.setenv("MUSTER_LOGIN", str(tmp_path / "login.json"))

    def run(*arguments: Any) -> Done:
        monkeypatch.setattr(sys, "argv", ["muster", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            program.main()
        code, said = left.value.code, capsys.readouterr()
        return Done(code if isinstance(code, int) else 0 if code is None else 1, said.out, said.err)

    return run


def entry(number: int, profile: str = "generic") -> Entry:
    """A build that is known by its number alone; its envelope is never opened here."""
    return Entry(profile, "digits", f"b-{number:032x}", b"envelope %d" % number, {"version": number})


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


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
