"""`muster releases` and `muster rollouts`: what shall run where, in which stages, and how that goes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from controller.commands.client import Api, at, read_login
from controller.commands.options import AsJson
from controller.commands.output import say, show_done, show_fields, show_json, show_table, when
from controller.errors import InvalidError

releases = typer.Typer(no_args_is_help=True, help="Releases: immutable sets of model versions.")
rollouts = typer.Typer(no_args_is_help=True, help="Rollouts: a release brought to devices in stages.")


@releases.command("list")
def list_releases(as_json: AsJson = False) -> None:
    """List releases."""
    answer = Api(read_login()).get("/api/v1/releases")
    show_table(
        answer["releases"],
        [
            ("release", "id"),
            ("name", "name"),
            ("models", "models"),
            ("made", lambda row: when(row.get("created"))),
        ],
        as_json,
        "no release yet: `muster releases create NAME --model NAME=VERSION`",
    )


@releases.command("create")
def create_release(
    name: str,
    model: Annotated[list[str], typer.Option(help="NAME=VERSION, once for each model.")],
    as_json: AsJson = False,
) -> None:
    """Make a release."""
    models = {}
    for entry in model:
        key, separator, version = entry.partition("=")
        if not separator or not version.isdecimal():
            raise InvalidError(f"--model takes NAME=VERSION, not {entry!r}", "bad_model")
        models[key] = int(version)
    answer = Api(read_login()).post("/api/v1/releases", {"name": name, "models": models})
    show_done(answer, as_json, f"release {answer['id']}")


@rollouts.command("list")
def list_rollouts(as_json: AsJson = False) -> None:
    """List rollouts."""
    answer = Api(read_login()).get("/api/v1/rollouts")
    show_table(
        answer["rollouts"],
        [
            ("rollout", "id"),
            ("release", "release"),
            ("state", "state"),
            ("stage", "stage"),
            ("because", "reasons"),
            ("since", lambda row: when(row.get("created"))),
        ],
        as_json,
        "no rollout yet: `muster rollouts create RELEASE`",
    )


@rollouts.command("create")
def create_rollout(
    release: str,
    tag: Annotated[list[str] | None, typer.Option(help="Only devices with this tag.")] = None,
    device: Annotated[list[str] | None, typer.Option(help="Only this device, by its id or name.")] = None,
    profile: Annotated[list[str] | None, typer.Option(help="Only devices of this profile.")] = None,
    policy: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="The policy as JSON.")] = None,
    dry_run: Annotated[bool, typer.Option(help="Only say who would get what, and who not and why.")] = False,
    as_json: AsJson = False,
) -> None:
    """Begin a rollout."""
    selector: dict[str, Any] = {}
    if tag:
        selector["tags"] = tag
    if device:
        selector["devices"] = device
    if profile:
        selector["profiles"] = profile
    body: dict[str, Any] = {"release": release, "selector": selector, "dry_run": dry_run}
    if policy is not None:
        try:
            body["policy"] = msgspec.json.decode(policy.read_bytes())
        except (OSError, msgspec.MsgspecError) as error:
            raise InvalidError(f"{policy} is not JSON: {error}", "bad_policy") from error
    answer = Api(read_login()).post("/api/v1/rollouts", body)
    if as_json or dry_run:
        show_json(answer)
    else:
        say(f"rollout {answer['id']}")
    for warning in answer["warnings"]:
        say(f"warning: {warning}")


@rollouts.command()
def show(rollout: str, as_json: AsJson = False) -> None:
    """Show one rollout: its stages, its gates, the reasons."""
    show_fields(Api(read_login()).get(at("/api/v1/rollouts/{}", rollout)), as_json)


@rollouts.command()
def executions(rollout: str, as_json: AsJson = False) -> None:
    """Show what each device of a rollout does."""
    api, found = Api(read_login()), []
    after: str | None = ""
    while after is not None:
        page = api.get(at("/api/v1/rollouts/{}/executions", rollout), after=after, limit=1000)
        found += page["executions"]
        after = page["next"]
    show_table(
        found,
        [("execution", "id"), ("device", "device"), ("component", "component"), ("state", "state"), ("fault", "fault")],
        as_json,
        "no device has begun yet",
    )


def _order(word: str, help_text: str) -> None:
    @rollouts.command(word, help=help_text)
    def order(rollout: str, as_json: AsJson = False) -> None:
        answer = Api(read_login()).post(at("/api/v1/rollouts/{}/" + word, rollout))
        show_done(answer, as_json, f"rollout {rollout}: {word}")


_order("pause", "Assign no further device; those that have begun finish.")
_order("resume", "Go on.")
_order("abort", "Stop, and withdraw what has not been committed.")
_order("rollback", "Bring every device of this rollout back to what it ran before.")
