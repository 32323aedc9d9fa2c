"""Tokens, login codes and sessions: shown once, kept as hashes, and over when they are over."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from controller.database.connection import Database
from controller.errors import ConflictError, InvalidError, NotFoundError, UnauthenticatedError
from controller.tenants import store, tokens
from controller.tenants.guard import SESSION_COOKIE, install_errors, require_declared
from controller.tenants.routes import router

NOW = 1_000_000.0


@pytest.fixture
def db(tmp_path: Path) -> Database:
    database = Database(tmp_path / "state.db")
    database.migrate()
    return database


@pytest.fixture
def admin(db: Database) -> str:
    text = tokens.first_start(db, time.time())
    assert text is not None
    return text


@pytest.fixture
def client(db: Database, admin: str) -> TestClient:
    app = FastAPI()
    app.state.database = db
    app.include_router(router)
    install_errors(app)
    require_declared(app)
    return TestClient(app, headers={"Authorization": f"Bearer {admin}"}, follow_redirects=False)


def test_the_first_token_is_shown_once(db: Database, admin: str) -> None:
    assert tokens.first_start(db, NOW) is None
    with db.read() as c:
        assert tokens.verify(c, admin, time.time()).role == "admin"
    stored = b"".join(path.read_bytes() for path in db.path.parent.iterdir())
    assert admin.split(".")[1].encode() in stored
    assert admin.split(".")[2].encode() not in stored


def test_expiry_and_revocation(db: Database, admin: str) -> None:
    with db.begin() as c:
        token = tokens.make(c, tenant="default", name="n", role="viewer", now=NOW, expires=NOW + 10)
        assert tokens.verify(c, token.text, NOW + 9).name == "n"
        with pytest.raises(UnauthenticatedError) as told:
            tokens.verify(c, token.text, NOW + 10)
        assert told.value.code == "expired_token"
        tokens.revoke(c, "default", token.id, NOW)
        with pytest.raises(UnauthenticatedError) as told:
            tokens.verify(c, token.text, NOW)
        assert told.value.code == "revoked_token"
        assert token.text not in repr(token)


@pytest.mark.parametrize("text", ["", "mut", "mut..", "mut.a.b", "x" * 10_000, "mut.\x00.\ud800"])
def test_nonsense_is_refused(db: Database, text: str) -> None:
    with db.read() as c, pytest.raises(UnauthenticatedError):
        tokens.verify(c, text, NOW)


def test_roles_and_names_are_checked(db: Database, admin: str) -> None:
    with db.begin() as c:
        for name, role in (("n", "device"), ("n", "root"), ("", "admin"), ("a b", "admin"), ("<i>", "admin")):
            with pytest.raises(InvalidError):
                tokens.make(c, tenant="default", name=name, role=role, now=NOW)


def test_the_last_admin_stays(db: Database, admin: str) -> None:
    first = admin.split(".")[1]
    with db.begin() as c:
        with pytest.raises(ConflictError):
            tokens.revoke(c, "default", first, NOW)
        with pytest.raises(NotFoundError):
            tokens.revoke(c, "another", first, NOW)
        tokens.make(c, tenant="default", name="short", role="admin", now=NOW, expires=NOW + 60)
        with pytest.raises(ConflictError, match="as long"):
            tokens.revoke(c, "default", first, NOW)
        tokens.make(c, tenant="default", name="second", role="admin", now=NOW)
        assert tokens.revoke(c, "default", first, NOW).name == "first-admin"
        tokens.revoke(c, "default", first, NOW)


def test_a_login_code_works_once_and_not_late(db: Database, admin: str) -> None:
    with db.begin() as c:
        token = admin.split(".")[1]
        code = tokens.make_login_code(c, token, NOW)
        session = tokens.open_session(c, code, NOW + 1)
        assert tokens.verify_session(c, session, NOW + 2).role == "admin"
        with pytest.raises(UnauthenticatedError):
            tokens.open_session(c, code, NOW + 2)
        late = tokens.make_login_code(c, token, NOW)
        with pytest.raises(UnauthenticatedError):
            tokens.open_session(c, late, NOW + tokens.LOGIN_SECONDS)
        with pytest.raises(UnauthenticatedError):
            tokens.verify_session(c, session, NOW + 1 + tokens.SESSION_SECONDS)


def test_a_revoked_tokens_sessions_end(db: Database, admin: str) -> None:
    with db.begin() as c:
        token = tokens.make(c, tenant="default", name="n", role="viewer", now=NOW)
        session = tokens.open_session(c, tokens.make_login_code(c, token.id, NOW), NOW)
        waiting = tokens.make_login_code(c, token.id, NOW)
        tokens.revoke(c, "default", token.id, NOW)
        with pytest.raises(UnauthenticatedError):
            tokens.verify_session(c, session, NOW)
        with pytest.raises(UnauthenticatedError):
            tokens.open_session(c, waiting, NOW)


def test_sessions_and_login_codes_of_a_token_are_bounded(db: Database, admin: str) -> None:
    with db.begin() as c:
        token = admin.split(".")[1]
        codes = [tokens.make_login_code(c, token, NOW + n) for n in range(store.MAX_SESSIONS + 5)]
        with pytest.raises(UnauthenticatedError):
            tokens.open_session(c, codes[4], NOW + 60)
        made = [tokens.begin_session(c, token, NOW + n) for n in range(store.MAX_SESSIONS + 5)]
        for number, text in enumerate(made):
            if number < 5:
                with pytest.raises(UnauthenticatedError):
                    tokens.verify_session(c, text, NOW + 60)
            else:
                tokens.verify_session(c, text, NOW + 60)
        assert tokens.verify_session(c, tokens.open_session(c, codes[5], NOW + 60), NOW + 61)


def test_tokens_that_ended_long_ago_are_forgotten_with_what_hung_on_them(db: Database, admin: str) -> None:
    with db.begin() as c:
        short = tokens.make(c, tenant="default", name="short", role="viewer", now=NOW, expires=NOW + 60)
        revoked = tokens.make(c, tenant="default", name="revoked", role="viewer", now=NOW)
        tokens.begin_session(c, short.id, NOW)
        tokens.make_login_code(c, short.id, NOW)
        tokens.revoke(c, "default", revoked.id, NOW + 61)
        for later, kept in ((store.FORGOTTEN + 60, 4), (store.FORGOTTEN + 62, 3)):
            tokens.make(c, tenant="default", name="n", role="viewer", now=NOW + later)
            assert len(store.tokens_of(c, "default", 100)) == kept
        assert {row.name for row in store.tokens_of(c, "default", 100)} == {"first-admin", "n"}


def test_the_newest_tokens_are_listed_whatever_was_made_before(
    client: TestClient, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.tenants.routes.MAX_LISTED", 3)
    with db.begin() as c:
        for number in range(6):
            made = tokens.make(c, tenant="default", name=f"n{number}", role="viewer", now=time.time() + number)
        tokens.revoke(c, "default", made.id, time.time())
    assert [row["name"] for row in client.get("/api/v1/tokens").json()["tokens"]] == ["n4", "n3", "n2"]


def test_tokens_over_http(client: TestClient) -> None:
    made = client.post("/api/v1/tokens", json={"name": "ci", "role": "operator", "seconds": 60})
    assert made.status_code == 201
    own = {"Authorization": f"Bearer {made.json()['token']}"}
    assert client.get("/api/v1/whoami", headers=own).json()["role"] == "operator"
    assert client.post("/api/v1/tokens", json={"name": "x", "role": "admin"}, headers=own).status_code == 403
    assert client.get("/api/v1/tokens", headers=own).status_code == 403
    listed = client.get("/api/v1/tokens").json()["tokens"]
    assert {row["name"] for row in listed} == {"first-admin", "ci"}
    assert "secret" not in str(listed)
    assert client.delete(f"/api/v1/tokens/{made.json()['id']}").status_code == 204
    assert client.get("/api/v1/whoami", headers=own).json()["code"] == "revoked_token"
    assert client.delete("/api/v1/tokens/none").status_code == 404
    for body in ({"name": "x", "role": "device"}, {"name": "x"}, {"name": "x", "role": "admin", "more": 1}):
        assert client.post("/api/v1/tokens", json=body).status_code == 400


def test_the_console_by_a_link(client: TestClient) -> None:
    path = client.post("/api/v1/login-links").json()["path"]
    browser = TestClient(client.app, follow_redirects=False)
    entered = browser.get(path)
    assert (entered.status_code, entered.headers["location"]) == (303, "/")
    cookie = entered.headers["set-cookie"]
    assert all(word in cookie for word in (SESSION_COOKIE, "HttpOnly", "SameSite=strict"))
    assert "Secure" not in cookie
    assert browser.get("/api/v1/whoami").json()["role"] == "admin"
    assert browser.get(path).status_code == 401
    assert browser.post("/logout").status_code == 403
    assert browser.post("/logout", headers={"Sec-Fetch-Site": "same-origin"}).status_code == 204
    browser.cookies.set(SESSION_COOKIE, cookie.split("=")[1].split(";")[0])
    assert browser.get("/api/v1/whoami").status_code == 401
    secure = TestClient(client.app, base_url="https://testserver", follow_redirects=False)
    assert "Secure" in secure.get(client.post("/api/v1/login-links").json()["path"]).headers["set-cookie"]
