"""Operators over HTTP: API tokens for access tokens, sessions for access tokens, and what neither can do."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient

from controller.tenants.access_tokens import LIFE
from controller.tenants.guesses import MOST

PAGE = {"Sec-Fetch-Site": "same-origin"}


def exchanged(client: TestClient, **headers: str) -> dict[str, str]:
    answer = client.post("/api/v1/access-tokens", headers=headers)
    assert answer.status_code == 201, answer.text
    assert answer.headers["cache-control"] == "no-store"
    return {"Authorization": f"Bearer {answer.json()['access_token']}"}


def from_address(application: Any, address: str, token: str) -> Any:
    client = TestClient(application.control.api, client=(address, 1), raise_server_exceptions=False)
    return client.get("/api/v1/whoami", headers={"Authorization": f"Bearer {token}"})


@pytest.mark.parametrize("role", ["admin", "operator", "viewer"])
def test_an_access_token_does_what_its_api_token_does_but_makes_no_credential(application: Any, role: str) -> None:
    client, stranger = application.client(role), application.stranger()
    headers = exchanged(client)
    me = stranger.get("/api/v1/whoami", headers=headers).json()
    assert (me["role"], me["id"]) == (role, client.get("/api/v1/whoami").json()["id"])
    assert stranger.post("/api/v1/join-tokens", json={}, headers=headers).status_code == (
        403 if role == "viewer" else 201
    )
    for path, body in (
        ("/api/v1/access-tokens", None),
        ("/api/v1/login-links", None),
        ("/api/v1/tokens", {"name": "n", "role": "admin"}),
    ):
        answer = stranger.post(path, json=body, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (403, "denied"), path
    assert stranger.delete(f"/api/v1/tokens/{me['id']}", headers=headers).status_code == 403
    asked = stranger.post("/api/v1/models/digits/infer", json={}, headers=headers)
    assert (asked.status_code, role == "viewer" or "gateway" in asked.json()["error"]) == (403, True)
    token = headers["Authorization"].partition(" ")[2]
    assert stranger.post("/api/v1/sessions", json={"token": token}, headers=PAGE).status_code == 400


@pytest.mark.parametrize("role", ["builder", "gateway"])
def test_machines_get_none(application: Any, role: str) -> None:
    assert application.client(role).post("/api/v1/access-tokens").status_code == 403


def test_a_session_gets_one_from_our_own_pages_only(application: Any) -> None:
    path = application.admin.post("/api/v1/login-links").json()["path"]
    browser = application.stranger()
    browser.get(path, follow_redirects=False)
    assert browser.post("/api/v1/access-tokens").status_code == 401
    headers = exchanged(browser, **PAGE)
    assert application.stranger().get("/api/v1/whoami", headers=headers).json()["role"] == "admin"


def test_it_ends_with_its_api_token_and_with_its_time(application: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    client, stranger = application.client("operator"), application.stranger()
    headers, id_ = exchanged(client), client.get("/api/v1/whoami").json()["id"]
    with monkeypatch.context() as later:
        import time

        now = time.time()
        later.setattr("controller.tenants.guard.time.time", lambda: now + LIFE + 1)
        assert stranger.get("/api/v1/whoami", headers=headers).json()["code"] == "expired_access_token"
    assert stranger.get("/api/v1/whoami", headers=headers).status_code == 200
    assert application.admin.delete(f"/api/v1/tokens/{id_}").status_code == 204
    assert stranger.get("/api/v1/whoami", headers=headers).json()["code"] == "revoked_token"


def test_the_audit_says_who_got_one(application: Any) -> None:
    exchanged(application.admin)
    (row,) = [
        row for row in application.admin.get("/api/v1/audit").json()["rows"] if row["action"] == "access_tokens.create"
    ]
    assert row["actor"].startswith("admin:first-admin:")
    assert set(row["body"]) == {"access_token", "expires"}


def test_guesses_at_one_token_from_many_addresses_are_bounded_and_its_owner_is_not_locked_out(
    application: Any,
) -> None:
    token = application.installation.admin_token
    wrong = token[:-4] + ("AAAA" if token[-4:] != "AAAA" else "BBBB")
    assert from_address(application, "198.51.100.7", token).status_code == 200
    answers = [from_address(application, f"203.0.113.{n}", wrong) for n in range(MOST + 5)]
    assert [answer.status_code for answer in answers] == [401] * MOST + [429] * 5
    assert answers[-1].json()["code"] == "too_many_guesses"
    assert from_address(application, "203.0.113.250", token).status_code == 429, "not even compared"
    assert from_address(application, "198.51.100.7", token).status_code == 200
    assert from_address(application, "127.0.0.1", token).status_code == 200
    for client, status in (("203.0.113.9", 429), ("127.0.0.1", 204)):
        asked = TestClient(application.control.api, client=(client, 1))
        assert asked.post("/api/v1/sessions", json={"token": token}, headers=PAGE).status_code == status
    nobody = wrong.replace(wrong.split(".")[1], "a" * 16)
    assert from_address(application, "203.0.113.1", nobody).status_code == 401, "who does not exist is not counted"


def test_login_links_are_not_tried_without_end(application: Any) -> None:
    stranger = application.stranger()
    statuses = [stranger.get(f"/login/{'x' * 43}").status_code for _ in range(70)]
    assert statuses[0] == 401
    assert statuses[-1] == 429
