from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from controller.console import pages
from tests.controller.console.conftest import Served


def test_every_page_of_the_console_is_the_same_file_and_tells_nothing(served: Served) -> None:
    with httpx.Client(base_url=served.url) as anybody:
        page = anybody.get("/")
        assert page.status_code == 200
        assert page.headers["Content-Type"].startswith("text/html")
        assert page.headers["Cache-Control"] == "no-store"
        for address in ("/devices", "/devices/d-1", "/rollouts/new?release=x", "/no/such/page"):
            assert anybody.get(address).content == page.content


def test_what_is_the_apis_is_never_answered_with_a_page(served: Served) -> None:
    with served.client() as client:
        for address in ("/api/v1/nothing", "/api/nothing", "/assets/nothing.js"):
            answer = client.get(address)
            assert answer.status_code == 404
            assert answer.headers["Content-Type"] == "application/json"
        assert client.get("/healthz").json() == {"status": "ok"}
        assert client.get("/metrics").text.startswith("#")


def test_the_policy_lets_nothing_in_from_elsewhere_and_nothing_inline(served: Served) -> None:
    with httpx.Client(base_url=served.url) as anybody:
        policy = anybody.get("/").headers["Content-Security-Policy"]
        page = anybody.get("/").text
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert "<style" not in page
    assert "style=" not in page
    assert page.count("<script") == page.count('<script type="module" crossorigin src="/assets/')


def test_files_that_are_named_by_their_content_are_kept_for_ever(served: Served) -> None:
    with httpx.Client(base_url=served.url) as anybody:
        for name, file in pages.files().items():
            answer = anybody.get(f"/{name}")
            assert answer.content == file.content  # unpacked by the client
            assert answer.headers["Content-Encoding"] == "gzip"
            plain = anybody.get(f"/{name}", headers={"Accept-Encoding": "identity"})
            assert plain.content == file.content
            assert "Content-Encoding" not in plain.headers
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert ("immutable" in answer.headers["Cache-Control"]) is name.startswith("assets/")


def test_nothing_outside_the_built_files_is_served(served: Served) -> None:
    page = pages.files()["index.html"].content
    with httpx.Client(base_url=served.url) as anybody:
        for address in ("/../app.py", "/%2e%2e/app.py", "/assets/..%2f..%2fapp.py", "/.built-from"):
            answer = anybody.get(address)
            assert answer.status_code == 404 or answer.content == page


def test_without_a_built_console_the_page_says_so_and_the_api_works(
    served: Served, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    empty = pages.files(tmp_path / "nothing")
    monkeypatch.setattr(pages, "files", lambda: empty)
    with served.client() as client:
        answer = client.get("/")
        assert answer.status_code == 503
        assert "MUSTER_SKIP_CONSOLE" in answer.text
        assert client.get("/api/v1/whoami").json()["role"] == "admin"


def test_a_login_link_works_once_and_a_browser_is_told_kindly(served: Served) -> None:
    path = served.login_path()
    with httpx.Client(base_url=served.url) as browser:
        first = browser.get(path)
        assert first.status_code == 303
        assert "HttpOnly" in first.headers["Set-Cookie"]
        assert "SameSite=strict" in first.headers["Set-Cookie"]
        assert browser.get("/api/v1/whoami").json()["name"] == "first-admin"
    with httpx.Client(base_url=served.url) as other:
        assert other.get(path).status_code == 401
        kindly = other.get(path, headers={"Accept": "text/html"})
        assert (kindly.status_code, kindly.headers["Location"]) == (303, "/?login=failed")
        assert other.get("/api/v1/whoami").status_code == 401


def test_a_session_is_opened_with_a_token_from_the_consoles_own_page_only(served: Served) -> None:
    with httpx.Client(base_url=served.url) as browser:
        body = {"token": served.token}
        assert browser.post("/api/v1/sessions", json=body).status_code == 403
        assert browser.post("/api/v1/sessions", json=body, headers={"Origin": "http://evil.example"}).status_code == 403
        wrong = browser.post("/api/v1/sessions", json={"token": "mut.a.b"}, headers={"Origin": served.url})
        assert wrong.status_code == 401
        assert "muster tokens create" in wrong.json()["error"]
        assert browser.post("/api/v1/sessions", json=body, headers={"Origin": served.url}).status_code == 204
        assert browser.get("/api/v1/whoami").json()["role"] == "admin"
        # and the cookie alone changes nothing when another page sends it
        assert browser.post("/api/v1/join-tokens", json={}).status_code == 401
        assert browser.post("/api/v1/join-tokens", json={}, headers={"Origin": served.url}).status_code == 201


def test_guessing_tokens_at_the_login_is_slowed_down(served: Served) -> None:
    with httpx.Client(base_url=served.url, headers={"Origin": served.url}) as browser:
        answers = [browser.post("/api/v1/sessions", json={"token": "mut.a.b"}).status_code for _ in range(70)]
    assert answers[0] == 401
    assert answers[-1] == 429
