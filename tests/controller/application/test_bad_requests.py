"""What is wrong with a request is told as such: 4xx with words, never 500, and nothing large is read for it."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import pytest

from controller.app import MAX_BODY_BYTES

PIECE = b"x" * 2**20


def pieces(number: int) -> Iterator[bytes]:
    for _ in range(number):
        yield PIECE


@pytest.mark.parametrize(
    ("path", "status"),
    [("/api/v1/sessions", 413), ("/api/v1/tokens", 413), ("/api/v1/rollouts", 413), ("/api/v1/models/a/infer", 401)],
)
def test_an_endless_body_of_a_stranger_is_not_read_to_its_end(application: Any, path: str, status: int) -> None:
    answer = application.stranger().post(path, content=pieces(64), headers={"content-type": "application/json"})
    assert answer.status_code == status, answer.text


def test_a_body_that_is_too_large_is_refused_whether_it_says_so_or_not(application: Any) -> None:
    declared = application.admin.post("/api/v1/tokens", content=b" " * (MAX_BODY_BYTES + 1))
    assert declared.status_code == 413
    silent = application.admin.post("/api/v1/tokens", content=pieces(MAX_BODY_BYTES // len(PIECE) + 1))
    assert (silent.status_code, silent.json()["code"]) == (413, "http_413")
    assert "larger" in silent.json()["error"]


def test_uploads_may_be_larger_than_other_bodies(application: Any) -> None:
    answer = application.admin.post("/api/v1/artifacts", content=pieces(4))
    assert answer.status_code == 201, answer.text
    assert answer.json()["size"] == 4 * len(PIECE)
    put = application.admin.put(f"/api/v1/artifacts/{answer.json()['sha256']}", content=pieces(4))
    assert put.status_code == 200, put.text


def cursor(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


NOTHING, WORD = cursor('[null, "d-x"]'), cursor('["a", "d-x"]')


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/api/v1/audit?before=99999999999999999999", None, 400, "bad_request"),
        ("GET", f"/api/v1/devices?sort=name&after={NOTHING}", None, 400, "bad_cursor"),
        ("GET", f"/api/v1/devices?sort=last_seen&after={WORD}", None, 400, "bad_cursor"),
        ("GET", "/api/v1/devices/d-x/commands", None, 404, "no_device"),
        ("POST", "/api/v1/tokens", {"name": "a\n", "role": "viewer"}, 400, "bad_name"),
    ],
)
def test_the_error_says_whose_it_is(
    application: Any, method: str, path: str, body: Any, status: int, code: str
) -> None:
    answer = application.admin.request(method, path, json=body)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
