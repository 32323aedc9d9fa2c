"""`muster authority`: replaces the fleet's certificate authority, in three steps with time between them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

import typer

from controller.commands.options import AsJson
from controller.commands.output import show_done
from controller.commands.run import DataOption, SettingsOption, chosen_settings
from controller.devices import rotation
from controller.devices.rotation import Stage
from controller.installation import only_one

app = typer.Typer(no_args_is_help=True, help="The fleet's certificate authority. Stop the controller before a step.")
_NEXT_STEP: Final = {
    Stage.SETTLED: "nothing is under way; `muster authority announce` begins to replace it",
    Stage.ANNOUNCED: "devices that are switched on learn of the next one within a day; then `muster authority switch`",
    Stage.SWITCHED: "devices that are switched on get certificates of it within a day; then `muster authority finish`",
}


@app.command()
def show(data_directory: DataOption = None, settings_file: SettingsOption = None, as_json: AsJson = False) -> None:
    """Show whether it is being replaced, and what the next step is."""
    stage = rotation.stage(_directory(data_directory, settings_file))
    show_done({"stage": stage.value, "next": _NEXT_STEP[stage]}, as_json, f"{stage.value}: {_NEXT_STEP[stage]}")


@app.command()
def announce(data_directory: DataOption = None, settings_file: SettingsOption = None, as_json: AsJson = False) -> None:
    """Make the next one; devices are told when they next ask."""
    directory = _directory(data_directory, settings_file)
    with only_one(directory.parent):
        rotation.announce(directory, time.time())
    _done(Stage.ANNOUNCED, as_json)


@app.command()
def switch(data_directory: DataOption = None, settings_file: SettingsOption = None, as_json: AsJson = False) -> None:
    """Let the next one issue. Join tokens made before hold no more; who has not learned of it must join anew."""
    directory = _directory(data_directory, settings_file)
    with only_one(directory.parent):
        rotation.switch(directory)
    _done(Stage.SWITCHED, as_json)


@app.command()
def finish(data_directory: DataOption = None, settings_file: SettingsOption = None, as_json: AsJson = False) -> None:
    """Forget the old one: what it issued is refused. Devices that were away since the switch must join anew."""
    directory = _directory(data_directory, settings_file)
    with only_one(directory.parent):
        rotation.finish(directory)
    _done(Stage.SETTLED, as_json)


def _directory(data_directory: Path | None, settings_file: Path | None) -> Path:
    return chosen_settings(settings_file, data_directory).data_directory / "ca"


def _done(stage: Stage, as_json: bool) -> None:
    text = f"{stage.value}: start the controller again. {_NEXT_STEP[stage]}"
    show_done({"stage": stage.value, "next": _NEXT_STEP[stage]}, as_json, text)
