"""`muster up`, `muster role`: the controller's processes; `muster login`: a link to the console."""

from __future__ import annotations

import asyncio
import os
import webbrowser
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from controller.commands.client import Api, Login, login_file, read_login, write_login
from controller.commands.logs import configure
from controller.commands.options import AsJson
from controller.commands.output import say, show_json, show_text
from controller.installation import Installation, only_one
from controller.settings import Settings, read_settings

DataOption = Annotated[Path | None, typer.Option("--data", help="Where keys, state and artifacts are kept.")]
SettingsOption = Annotated[Path | None, typer.Option("--settings", help="A TOML file with settings.")]


def chosen_settings(file: Path | None, data_directory: Path | None) -> Settings:
    """Return the settings of a controller command; --data wins over the file and the environment."""
    settings = read_settings(file, os.environ)
    if data_directory is not None:
        settings = msgspec.structs.replace(settings, data=str(data_directory.expanduser().absolute()))
    return settings


def up(data_directory: DataOption = None, settings_file: SettingsOption = None) -> None:
    """Run the whole controller here: all roles and a broker, until Ctrl-C."""
    from controller.processes import run_all

    settings = chosen_settings(settings_file, data_directory)
    configure(settings.log_level)

    def ready(installation: Installation) -> None:
        if installation.admin_token is not None:
            write_login(login_file(), login_of(installation, installation.admin_token))
            say(f"first start: the admin token is kept in {login_file()} and shown this once:")
            show_text(installation.admin_token)
            installation.admin_token_shown()
        say(f"API {installation.api_url}  gateway {installation.gateway_url}")
        say(f"console: `muster login` opens {installation.console_url}")

    with only_one(settings.data_directory):
        asyncio.run(run_all(settings, settings_file, ready))


def role(
    names: Annotated[list[str], typer.Argument(help="control, gateway, builder")],
    data_directory: DataOption = None,
    settings_file: SettingsOption = None,
    owner_pid: Annotated[int, typer.Option(help="End when this process, the parent, is gone.")] = 0,
) -> None:
    """Run some of the controller's roles in this process, until it is asked to stop."""
    from controller.roles import run_roles

    settings = chosen_settings(settings_file, data_directory)
    configure(settings.log_level)
    if "gateway" in names:
        import uvloop

        uvloop.run(run_roles(names, settings, owner_pid))  # half the gateway's time is its loop's
    else:
        asyncio.run(run_roles(names, settings, owner_pid))


def login(
    browser: Annotated[bool, typer.Option(help="Open it in a browser.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a link that opens the console once, within five minutes."""
    known = read_login()
    answer = Api(known).post("/api/v1/login-links")
    url = known.console_url + answer["path"]
    if browser:
        webbrowser.open(url)
    if as_json:
        show_json({"url": url, "expires": answer["expires"]})
    else:
        show_text(url)


def login_of(installation: Installation, token: str) -> Login:
    """Return what a user of this machine needs to reach the controller in ``installation`` with ``token``."""
    return Login(
        api_url=installation.api_url,
        gateway_url=installation.gateway_url,
        console_url=installation.console_url,
        ca_file=str(installation.authority.root_file),
        token=token,
    )
