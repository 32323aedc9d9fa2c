"""The controller's settings: defaults, then a TOML file, then ``MUSTER_*`` variables; read once, then frozen.

Invariant: an unknown key in the file or a value of the wrong type stops the start with a message that names it; a
variable that differs from ours by a slip is refused too; others are left alone, for the agent's have the same prefix.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from controller.errors import InvalidError

PREFIX = "MUSTER_"
_MISTYPED = 0.85  # how alike, of 1; the other program's settings are all further away from these
Port = Annotated[int, Meta(ge=0, le=65_535)]


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an operator may choose. Ports may be 0: chosen by the system, told in `ports.json` in the data directory.

    data: state, keys and artifacts live here. host: the address that devices and people use; also what the servers
    bind to. api_port: HTTPS. console_port: plain HTTP, bound to loopback alone, for browsers on this machine.
    api_url: where devices reach the API when that is not https://HOST:API_PORT (a proxy, a builder on another host).
    broker_url: an existing broker ("mqtts://host:port"), empty to start mosquitto as a child.
    max_artifact_bytes, max_body_bytes: of an upload, of an inference request.
    """

    data: str = ""
    host: str = "127.0.0.1"
    api_port: Port = 7070
    gateway_port: Port = 7071
    console_port: Port = 7072
    mqtt_port: Port = 8883
    api_url: str = ""
    broker_url: str = ""
    max_artifact_bytes: Annotated[int, Meta(ge=1)] = 8 * 1024**3
    max_body_bytes: Annotated[int, Meta(ge=1)] = 16 * 1024**2
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @property
    def data_directory(self) -> Path:
        """The data directory as an absolute path."""
        if self.data:
            return Path(self.data).expanduser().absolute()
        state = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share"
        return Path(state) / "muster" / "controller"


def read_settings(file: Path | None, environment: Mapping[str, str]) -> Settings:
    """Return the settings from ``file`` (TOML, optional) and ``environment``. Raises InvalidError."""
    values: dict[str, Any] = {}
    if file is not None:
        try:
            values = tomllib.loads(file.read_text())
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InvalidError(f"settings file {file}: {error}", "bad_settings") from error
    known = {field.name for field in msgspec.structs.fields(Settings)}
    for name, text in environment.items():
        if not name.startswith(PREFIX):
            continue
        if (key := name.removeprefix(PREFIX).lower()) in known:
            values[key] = text
        elif meant := difflib.get_close_matches(key, known, n=1, cutoff=_MISTYPED):
            raise InvalidError(f"{name} is no setting; did you mean {PREFIX}{meant[0].upper()}?", "bad_settings")
    try:
        return msgspec.convert(values, Settings, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidError(f"settings{f' in {file}' if file else ''}: {error}", "bad_settings") from error
