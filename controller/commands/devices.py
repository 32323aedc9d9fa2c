"""`muster devices`: who is in the fleet, and what each is and runs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Annotated, Any, Final

import typer

from controller.commands.client import Api, read_login
from controller.commands.options import AsJson, Limit
from controller.commands.output import data, messages, show_fields, show_json, show_table, when
from controller.errors import ConflictError, UnavailableError

ANSWER_SECONDS: Final = 60.0

app = typer.Typer(no_args_is_help=True, help="Devices of the fleet.")


@app.command("list")
def list_devices(
    state: Annotated[str | None, typer.Option(help="online, late or lost")] = None,
    profile: Annotated[str | None, typer.Option(help="Only this profile.")] = None,
    name: Annotated[str | None, typer.Option(help="Only names that contain this.")] = None,
    limit: Limit = 100,
    as_json: AsJson = False,
) -> None:
    """List devices."""
    answer = Api(read_login()).get("/api/v1/devices", state=state, profile=profile, name=name, limit=limit)
    show_table(
        answer["devices"],
        [
            ("device", "id"),
            ("name", "name"),
            ("state", "state"),
            ("profile", "profile"),
            ("runs", runs),
            ("last seen", lambda row: when(row.get("last_seen"))),
        ],
        as_json,
        "no device yet: make a join token with `muster tokens join` and enrol one with `muster-agent enrol`",
    )


@app.command()
def show(device: str, as_json: AsJson = False) -> None:
    """Show one device: facts with evidence, and what runs."""
    show_fields(Api(read_login()).get(f"/api/v1/devices/{device}"), as_json)


@app.command()
def restart(device: str, as_json: AsJson = False) -> None:
    """Restart serving on a device, and wait for its answer."""
    show_answer(_commanded(device, "restart"), as_json)


@app.command()
def logs(device: str, as_json: AsJson = False) -> None:
    """Show the ends of a device's own logs."""
    show_answer(_commanded(device, "logs"), as_json)


@app.command()
def revoke(device: str) -> None:
    """Take a device out of the fleet: it is refused everywhere from now on."""
    Api(read_login()).delete(f"/api/v1/devices/{device}")
    messages.print(f"{device} is revoked")


def show_answer(answer: Mapping[str, Any], as_json: bool) -> None:
    """Show what a device answered. Raises ConflictError when it did not do what was asked."""
    if as_json:
        show_json(answer)
    elif answer["text"]:
        data.print(answer["text"], markup=False, end="")
    if answer["outcome"] != "done":
        raise ConflictError(f"{answer['outcome']}: {answer['detail']}", "not_done")
    if not as_json:
        messages.print(answer["detail"])


def _commanded(device: str, kind: str) -> Mapping[str, Any]:
    api = Api(read_login())
    made = api.post(f"/api/v1/devices/{device}/commands", {"kind": kind})
    until = time.monotonic() + ANSWER_SECONDS
    while time.monotonic() < until:
        command: Mapping[str, Any] = api.get(f"/api/v1/commands/{made['id']}")
        if command["state"] == "answered":
            return command
        time.sleep(0.2)
    raise UnavailableError(
        f"{device} has not answered within {ANSWER_SECONDS:.0f} s; the command holds for an hour, and the console "
        "shows its answer",
        "no_answer",
    )


def runs(row: Mapping[str, Any]) -> str:
    """Return what a device says that it runs, in a few words."""
    items = (row.get("reported") or {}).get("items") or []
    return "\n".join(f"{item['component']} {item['build'] or '-'} {item['state']}" for item in items) or "-"
