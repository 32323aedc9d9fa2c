"""`muster audit` against the real application, and against files alone."""

from __future__ import annotations

import json
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from controller import __main__ as program
from controller.audit.store import record
from controller.commands import client

Muster = Callable[..., tuple[int, str, str]]


@pytest.fixture
def muster(
    application: Any, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Muster:
    ca_file = str(application.installation.authority.root_file)
    token = application.installation.admin_token
    login = client.Login(api_url=url, gateway_url=url, console_url=url, ca_file=ca_file, token=token)
    client.write_login(tmp_path / "login.json", login)
    monkeypatch.setenv("MUSTER_LOGIN", str(tmp_path / "login.json"))

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["muster", *arguments])
        with pytest.raises(SystemExit) as left:
            program.main()
        said = capsys.readouterr()
        return int(left.value.code or 0), said.out, said.err

    return run


def deeds(application: Any, number: int) -> None:
    for _ in range(number):
        assert application.admin.post("/api/v1/join-tokens", json={}).status_code == 201


def run(application: Any, statement: str) -> None:
    with application.database.begin() as c:
        c.execute(text(statement))


def test_a_trail_is_exported_and_verified_without_the_controller(
    application: Any, muster: Muster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deeds(application, 5)
    trail, head = tmp_path / "trail.jsonl", tmp_path / "head.json"
    assert muster("audit", "verify")[0] == 0
    assert muster("audit", "head", "--to", str(head))[0] == 0
    assert muster("audit", "export", str(trail))[0] == 0
    assert {stat.S_IMODE(file.stat().st_mode) for file in (trail, head)} == {0o600}
    monkeypatch.delenv("MUSTER_LOGIN")
    code, _, err = muster("audit", "verify", "--file", str(trail), "--head", str(head))
    assert (code, "up to row 6" in err) == (0, True), err
    lines = trail.read_text().splitlines(keepends=True)
    assert json.loads(lines[2])["row"]["body"]["uses"] == 1
    for broken in (
        [*lines[:3], lines[3].replace("join-token:", "join-token:x"), *lines[4:]],
        lines[:3] + lines[4:],
        [*lines[:3], lines[4], lines[3], *lines[5:]],
        lines[:4],
    ):
        trail.write_text("".join(broken))
        code, _, err = muster("audit", "verify", "--file", str(trail), "--head", str(head))
        assert (code, "was changed" in err) == (5, True), err
    trail.write_text("nonsense")
    code, _, err = muster("audit", "verify", "--file", str(trail))
    assert (code, "muster audit export" in err or "not JSON" in err) == (2, True), err
    code, _, err = muster("audit", "verify", "--file", str(tmp_path / "none"))
    assert (code, "none" in err) == (2, True)


def test_rows_that_were_cut_off_are_found_by_the_head_that_the_controller_signed(
    application: Any, muster: Muster, tmp_path: Path
) -> None:
    deeds(application, 5)
    application.control._sign_heads()  # as every hour
    head = tmp_path / "head.json"
    assert muster("audit", "head", "--to", str(head))[0] == 0
    run(application, "DELETE FROM audit WHERE number > 3")
    code, _, err = muster("audit", "verify")
    assert (code, "cut off" in err) == (5, True), err
    # whoever removed the controller's own heads as well is found by the one that was kept elsewhere
    for file in (application.installation.data / "audit").iterdir():
        file.unlink()
    assert muster("audit", "verify")[0] == 0
    code, _, err = muster("audit", "verify", "--head", str(head))
    assert (code, "cut off" in err) == (5, True), err


def test_the_head_is_of_the_newest_deed(application: Any) -> None:
    deeds(application, 1)
    first = application.admin.get("/api/v1/audit/head").json()
    deeds(application, 1)
    second = application.admin.get("/api/v1/audit/head").json()
    assert second["number"] == first["number"] + 1
    assert application.admin.get("/api/v1/audit/head").json() == second
    signed = application.admin.get("/api/v1/audit/verify").json()["signed"]
    assert signed == {"number": second["number"], "at": second["at"]}
    assert application.client("viewer").get("/api/v1/audit/export").status_code == 403


def rows(application: Any, action: str) -> list[Any]:
    return [row for row in application.admin.get("/api/v1/audit").json()["rows"] if row["action"] == action]


def test_a_row_says_who_what_before_and_after_and_why(
    application: Any, muster: Muster, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = application.admin.post("/api/v1/tokens", json={"name": "ci", "role": "viewer"}).json()["id"]
    monkeypatch.setenv("MUSTER_REASON", "left the company \u2014 ticket 42\x1b[2J")
    assert muster("tokens", "revoke", made)[0] == 0
    (row,) = rows(application, "tokens.revoke")
    assert row["actor"].startswith("admin:first-admin:")
    assert row["thing"] == f"token:{made}"
    assert row["reason"] == "left the company \u2014 ticket 42[2J"
    assert (row["body"]["name"], row["body"]["before"]["revoked"]) == ("ci", None)
    assert row["body"]["after"]["revoked"] == row["at"]
    deeds(application, 1)
    assert rows(application, "devices.make_join_token")[0]["reason"] == "", "a reason is of its own request alone"
    assert application.admin.get("/api/v1/audit", params={"q": "ticket 42"}).json()["rows"][0]["id"] == row["id"]


def test_what_cannot_be_hashed_is_no_row(application: Any) -> None:
    with pytest.raises(ValueError), application.database.begin() as c:
        record(c, tenant="default", actor="a", action="b", thing="c", at=1.0, body={"x": float("nan")})
    assert application.admin.get("/api/v1/audit/verify").json()["intact"]
