"""Defaults, then a file, then the environment; what is mistyped stops the start and is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.errors import UsageError
from agent.settings import Settings, read_settings


def test_the_environment_wins_over_the_file_and_the_file_over_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text("serving_port = 9000\nhealth_interval = 5\nserving_managed = true\n")
    environment = {"MUSTER_SERVING_PORT": "0", "MUSTER_SERVING_MANAGED": "false", "MUSTER_GATEWAY_PORT": "7071"}
    settings = read_settings(file, environment)  # the controller's variables may stand beside ours
    assert (settings.serving_port, settings.health_interval, settings.serving_managed) == (0, 5.0, False)
    assert settings.serving_host == "127.0.0.1"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("serving_prot = 8000", "serving_prot"),
        ("serving_port = 65536", "serving_port"),
        ("serving_port = 'http'", "serving_port"),
        ("health_interval = 0", "health_interval"),
        ("log_level = 'verbose'", "log_level"),
        ("serving_port = ", r"agent\.toml"),
        ("\udcff", r"agent\.toml"),
    ],
)
def test_what_is_mistyped_in_the_file_is_named(tmp_path: Path, text: str, named: str) -> None:
    file = tmp_path / "agent.toml"
    file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UsageError, match=named):
        read_settings(file, {})


@pytest.mark.parametrize("name", ["SERVING_PORT", "SERVING_MANAGED", "OWNER_PID", "LOG_LEVEL"])
def test_a_variable_that_cannot_be_meant_is_named(name: str) -> None:
    with pytest.raises(UsageError, match=name.lower()):
        read_settings(None, {f"MUSTER_{name}": "twelve"})


@pytest.mark.parametrize(
    ("name", "meant"), [("MUSTER_SERVING_PROT", "MUSTER_SERVING_PORT"), ("MUSTER_LOGLEVEL", "MUSTER_LOG_LEVEL")]
)
def test_a_mistyped_variable_is_named_with_what_was_meant(name: str, meant: str) -> None:
    with pytest.raises(UsageError, match=f"{name}.*did you mean {meant}"):
        read_settings(None, {name: "1"})


def test_variables_of_other_programs_are_left_alone() -> None:
    assert read_settings(None, {"MUSTER_MQTT_PORT": "x", "MUSTER_API_PORT": "x", "SERVING_PORT": "x"}) == Settings()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.toml"):
        read_settings(tmp_path / "none.toml", {})


def test_the_data_directory_is_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert read_settings(None, {}).data_directory == tmp_path / "muster/agent"
    monkeypatch.chdir(tmp_path)
    assert read_settings(None, {"MUSTER_DATA": "here"}).data_directory == tmp_path / "here"
