"""The command line, without an agent."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from agent.__main__ import main


@pytest.fixture(autouse=True)
def _log_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.__main__._configure_log", lambda level: None)


def test_profile_for_people_and_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["profile"]
    assert main(["profile"]) == 0
    assert found["profile"] in capsys.readouterr().out


def test_profile_of_a_copied_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "uname-m").write_text("armv7l\n")
    assert main(["profile", "--root", str(tmp_path)]) == 0
    assert "generic-armv7" in capsys.readouterr().out
    assert main(["profile", "--root", str(tmp_path / "none")]) == 2


def test_status_of_nothing_is_plain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--data", str(tmp_path)]) == 1
    shown = capsys.readouterr().out
    assert "not running" in shown
    assert "not enrolled" in shown
    assert list(tmp_path.iterdir()) == []  # looking changes nothing


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "--controller", "https://h:1"], "belong together"),
        (["enrol", "--controller", "https://h:1", "--token-file", "/none"], "token file"),
        (["status", "--settings", "/none.toml"], "settings file"),
    ],
)
def test_wrong_arguments_are_named(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--data", str(tmp_path)]) == 2
    shown = capsys.readouterr()
    assert words in shown.err
    assert shown.out == ""


def test_a_token_is_not_taken_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as info:
        main(["enrol", "--controller", "https://h:1", "--token", "muster-join-1.x", "--data", str(tmp_path)])
    assert info.value.code == 2
    assert "--token-file" in capsys.readouterr().err


def test_running_needs_no_engine_and_no_web_framework() -> None:
    code = "import sys, agent.__main__, agent.app; print(*sys.modules)"
    modules = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    forbidden = {
        "numpy",
        "onnxruntime",
        "starlette",
        "uvicorn",
        "httpx",
        "fastapi",
        "typer",
        "sqlalchemy",
        "controller",
    }
    assert not modules & forbidden
