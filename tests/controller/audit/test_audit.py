"""The audit trail: what is sealed stays, and what is touched afterwards is found at its row."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from controller.audit import sealer
from controller.audit.head_files import HeadFiles
from controller.audit.routes import audit_router
from controller.audit.seal import FIRST, Broken, Intact, Row, chain, verify
from controller.audit.store import record
from controller.database.connection import Database
from controller.tenants import tokens
from controller.tenants.guard import install_errors, permit, require_declared
from controller.tenants.store import add_tenant

KEY = ed25519.Ed25519PrivateKey.generate()


def rows(number: int) -> list[Row]:
    made: list[Row] = []
    previous = FIRST
    for position in range(1, number + 1):
        body = {"b": position, "a": [None, "ü"]}
        row = Row("default", 1.5 * position, "me", "did", f"thing {position}", "", body, position, previous, "")
        row = dataclasses.replace(row, hash=chain(previous, row))
        previous = row.hash
        made.append(row)
    return made


def test_an_untouched_chain_is_intact() -> None:
    made = rows(5)
    assert verify(made) == Intact(5, made[-1].hash)
    assert verify([]) == Intact(0, FIRST)
    assert verify(made[3:], Intact(3, made[2].hash)) == Intact(5, made[-1].hash)


@settings(max_examples=60)
@given(st.integers(0, 7), st.sampled_from(["tenant", "at", "actor", "action", "thing", "reason", "body"]))
def test_each_changed_field_is_found_at_its_row(position: int, field: str) -> None:
    made = rows(8)
    changed: Any = {"at": 99.0, "body": {"other": 1}}.get(field, "other")
    made[position] = dataclasses.replace(made[position], **{field: changed})
    verdict = verify(made)
    assert isinstance(verdict, Broken)
    assert verdict.number == position + 1


@settings(max_examples=30)
@given(st.integers(0, 6))
def test_a_removed_row_and_swapped_rows_are_found(position: int) -> None:
    made = rows(8)
    verdict = verify(made[:position] + made[position + 1 :])
    assert isinstance(verdict, Broken)
    assert verdict.number == position + 1
    made[position], made[position + 1] = made[position + 1], made[position]
    assert isinstance(verify(made), Broken)


def test_rehashing_one_row_breaks_the_next() -> None:
    made = rows(4)
    forged = dataclasses.replace(made[1], actor="somebody else")
    made[1] = dataclasses.replace(forged, hash=chain(made[0].hash, forged))
    assert verify(made) == Broken(3, "row 3 does not follow the row that stands before it")


@pytest.fixture
def db(tmp_path: Path) -> Database:
    database = Database(tmp_path / "state.db")
    database.migrate()
    return database


def write(db: Database, tenant: str, number: int) -> None:
    with db.begin() as c:
        for position in range(number):
            record(
                c,
                tenant=tenant,
                actor="me",
                action="did",
                thing=f"thing {position}",
                at=1_700_000_000.123 + position / 3,
                body={"n": position, "x": 0.1, "t": "ü\u2028"},
            )


def test_the_sealer_numbers_each_tenant_by_itself(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealer, "BATCH", 4)
    write(db, "a", 5)
    write(db, "b", 2)
    write(db, "a", 1)
    assert [sealer.seal(db), sealer.seal(db), sealer.seal(db)] == [4, 4, 0]
    for tenant, number in (("a", 6), ("b", 2)):
        verdict = sealer.check(db, tenant)
        assert isinstance(verdict, Intact)
        assert verdict.number == number


def test_a_deed_that_is_rolled_back_leaves_no_row(db: Database) -> None:
    def deed() -> None:
        with db.begin() as c:
            record(c, tenant="a", actor="me", action="did", thing="x", at=1.0)
            add_tenant(c, "a", 1.0)
            add_tenant(c, "a", 1.0)

    with pytest.raises(IntegrityError):
        deed()
    assert sealer.seal(db) == 0


@pytest.mark.parametrize(
    ("statement", "number"),
    [
        ("UPDATE audit SET actor = 'nobody' WHERE number = 3", 3),
        ("UPDATE audit SET body = '{}' WHERE number = 5", 5),
        ("DELETE FROM audit WHERE number = 2", 2),
        ("UPDATE audit SET hash = replace(hash, substr(hash, 1, 4), '0000') WHERE number = 4", 4),
    ],
)
def test_tampering_in_the_database_is_found(db: Database, statement: str, number: int) -> None:
    write(db, "a", 6)
    sealer.seal(db)
    with db.begin() as c:
        c.execute(text(statement))
    verdict = sealer.check(db, "a")
    assert isinstance(verdict, Broken)
    assert verdict.number == number


@pytest.fixture
def serve(db: Database) -> Callable[[str], TestClient]:
    app = FastAPI()
    app.state.database = db
    app.state.audit_heads = HeadFiles(db.path.parent / "audit", KEY)
    app.include_router(audit_router(permit))
    install_errors(app)
    require_declared(app)
    tokens.first_start(db, time.time())

    def client(role: str) -> TestClient:
        with db.begin() as c:
            token = tokens.make(c, tenant="default", name="me", role=role, now=time.time())
        return TestClient(app, headers={"Authorization": f"Bearer {token.text}"})

    return client


def test_pages_and_verification_over_http(db: Database, serve: Callable[[str], TestClient]) -> None:
    write(db, "default", 7)
    write(db, "other", 3)
    client = serve("operator")
    first = client.get("/api/v1/audit", params={"limit": 5}).json()
    second = client.get("/api/v1/audit", params={"limit": 5, "before": first["next"]}).json()
    listed = first["rows"] + second["rows"]
    assert len(listed) == 8  # seven and the first start
    assert {row["tenant"] for row in listed} == {"default"}
    assert [row["id"] for row in listed] == sorted((row["id"] for row in listed), reverse=True)
    assert second["next"] is None
    verdict = client.get("/api/v1/audit/verify").json()
    assert (verdict["intact"], verdict["number"]) == (True, 8)
    with db.begin() as c:
        c.execute(text("UPDATE audit SET thing = 'x' WHERE tenant = 'default' AND number = 4"))
    verdict = client.get("/api/v1/audit/verify").json()
    assert (verdict["intact"], verdict["number"]) == (False, 4)
    assert client.get("/api/v1/audit", params={"limit": 501}).status_code == 400
    assert serve("viewer").get("/api/v1/audit").status_code == 403
