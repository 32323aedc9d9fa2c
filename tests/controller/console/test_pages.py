from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import insert

from controller.console import pages
from controller.database.connection import Database
from controller.database.tables import devices, join_tokens
from controller.tenants import routes as tenants_routes
from controller.tenants import tokens
from controller.tenants.guard import install_errors, require_declared

NASTY = "<script>alert(1)</script>"


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    database = Database(tmp_path / "state.db")
    database.migrate()
    token = tokens.first_start(database, time.time())
    app = FastAPI()
    app.state.database = database
    install_errors(app)
    app.include_router(tenants_routes.router)
    app.include_router(pages.router)
    require_declared(app)
    with database.begin() as connection:
        connection.execute(
            insert(join_tokens).values(
                id="j", tenant="default", secret_sha256="", uses_left=0, tags=[], created=0.0, expires=0.0
            )
        )
        connection.execute(
            insert(devices).values(
                id="d-" + "a" * 26,
                tenant="default",
                name=NASTY,
                tags=[],
                public_key="k",
                join_token="j",
                enrolled=time.time(),
                online=True,
                last_seen=time.time(),
                profile=NASTY,
                reported={"items": [{"component": NASTY, "build": NASTY, "state": NASTY}]},
            )
        )
    with TestClient(app, base_url="http://127.0.0.1", headers={"X-Token": token or ""}) as made:
        yield made
    database.close()


def log_in(client: TestClient) -> None:
    bearer = {"Authorization": f"Bearer {client.headers['X-Token']}"}
    path = client.post("/api/v1/login-links", headers=bearer).json()["path"]
    assert client.get(path).status_code == 200  # redirected to the page, with the cookie


def test_without_a_session_the_page_says_how_to_get_one_and_nothing_else(client: TestClient) -> None:
    answer = client.get("/")
    assert answer.status_code == 401
    assert "muster login" in answer.text
    assert "d-aaaa" not in answer.text


def test_the_page_shows_the_fleet_and_escapes_what_devices_say(client: TestClient) -> None:
    log_in(client)
    answer = client.get("/")
    assert answer.status_code == 200
    assert "1 of 1 devices online" in answer.text
    assert answer.text.count("&lt;script&gt;") == 5
    assert "<script" not in answer.text


def test_the_page_may_load_nothing_from_elsewhere_and_run_nothing(client: TestClient) -> None:
    headers = client.get("/").headers
    assert headers["Content-Security-Policy"].startswith("default-src 'none'; style-src 'self'")
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert headers["Cache-Control"] == "no-store"
    assert client.get("/console.css").headers["Content-Type"].startswith("text/css")


def test_a_login_link_works_once(client: TestClient) -> None:
    bearer = {"Authorization": f"Bearer {client.headers['X-Token']}"}
    path = client.post("/api/v1/login-links", headers=bearer).json()["path"]
    assert client.get(path, follow_redirects=False).status_code == 303
    assert client.get(path, follow_redirects=False).status_code == 401
