"""`muster tokens`, `muster login`, `muster audit`: who may come in, and what they did."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from controller.commands.client import Api, at, read_login
from controller.commands.options import AsJson, Limit
from controller.commands.output import say, show_done, show_json, show_table, show_text, when
from controller.errors import ConflictError, InvalidError
from controller.installation import write_private_bytes

tokens = typer.Typer(no_args_is_help=True, help="Join tokens for devices, API tokens for people and programs.")
audit = typer.Typer(no_args_is_help=True, help="The audit trail.")


@tokens.command()
def join(
    uses: Annotated[int, typer.Option(min=1, max=10_000, help="How many devices may join with it.")] = 1,
    seconds: Annotated[float, typer.Option(min=1, help="How long it holds.")] = 3600.0,
    tag: Annotated[list[str] | None, typer.Option(help="Given to every device that joins with it.")] = None,
    file: Annotated[
        Path | None, typer.Option(help="Write it here, readable only by you, instead of printing it.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a join token. It is shown this once."""
    answer = Api(read_login()).post("/api/v1/join-tokens", {"uses": uses, "seconds": seconds, "tags": tag or []})
    if file is not None:
        try:
            write_private_bytes(file, answer["token"].encode() + b"\n")
        except OSError as error:
            raise InvalidError(f"{file}: {error}; the token is lost, make another", "unwritable") from error
        say(f"written to {file}")
    elif as_json:
        show_json(answer)
    else:
        show_text(answer["token"])


@tokens.command()
def create(
    name: str,
    role: Annotated[str, typer.Option(help="admin, operator or viewer")] = "viewer",
    seconds: Annotated[float | None, typer.Option(min=1, help="How long it holds; for ever when left out.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make an API token. It is shown this once."""
    body = {"name": name, "role": role, "seconds": seconds}
    answer = Api(read_login()).post("/api/v1/tokens", body)
    if as_json:
        show_json(answer)
    else:
        show_text(answer["token"])


@tokens.command()
def access(as_json: AsJson = False) -> None:
    """Get an access token for your API token: good for ten minutes, for a program that should not have yours."""
    answer = Api(read_login()).post("/api/v1/access-tokens")
    if as_json:
        show_json(answer)
    else:
        show_text(answer["access_token"])


@tokens.command("list")
def list_tokens(as_json: AsJson = False) -> None:
    """List API tokens, without their secrets."""
    answer = Api(read_login()).get("/api/v1/tokens")
    show_table(
        answer["tokens"],
        [
            ("token", "id"),
            ("name", "name"),
            ("role", "role"),
            ("made", lambda row: when(row["created"])),
            ("expires", lambda row: when(row["expires"])),
            ("revoked", lambda row: when(row["revoked"])),
        ],
        as_json,
        "no token",
    )


@tokens.command()
def revoke(token: str, as_json: AsJson = False) -> None:
    """Make an API token hold no more."""
    Api(read_login()).delete(at("/api/v1/tokens/{}", token))
    show_done({"id": token, "revoked": True}, as_json, f"{token} is revoked")


@audit.command("list")
def list_audit(limit: Limit = 50, as_json: AsJson = False) -> None:
    """List what was done, the newest first."""
    answer = Api(read_login()).get("/api/v1/audit", limit=limit)
    show_table(
        answer["rows"],
        [
            ("when", lambda row: when(row["at"])),
            ("who", "actor"),
            ("did", "action"),
            ("to", "thing"),
            ("why", "reason"),
        ],
        as_json,
        "nothing yet",
    )


@audit.command()
def verify(as_json: AsJson = False) -> None:
    """Check that no row was changed or taken out."""
    answer = Api(read_login()).get("/api/v1/audit/verify")
    if as_json:
        show_json(answer)
    if not answer["intact"]:
        raise ConflictError(f"the audit trail was changed: {answer.get('reason')}", "audit_broken")
    if not as_json:
        say("the audit trail is whole")
