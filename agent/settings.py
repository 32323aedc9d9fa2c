"""The agent's settings: defaults, then a TOML file, then ``MUSTER_*`` variables; read once, then frozen.

Invariant: an unknown key in the file or a value of the wrong type stops the start with a message that names it; a
variable that differs from ours by a slip is refused too; others are left alone, for the controller's have the same
prefix. Identity is not a setting: it is made at enrolment and lies in the data directory.
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

from agent.errors import UsageError

PREFIX = "MUSTER_"
_MISTYPED = 0.85  # how alike, of 1; the other program's settings are all further away from these
Port = Annotated[int, Meta(ge=0, le=65_535)]


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a person may choose for one agent. Every port may be 0: chosen by the system, told in `ports.json`.

    data: where identity, builds and state live. serving_managed: the agent starts and watches the serving process
    (false where systemd does). owner_pid: end when this process is gone, 0 for never. disk_reserve_bytes: kept free.
    """

    data: str = ""
    serving_host: str = "127.0.0.1"
    serving_port: Port = 8000
    serving_managed: bool = True
    owner_pid: int = 0
    health_interval: Annotated[float, Meta(ge=1, le=3600)] = 10.0
    disk_reserve_bytes: Annotated[int, Meta(ge=0)] = 128 * 1024**2
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @property
    def data_directory(self) -> Path:
        """The data directory as an absolute path."""
        if self.data:
            return Path(self.data).expanduser().absolute()
        state = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share"
        return Path(state) / "muster" / "agent"


def read_settings(file: Path | None, environment: Mapping[str, str]) -> Settings:
    """Return the settings from ``file`` (TOML, optional) and ``environment``. Raises UsageError."""
    values: dict[str, Any] = {}
    if file is not None:
        try:
            values = tomllib.loads(file.read_text())
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"settings file {file}: {error}", "bad_settings") from error
    known = {field.name for field in msgspec.structs.fields(Settings)}
    for name, text in environment.items():
        if not name.startswith(PREFIX):
            continue
        if (key := name.removeprefix(PREFIX).lower()) in known:
            values[key] = text
        elif meant := difflib.get_close_matches(key, known, n=1, cutoff=_MISTYPED):
            raise UsageError(f"{name} is no setting; did you mean {PREFIX}{meant[0].upper()}?", "bad_settings")
    try:
        return msgspec.convert(values, Settings, strict=False)
    except msgspec.ValidationError as error:
        raise UsageError(f"settings{f' in {file}' if file else ''}: {error}", "bad_settings") from error
