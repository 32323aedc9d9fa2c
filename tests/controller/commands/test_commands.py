"""The commands as an operator or a program uses them: what goes to which stream, with which exit code."""

from __future__ import annotations

import json
import re
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import pytest
import typer

from controller import __main__ as program
from controller import errors
from controller.commands import client, devices, models, rollouts, tokens
from controller.commands.client import Login

RUN_UNTIL_STOPPED = {"up", "role", "local"}
BAD_NAME = "[/] [red]x[/red] :warning: \x1b[2J\x9b2J \u202e"


@dataclass
class FakeApi:
    """Answers by method and path, "GET /x"; a function is called with the parameters or the body."""

    answers: dict[str, Any] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def __call__(self, _login: Login) -> FakeApi:
        return self

    def get(self, path: str, **parameters: Any) -> Any:
        return self._answer(f"GET {path}", parameters)

    def post(self, path: str, body: Any = None) -> Any:
        return self._answer(f"POST {path}", body)

    def delete(self, path: str) -> Any:
        return self._answer(f"DELETE {path}", None)

    def _answer(self, asked: str, said: Any) -> Any:
        self.asked.append(asked)
        answer = self.answers[asked]
        return answer(said) if callable(answer) else answer


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeApi]:
    login = Login(api_url="https://x", gateway_url="https://x", console_url="", ca_file="", token="t")
    fake = FakeApi()
    client.write_login(tmp_path / "login.json", login)
    monkeypatch.setenv("MUSTER_LOGIN", str(tmp_path / "login.json"))
    for module in (devices, models, rollouts, tokens):
        monkeypatch.setattr(module, "Api", fake)
    return fake


@dataclass
class Done:
    code: int
    out: str
    err: str


@pytest.fixture
def muster(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    def run(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["muster", *arguments])
        with pytest.raises(SystemExit) as left:
            program.main()
        code = left.value.code
        said = capsys.readouterr()
        return Done(code if isinstance(code, int) else 0 if code is None else 1, said.out, said.err)

    return run


def every_command() -> list[tuple[str, click.Command]]:
    found: list[tuple[str, click.Command]] = []

    def walk(name: str, command: click.Command) -> None:
        inner = getattr(command, "commands", None)
        if inner is None:
            found.append((name.strip(), command))
        else:
            for word, each in inner.items():
                walk(f"{name} {word}", each)

    walk("", typer.main.get_command(program.app))
    return found


def test_every_command_prints_json_for_programs_and_says_what_it_does() -> None:
    commands = every_command()
    assert len(commands) > 25
    for name, command in commands:
        options = {option for parameter in command.params for option in parameter.opts}
        assert "--json" in options or name in RUN_UNTIL_STOPPED, name
        assert command.help, name


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rolouts"], "Did you mean 'rollouts'"),
        (["rollouts", "shwo", "r-1"], "Did you mean 'show'"),
        (["rollouts", "show"], "Missing argument"),
        (["devices", "list", "--limit", "0"], "--limit"),
        (["rollouts", "create", "v1", "--policy", "/no/such/file"], "--policy"),
        (["releases", "create", "v1", "--model", "digits"], "NAME=VERSION"),
        (["devices", "show", ""], "is not a name"),
    ],
)
def test_what_is_mistyped_is_explained(
    muster: Callable[..., Done], api: FakeApi, arguments: list[str], words: str
) -> None:
    api.answers["GET /api/v1/devices"] = {"devices": [{"id": "", "name": ""}]}
    done = muster(*arguments)
    assert (done.code, done.out) == (2, "")
    assert words in done.err


def test_the_documented_exit_codes_are_those_of_the_errors() -> None:
    import controller.commands as documentation

    assert documentation.__doc__ is not None
    documented = {int(code) for code in re.findall(r"\b(\d) [a-z]", documentation.__doc__)}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    assert documented == {0} | {kind.exit_code for kind in kinds if issubclass(kind, errors.ControllerError)}


def test_data_and_messages_go_to_their_streams(muster: Callable[..., Done], api: FakeApi) -> None:
    api.answers["GET /api/v1/devices"] = {"devices": []}
    done = muster("devices", "list")
    assert (done.code, done.out) == (0, "")
    assert "no device yet" in done.err
    done = muster("devices", "list", "--json")
    assert (json.loads(done.out), done.err) == ([], "")


def test_names_from_devices_command_neither_the_terminal_nor_the_printer(
    muster: Callable[..., Done], api: FakeApi
) -> None:
    row = {"id": "d-1", "name": BAD_NAME, "state": "online", "profile": "x", "reported": None, "last_seen": None}
    api.answers["GET /api/v1/devices"] = {"devices": [row]}
    assert json.loads(muster("devices", "list", "--json").out) == [row], "programs get every character"
    shown = muster("devices", "list")
    assert shown.code == 0, shown.err
    assert "[/] [red]x[/red] :warning:" in shown.out
    assert not {"\x1b", "\x9b", "\u202e"} & set(shown.out)
    api.answers["GET /api/v1/devices"] = {"devices": [row | {"name": "other"}]}
    missing = muster("devices", "show", BAD_NAME)
    assert missing.code == 3
    assert "[red]x[/red]" in missing.err


