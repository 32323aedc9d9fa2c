"""`muster tokens`, `muster login`, `muster audit`: who may come in, and what they did."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from controller.audit.exported import KeptHead, check
from controller.audit.seal import Intact
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
def joins(limit: Limit = 100, as_json: AsJson = False) -> None:
    """List join tokens with which a device may still join, without their secrets."""
    answer = Api(read_login()).get("/api/v1/join-tokens", limit=limit)
    show_table(
        answer["join_tokens"],
        [
            ("token", "id"),
            ("uses left", "uses_left"),
            ("made", lambda row: when(row["created"])),
            ("expires", lambda row: when(row["expires"])),
            ("tags", lambda row: " ".join(row["tags"])),
        ],
        as_json,
        "no join token",
    )


@tokens.command()
def withdraw(token: str, as_json: AsJson = False) -> None:
    """Let no further device join with a join token; ``muster tokens joins`` tells their ids."""
    Api(read_login()).delete(at("/api/v1/join-tokens/{}", token))
    show_done({"id": token, "withdrawn": True}, as_json, f"nobody else joins with {token}")


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
def verify(
    file: Annotated[
        Path | None, typer.Option(help="Check a file from `muster audit export`, and ask no controller.")
    ] = None,
    head: Annotated[
        Path | None,
        typer.Option(help="A head that was kept elsewhere (`muster audit head`): the trail must go on from it."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check that no row was changed, taken out, moved or cut off."""
    if file is None and head is None:
        answer = Api(read_login()).get("/api/v1/audit/verify")
    elif file is None:
        with tempfile.TemporaryDirectory() as directory:
            fresh = Path(directory) / "trail.jsonl"
            Api(read_login()).download("/api/v1/audit/export", fresh)
            answer = _checked(fresh, head)
    else:
        answer = _checked(file, head)
    if as_json:
        show_json(answer)
    if not answer["intact"]:
        raise ConflictError(f"the audit trail was changed: {answer.get('reason')}", "audit_broken")
    if not as_json:
        say(f"the audit trail is whole, up to row {answer['number']}")


@audit.command("head")
def show_head(
    to: Annotated[Path | None, typer.Option(help="Write it here instead of printing it.")] = None,
    as_json: AsJson = False,
) -> None:
    """Get the signed head of the trail. Keep it somewhere else: with it, rewriting the trail is found."""
    answer = Api(read_login()).get("/api/v1/audit/head")
    kept = {"head": answer["head"], "public_key": answer["public_key"]}
    if to is not None:
        try:
            write_private_bytes(to, msgspec.json.encode(kept) + b"\n")
        except OSError as error:
            raise InvalidError(f"{to}: {error}", "unwritable") from error
        say(f"the head at row {answer['number']} is in {to}")
    elif as_json:
        show_json(answer)
    else:
        show_json(kept)


@audit.command("export")
def export_trail(file: Path, as_json: AsJson = False) -> None:
    """Write the whole trail with its signed heads into a file, one JSON object a line."""
    Api(read_login()).download("/api/v1/audit/export", file)
    show_done({"file": str(file)}, as_json, f"written to {file}")


def _checked(file: Path, head: Path | None) -> dict[str, Any]:
    try:
        kept = None if head is None else msgspec.json.decode(head.read_bytes(), type=KeptHead)
        with file.open(encoding="utf-8") as lines:
            verdict = check(lines, kept)
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidError(f"{file if head is None else f'{file} or {head}'}: {error}", "unreadable") from error
    except msgspec.MsgspecError as error:
        raise InvalidError(f"{head} is no head: `muster audit head` writes one: {error}", "bad_head") from error
    if isinstance(verdict, Intact):
        return {"intact": True, "number": verdict.number, "hash": verdict.hash}
    return {"intact": False, "number": verdict.number, "reason": verdict.reason}
