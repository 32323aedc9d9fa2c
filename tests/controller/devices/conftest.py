"""The real application with the device routes, as `app.py` puts it together."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient
from httpx import Response

from controller.database.connection import Database
from controller.devices import list_routes
from controller.devices.authority import Authority
from controller.devices.fleet import Fleet
from controller.devices.routes import router
from controller.devices.session import DeviceSessions
from controller.tenants import tokens
from controller.tenants.access import Principal
from controller.tenants.attempts import Attempts
from controller.tenants.guard import install_errors, permit, require_declared
from wire.codec import encode
from wire.enrolment import EnrolRequest, TrustBundle, bundle_bytes, parse_token
from wire.envelope import encode_public_key


@dataclass
class Api:
    """The application and what tests need of it."""

    app: FastAPI
    db: Database
    admin: TestClient
    stranger: TestClient
    fleet: Fleet
    now: list[float]  # the clock of the device sessions

    def join_token(self, **body: Any) -> str:
        answer = self.admin.post("/api/v1/join-tokens", json=body)
        assert answer.status_code == 201, answer.text
        token: str = answer.json()["token"]
        return token

    def enrol(self, token: str, key: ec.EllipticCurvePrivateKey | None = None, **fields: Any) -> Response:
        parsed = parse_token(token)
        request = EnrolRequest(token=f"{parsed.id}.{parsed.secret}", csr_pem=csr(key or new_key()), **fields)
        return self.stranger.post("/api/v1/enrolment", content=encode(request))

    def enrolled(
        self, key: ec.EllipticCurvePrivateKey | None = None, tags: list[str] | None = None, **fields: Any
    ) -> str:
        answer = self.enrol(self.join_token(tags=tags or []), key, **fields)
        assert answer.status_code == 200, answer.text
        device: str = answer.json()["device"]
        return device

    def client(self, role: str) -> TestClient:
        with self.db.begin() as c:
            token = tokens.make(c, tenant="default", name=role, role=role, now=time.time())
        return TestClient(self.app, headers={"Authorization": f"Bearer {token.text}"})


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def csr(key: ec.EllipticCurvePrivateKey) -> str:
    made = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM).decode()


@pytest.fixture
def make_key() -> Callable[[], ec.EllipticCurvePrivateKey]:
    return new_key


@pytest.fixture
def api(tmp_path: Path) -> Api:
    db = Database(tmp_path / "state.db")
    db.migrate()
    admin = tokens.first_start(db, time.time())
    authority = Authority(tmp_path / "ca", time.time())
    signer = encode_public_key(new_key().public_key())
    bundle = TrustBundle(ca_pem=authority.root_pem, assignment_keys=[signer], tuf_root=b"{}")
    now = [1_000_000.0]
    app = FastAPI()
    app.state.database = db
    app.state.fleet = Fleet(
        authority=authority,
        trust_bundle=lambda tenant: bundle_bytes(bundle),
        mqtt_host="127.0.0.1",
        mqtt_port=8883,
        api_url="https://127.0.0.1:7070",
        gateway_url="wss://127.0.0.1:7071/tunnel",
        attempts=Attempts(per_minute=40),
    )
    app.state.device_sessions = DeviceSessions(db, b"k" * 32, lambda: now[0])
    app.include_router(list_routes.router)
    app.include_router(router)

    @app.get("/fetch")
    def fetch(principal: Annotated[Principal, Depends(permit("artifacts.read"))]) -> str:
        return principal.id

    install_errors(app)
    require_declared(app)
    client = TestClient(app, headers={"Authorization": f"Bearer {admin}"})
    return Api(app, db, client, TestClient(app), app.state.fleet, now)
