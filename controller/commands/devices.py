"""`muster devices`: who is in the fleet, and what each is and runs."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Annotated, Any, Final

import typer

from controller.commands.client import Api, at, read_login
from controller.commands.options import AsJson, Limit
from controller.commands.output import say, show_done, show_fields, show_json, show_table, show_text, when
from controller.errors import ConflictError, NotFoundError, UnavailableError

ANSWER_SECONDS: Final = 60.0
_ID: Final = re.compile(r"d-[a-z2-7]{26}\Z")
DeviceName = Annotated[str, typer.Argument(metavar="DEVICE", help="A device's id, or its name.")]

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
def show(device: DeviceName, as_json: AsJson = False) -> None:
    """Show one device: facts with evidence, and what runs."""
    api = Api(read_login())
    show_fields(api.get(at("/api/v1/devices/{}", id_of(api, device))), as_json)


@app.command()
def restart(device: DeviceName, as_json: AsJson = False) -> None:
    """Restart serving on a device, and wait for its answer."""
    show_answer(_commanded(device, "restart"), as_json)


@app.command()
def logs(device: DeviceName, as_json: AsJson = False) -> None:
    """Show the ends of a device's own logs."""
    show_answer(_commanded(device, "logs"), as_json)


@app.command()
def revoke(device: DeviceName, as_json: AsJson = False) -> None:
    """Take a device out of the fleet: it is refused everywhere from now on."""
    api = Api(read_login())
    found = id_of(api, device)
    api.delete(at("/api/v1/devices/{}", found))
    show_done({"id": found, "revoked": True}, as_json, f"{found} is revoked")


def id_of(api: Api, device: str) -> str:
    """Return the id of the device that has this id or name. Raises NotFoundError, or ConflictError for several."""
    if _ID.match(device):
        return device
    listed = api.get("/api/v1/devices", q=device, limit=500)["devices"]
    named = [row["id"] for row in listed if row["name"] == device]
    if not named:
        raise NotFoundError(f"no device is named {device!r}: see `muster devices list`", "no_device")
    if len(named) > 1:
        raise ConflictError(
            f"{len(named)} devices are named {device!r}: use an id, {', '.join(named[:5])}", "ambiguous"
        )
    return str(named[0])


def show_answer(answer: Mapping[str, Any], as_json: bool) -> None:
    """Show what a device answered. Raises ConflictError when it did not do what was asked."""
    if as_json:
        show_json(answer)
    elif answer["text"]:
        show_text(answer["text"])
    if answer["outcome"] != "done":
        raise ConflictError(f"{answer['outcome']}: {answer['detail']}", "not_done")
    if not as_json:
        say(answer["detail"])


def _commanded(device: str, kind: str) -> Mapping[str, Any]:
    api = Api(read_login())
    made = api.post(at("/api/v1/devices/{}/commands", id_of(api, device)), {"kind": kind})
    until = time.monotonic() + ANSWER_SECONDS
    while time.monotonic() < until:
        command: Mapping[str, Any] = api.get(at("/api/v1/commands/{}", made["id"]))
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
