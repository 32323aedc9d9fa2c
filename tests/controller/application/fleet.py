"""Two tenants with one of everything, made through the real application wherever it lets tests make it."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from fastapi.testclient import TestClient
from sqlalchemy import Connection, insert, select

from controller.database import tables
from controller.tenants.access import DEVICE, TOKEN_ROLES
from wire.codec import encode
from wire.enrolment import EnrolRequest
from wire.envelope import DEVICE_SESSION, seal

ROLES = (*TOKEN_ROLES, DEVICE)


@dataclass
class Things:
    """What a tenant has: the word in an address, and the id of the thing."""

    tenant: str
    ids: dict[str, str]
    clients: dict[str, TestClient]


def make_things(application: Any, tenant: str) -> Things:
    """Make one of everything in ``tenant``, and a client for each role, a device among them."""
    clients = {role: application.client(role, tenant) for role in TOKEN_ROLES}
    admin = clients["admin"]
    key = ec.generate_private_key(ec.SECP256R1())
    device = _enrol(application, tenant, key)
    clients[DEVICE] = TestClient(
        application.control.api,
        headers={"Authorization": f"Bearer {device_session(application, device, key)}"},
        raise_server_exceptions=False,
    )
    sha256 = _done(admin.post("/api/v1/artifacts", content=f"of {tenant}".encode()))["sha256"]
    files = {"source_sha256": sha256, "data_sha256": sha256}
    model = f"model-of-{tenant}"
    version = _done(
        admin.post(f"/api/v1/models/{model}/versions", json=files | {"targets": [{"profile": "generic-x86_64"}]})
    )
    release = _done(admin.post("/api/v1/releases", json={"name": f"rel-{tenant}", "models": {model: 1}}))
    rollout = _done(admin.post("/api/v1/rollouts", json={"release": release["id"]}))
    command = _done(admin.post(f"/api/v1/devices/{device}/commands", json={"kind": "logs"}))
    token = _done(admin.post("/api/v1/tokens", json={"name": f"made-in-{tenant}", "role": "viewer"}))
    joining = _done(admin.post("/api/v1/join-tokens", json={}))
    ids = {
        "join_token": joining["id"],
        "device": device,
        "sha256": sha256,
        "name": model,
        "job": version["jobs"][0],
        "release": release["id"],
        "rollout": rollout["id"],
        "command": command["id"],
        "token": token["id"],
        "build": f"b-{hashlib.sha256(tenant.encode()).hexdigest()[:32]}",
        "execution": f"e-{tenant}-{'0' * 16}",
        "tenant": tenant,
    }
    with application.database.begin() as connection:
        _add_rows(connection, tenant, ids)
    return Things(tenant, ids, clients)


def device_session(application: Any, device: str, key: ec.EllipticCurvePrivateKey) -> str:
    """Return a bearer token of ``device``, opened as a device does it (wire 8.5)."""
    stranger = application.stranger()
    challenge = stranger.post("/api/v1/device-sessions/challenge", json={"device": device}).content
    token: str = _done(stranger.post("/api/v1/device-sessions", content=seal(challenge, DEVICE_SESSION, key)))["token"]
    return token


def everything_of(connection: Connection, tenant: str) -> dict[str, list[str]]:
    """Return every row that belongs to ``tenant``, by table."""
    found: dict[str, list[str]] = {}
    devices = select(tables.devices.c.id).where(tables.devices.c.tenant == tenant)
    api_tokens = select(tables.api_tokens.c.id).where(tables.api_tokens.c.tenant == tenant)
    owners = {
        "device": (tables.devices, devices),
        "token_id": (tables.api_tokens, api_tokens),
    }
    for name, table in tables.metadata.tables.items():
        statement = select(table)
        if "tenant" in table.c:
            statement = statement.where(table.c.tenant == tenant)
        else:
            for column, (_, mine) in owners.items():
                if column in table.c:
                    statement = statement.where(table.c[column].in_(mine))
        rows = connection.execute(statement).mappings()
        found[name] = sorted(repr(sorted(row.items())) for row in rows)
    return found


def _enrol(application: Any, tenant: str, key: ec.EllipticCurvePrivateKey) -> str:
    made = _done(application.client("operator", tenant).post("/api/v1/join-tokens", json={}))
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    _, _, token, secret, _ = made["token"].split(".")
    pem = request.public_bytes(serialization.Encoding.PEM).decode()
    wanted = EnrolRequest(token=f"{token}.{secret}", csr_pem=pem, name=f"board-of-{tenant}")
    answer = application.stranger().post("/api/v1/enrolment", content=encode(wanted))
    assert answer.status_code == 200, answer.text
    device: str = json.loads(answer.content)["device"]
    return device


def _add_rows(connection: Connection, tenant: str, ids: dict[str, str]) -> None:
    now = time.time()
    connection.execute(
        insert(tables.builds).values(
            id=ids["build"],
            tenant=tenant,
            model=ids["name"],
            version=1,
            job=ids["job"],
            precision="float32",
            target={"profile": "generic-x86_64"},
            figures={},
            verdict="refused",
            reasons=[],
            created=now,
        )
    )
    connection.execute(
        insert(tables.executions).values(
            id=ids["execution"],
            tenant=tenant,
            rollout=ids["rollout"],
            stage=0,
            device=ids["device"],
            component=f"model:{ids['name']}",
            generation=1,
            build=None,
            why=[],
            state="OFFERED",
            created=now,
            updated=now,
        )
    )


def _done(answer: Any) -> dict[str, Any]:
    assert answer.status_code < 300, answer.text
    found: dict[str, Any] = answer.json()
    return found
