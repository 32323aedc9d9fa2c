"""`muster infer`: one request through the gateway."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from controller.commands.client import Gateway, read_login
from controller.commands.output import say, show_json
from controller.errors import InvalidError

MAX_BYTES = 64 * 1024**2


def infer(
    model: str,
    file: Annotated[str, typer.Option(help="The V2 request as JSON; - for standard input.")] = "-",
    deadline_ms: Annotated[int | None, typer.Option(min=1, help="How long the answer is of use.")] = None,
    _: Annotated[bool, typer.Option("--json", help="Print JSON, as this command does anyhow.")] = False,
) -> None:
    """Send one inference request (Open Inference Protocol V2, JSON) and print the answer."""
    try:
        with nullcontext(sys.stdin.buffer) if file == "-" else Path(file).open("rb") as stream:
            body = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise InvalidError(f"{file}: {error}", "bad_file") from error
    if len(body) > MAX_BYTES:
        raise InvalidError(f"a request of more than {MAX_BYTES} bytes is not sent", "too_large")
    answer, headers = Gateway(read_login()).infer(model, body, deadline_ms)
    show_json(answer)
    say(f"answered by {headers.get('Muster-Device', '?')}, {headers.get('Muster-Attempts', '?')} attempt(s)")
