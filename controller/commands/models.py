"""`muster models` and `muster builds`: what may run, in which builds, and why those."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from controller.commands.client import Api, at, read_login
from controller.commands.options import AsJson
from controller.commands.output import say, show_done, show_fields, show_table, when
from controller.errors import ConflictError, InvalidError, UnavailableError

models = typer.Typer(no_args_is_help=True, help="Models and their versions.")
builds = typer.Typer(no_args_is_help=True, help="Builds: what was made, measured, accepted or refused.")


@models.command("list")
def list_models(as_json: AsJson = False) -> None:
    """List models."""
    answer = Api(read_login()).get("/api/v1/models")
    show_table(
        answer["models"],
        [("model", "name"), ("versions", "versions"), ("since", lambda row: when(row.get("created")))],
        as_json,
        "no model yet: upload one with `muster models push`",
    )


@models.command()
def show(name: str, as_json: AsJson = False) -> None:
    """Show one model with its versions."""
    show_fields(Api(read_login()).get(at("/api/v1/models/{}", name)), as_json)


@models.command()
def push(
    name: str,
    onnx: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="The model as ONNX.")],
    data: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="npz: calibration, held-out, golden rows.")],
    profile: Annotated[str, typer.Option(help="The profile to build for.")] = "generic-x86_64",
    arch: Annotated[str, typer.Option(help="The machine name to build for.")] = "x86_64",
    optimization: Annotated[str, typer.Option(help="none, balanced or aggressive")] = "balanced",
    wait: Annotated[bool, typer.Option(help="Wait until the builds are made.")] = True,
    as_json: AsJson = False,
) -> None:
    """Upload a model as a new version and have it built."""
    api = Api(read_login())
    target = {"profile": profile, "arch": arch, "optimization": optimization}
    version = push_version(api, name, onnx, data, [target])
    if wait:
        for job in version["jobs"]:
            wait_for_job(api, job, say)
    show_done(version, as_json, f"{name} version {version['version']}")


@builds.command("list")
def list_builds(
    model: Annotated[str | None, typer.Option(help="Only this model.")] = None, as_json: AsJson = False
) -> None:
    """List builds with their verdicts and the reasons."""
    answer = Api(read_login()).get("/api/v1/builds", model=model)
    show_table(
        answer["builds"],
        [
            ("build", "id"),
            ("model", lambda row: f"{row['model']} {row['version']}"),
            ("precision", "precision"),
            ("size", lambda row: _kib(row["figures"].get("size_bytes"))),
            ("p50", lambda row: _ms(row["figures"].get("p50_ms"))),
            ("accuracy", accuracy),
            ("verdict", "verdict"),
            ("because", "reasons"),
        ],
        as_json,
        "no build yet: upload a model with `muster models push`",
    )


@builds.command("show")
def show_build(build: str, as_json: AsJson = False) -> None:
    """Show one build with its figures and reasons."""
    show_fields(Api(read_login()).get(at("/api/v1/builds/{}", build)), as_json)


def push_version(api: Api, name: str, onnx: Path, data: Path, targets: list[dict[str, str]]) -> dict[str, Any]:
    """Upload two files under their hashes and make a model version of them; return what the API answers."""
    hashes: dict[str, str] = {}
    for key, file in (("source_sha256", onnx), ("data_sha256", data)):
        try:
            if file.stat().st_size == 0:
                raise InvalidError(f"{file} is empty", "empty_file")
            with file.open("rb") as stream:
                hashes[key] = hashlib.file_digest(stream, "sha256").hexdigest()
            if not api.exists(f"/api/v1/artifacts/{hashes[key]}"):
                api.upload(f"/api/v1/artifacts/{hashes[key]}", file)
        except OSError as error:
            raise InvalidError(f"{file}: {error}", "bad_file") from error
    answer: dict[str, Any] = api.post(at("/api/v1/models/{}/versions", name), hashes | {"targets": targets})
    return answer


def wait_for_job(api: Api, job: str, say: Callable[[str], object], deadline: float = 600.0) -> None:
    """Wait until a build job is done, telling its progress. Raises ConflictError when it failed."""
    until, told = time.monotonic() + deadline, ""
    while time.monotonic() < until:
        state = api.get(f"/api/v1/build-jobs/{job}")
        if state["progress"] and state["progress"] != told:
            told = state["progress"]
            say(told)
        if state["state"] == "done":
            return
        if state["state"] == "failed":
            raise ConflictError(f"the build failed: {state['error']}", "build_failed")
        time.sleep(0.2)
    raise UnavailableError(
        f"the build was not done after {deadline:.0f} s and goes on; is the builder running? `muster builds list` "
        "shows what comes of it",
        "build_slow",
    )


def accuracy(row: Mapping[str, Any]) -> str:
    """Return a build's accuracy with its interval."""
    figures = row["figures"]
    if figures.get("accuracy") is None:
        return "-"
    return f"{figures['accuracy']:.4f} ({figures['accuracy_low']:.3f} to {figures['accuracy_high']:.3f})"


def _kib(size: float | None) -> str:
    return "-" if size is None else f"{size / 1024:.0f} KiB"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value * 1000:.1f} µs" if value < 1 else f"{value:.2f} ms"