def test_long_lines_stay_whole_where_no_terminal_is(muster: Callable[..., Done], api: FakeApi) -> None:
    row = {"id": "d-" + "a" * 26, "name": "n" * 200, "state": "online", "profile": "p" * 50}
    api.answers["GET /api/v1/devices"] = {"devices": [row]}
    lines = muster("devices", "list").out.splitlines()
    assert len(lines) == 2
    assert row["id"] in lines[1]
    assert row["name"] in lines[1]


def test_what_an_operator_types_stays_one_name_in_an_address(muster: Callable[..., Done], api: FakeApi) -> None:
    api.answers["GET /api/v1/rollouts/..%2Fdevices%3Flimit%3D1"] = {"id": "odd"}
    done = muster("rollouts", "show", "../devices?limit=1", "--json")
    assert (done.code, json.loads(done.out)) == (0, {"id": "odd"})


def test_executions_of_a_large_rollout_are_all_shown(muster: Callable[..., Done], api: FakeApi) -> None:
    rows = [{"id": f"e-{n:04}", "device": "d", "component": "c", "state": "IDLE", "fault": None} for n in range(2500)]

    def page(asked: dict[str, Any]) -> dict[str, Any]:
        found = [row for row in rows if str(row["id"]) > asked["after"]][: asked["limit"]]
        return {"executions": found, "next": found[-1]["id"] if len(found) == asked["limit"] else None}

    api.answers["GET /api/v1/rollouts/r-1/executions"] = page
    assert json.loads(muster("rollouts", "executions", "r-1", "--json").out) == rows
    assert len(api.asked) == 3


def test_a_rollout_is_created_with_its_selector_and_warnings_are_told(
    muster: Callable[..., Done], api: FakeApi, tmp_path: Path
) -> None:
    said: list[Any] = []

    def create(body: Any) -> Any:
        said.append(body)
        return {"id": "r-1", "warnings": ["no device has the id or name edgge-1"]}

    api.answers["POST /api/v1/rollouts"] = create
    (tmp_path / "policy.json").write_text('{"soak": 5}')
    options = ["--device", "edgge-1", "--tag", "a", "--tag", "b", "--profile", "jetson-nano"]
    done = muster("rollouts", "create", "v1", *options, "--policy", str(tmp_path / "policy.json"))
    assert said == [
        {
            "release": "v1",
            "selector": {"tags": ["a", "b"], "devices": ["edgge-1"], "profiles": ["jetson-nano"]},
            "dry_run": False,
            "policy": {"soak": 5},
        }
    ]
    assert (done.code, done.out) == (0, "")
    assert "rollout r-1" in done.err
    assert "warning: no device has the id or name edgge-1" in done.err
    (tmp_path / "policy.json").write_text("soak: 5")
    assert muster("rollouts", "create", "v1", "--policy", str(tmp_path / "policy.json")).code == 2


def test_a_token_in_a_file_is_its_owners_alone_even_where_a_file_was(
    muster: Callable[..., Done], api: FakeApi, tmp_path: Path
) -> None:
    api.answers["POST /api/v1/join-tokens"] = {"token": "muster-join-1.secret"}
    file = tmp_path / "token"
    file.write_text("old")
    file.chmod(0o644)
    done = muster("tokens", "join", "--file", str(file))
    assert (done.code, done.out) == (0, "")
    assert file.read_text() == "muster-join-1.secret\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "secret" not in done.err
    (tmp_path / "directory").mkdir()
    done = muster("tokens", "join", "--file", str(tmp_path / "directory"))
    assert done.code == 2
    assert "make another" in done.err


def test_join_tokens_are_listed_and_withdrawn(muster: Callable[..., Done], api: FakeApi) -> None:
    row = {"id": "abc", "uses_left": 4, "created": 1.0, "expires": 2.0, "tags": ["site=riga", "rack=2"]}
    api.answers["GET /api/v1/join-tokens"] = {"join_tokens": [row]}
    shown = muster("tokens", "joins")
    assert shown.code == 0
    assert "site=riga rack=2" in shown.out
    api.answers["DELETE /api/v1/join-tokens/abc"] = {}
    done = muster("tokens", "withdraw", "abc")
    assert (done.code, "nobody else joins with abc" in done.err) == (0, True)


def test_a_build_that_takes_too_long_is_no_failure_of_the_build(api: FakeApi) -> None:
    api.answers["GET /api/v1/build-jobs/j"] = {"state": "running", "progress": "measuring", "error": ""}
    told: list[str] = []
    with pytest.raises(errors.UnavailableError, match="is the builder running"):
        models.wait_for_job(api, "j", told.append, deadline=0.3)  # type: ignore[arg-type]
    assert told == ["measuring"]
    api.answers["GET /api/v1/build-jobs/j"] = {"state": "failed", "progress": "failed", "error": "no ONNX"}
    with pytest.raises(errors.ConflictError, match="no ONNX"):
        models.wait_for_job(api, "j", told.append)  # type: ignore[arg-type]
