"""`muster`: the command line of the controller. Each command's text is in `controller/commands/`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from controller.commands import authority, devices, infer, keys, models, rollouts, run, tokens
from controller.commands.logs import configure
from controller.commands.output import say
from controller.errors import ControllerError
from controller.local import run as local_run
from wire.version import __version__

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Run machine-learning models on a fleet of edge devices.",
)
app.command("up")(run.up)
app.command("role", hidden=True)(run.role)
app.command("local")(local_run.local)
app.command("login")(run.login)
app.command("infer")(infer.infer)
app.add_typer(devices.app, name="devices")
app.add_typer(models.models, name="models")
app.add_typer(models.builds, name="builds")
app.add_typer(rollouts.releases, name="releases")
app.add_typer(rollouts.rollouts, name="rollouts")
app.add_typer(tokens.tokens, name="tokens")
app.add_typer(tokens.audit, name="audit")
app.add_typer(keys.app, name="keys")
app.add_typer(authority.app, name="authority")


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"muster {__version__}\n")
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")] = False,
) -> None:
    configure("warning")  # commands that run for long say more (their settings' log_level)


def main() -> None:
    """Run a command; an error ends it with its message and its exit code (see `controller/errors.py`)."""
    try:
        app()
    except ControllerError as error:
        say(f"muster: {error}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
