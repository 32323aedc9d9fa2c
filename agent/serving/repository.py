"""A directory of models served on its own, without an agent: NAME/VERSION/model.onnx.

Invariant: the highest version of each model is served; a model that cannot be loaded is listed with its reason while
the others serve. A file is tried in a child first: one that crashes the engine, eats the memory or never ends takes
nothing with it. Reads the directory when asked, never behind anyone's back.
"""

from __future__ import annotations

import asyncio
import re
import tomllib
from pathlib import Path
from typing import Annotated, Final

import msgspec
import structlog
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from agent.errors import AgentError, DeviceError, ServingError, UsageError
from agent.serving.build import Build
from agent.serving.models import Models
from agent.serving.refusal import RefusedError
from agent.trial_child import run_trial

log = structlog.get_logger()

MODEL_FILE: Final = "model.onnx"
CONFIG_FILE: Final = "config.toml"
MAX_MODELS: Final = 64
TRIAL_SECONDS: Final = 120.0
TRIAL_MEMORY: Final = 512 * 1024**2  # bytes, beyond what Python and the engine hold, and some copies of the weights
TRIAL_COPIES: Final = 8
_NAME: Final = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a person may choose for one model. max_batch_size: rows that may be joined, by default found out."""

    max_batch_size: Annotated[int, Meta(ge=1, le=4096)] | None = None
    max_queue_delay_ms: Annotated[float, Meta(ge=0, le=10_000)] = 0.0
    threads: Annotated[int, Meta(ge=1, le=256)] = 1


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One model of the index, as the protocol's repository extension lists it."""

    name: str
    version: str = ""
    state: str
    reason: str = ""


class Repository:
    """The models below ``directory``, loaded into ``models``."""

    def __init__(self, directory: Path, models: Models) -> None:
        self.routes = [
            Route("/v2/repository/index", self._index, methods=["POST"]),
            Route("/v2/repository/models/{name}/load", self._load, methods=["POST"]),
            Route("/v2/repository/models/{name}/unload", self._unload, methods=["POST"]),
        ]
        self._directory = directory
        self._models = models
        self._entries: dict[str, Entry] = {}
        self._loads = 0

    async def begin(self) -> None:
        """Load every model. Raises DeviceError when the directory is missing, or no model at all can be served."""
        names = names_in(self._directory)
        if not names:
            raise DeviceError(
                f"{self._directory} holds no model; put one at {self._directory}/NAME/1/{MODEL_FILE}", "no_models"
            )
        for name in names:
            try:
                await self.load(name)
            except AgentError as error:
                log.warning("model left out", model=name, reason=str(error))
        if not self._models.names():
            reasons = "; ".join(f"{entry.name}: {entry.reason}" for entry in self._entries.values())
            raise DeviceError(f"no model of {self._directory} can be served: {reasons}", "no_models")

    async def load(self, name: str) -> None:
        """Load the newest version of ``name`` and switch to it. Raises DeviceError, ServingError or UsageError."""
        try:
            self._loads += 1
            build = read_entry(self._directory, name, self._loads)
            await _try(build.file)
            await self._models.serve(build)
        except AgentError as error:
            active = self._models.active(name)
            if active is None:
                self._entries[name] = Entry(name=name, state="UNAVAILABLE", reason=str(error))
            else:
                self._entries[name] = Entry(
                    name=name, version=active.build.version, state="READY", reason=f"the last load failed: {error}"
                )
            raise
        self._entries[name] = Entry(name=name, version=build.version, state="READY")

    async def _index(self, _: Request) -> Response:
        return _json([self._entries[name] for name in sorted(self._entries)])

    async def _load(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in names_in(self._directory):
            raise RefusedError(404, f"{self._directory} holds no model {name[:64]!r}", "unknown_model")
        try:
            await self.load(name)
        except RefusedError:
            raise
        except AgentError as error:
            raise RefusedError(422, str(error), error.code) from error
        return _json({})

    async def _unload(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self._entries:
            raise RefusedError(404, f"no model {name[:64]!r} is listed", "unknown_model")
        await self._models.remove(name)
        self._entries[name] = Entry(name=name, state="UNAVAILABLE", reason="unloaded")
        return _json({})


async def _try(file: Path) -> None:
    try:
        size = (await asyncio.to_thread(file.stat)).st_size
    except OSError as error:
        raise DeviceError(f"{file}: {error.strerror}; put the model there again", "no_models") from error
    result = await run_trial(file, TRIAL_MEMORY + TRIAL_COPIES * size, TRIAL_SECONDS)
    if not result.passed:
        raise ServingError(result.reason, "bad_model")


def names_in(directory: Path) -> list[str]:
    """Return the names of the models below ``directory``, at most MAX_MODELS. Raises DeviceError."""
    try:
        names = sorted(entry.name for entry in directory.iterdir() if entry.is_dir() and _NAME.match(entry.name))
    except OSError as error:
        raise DeviceError(f"{directory}: {error.strerror}; give a directory of models", "no_models") from error
    return [name for name in names if _versions(directory / name)][:MAX_MODELS]


def read_entry(directory: Path, name: str, load: int) -> Build:
    """Return the newest version of ``name``; ``load`` makes its build's name unique. Raises DeviceError, UsageError."""
    versions = _versions(directory / name)
    if not versions:
        raise DeviceError(f"{directory / name} holds no VERSION/{MODEL_FILE}", "no_models")
    config = _config(directory / name / CONFIG_FILE)
    return Build(
        model=name,
        version=str(versions[-1]),
        build=f"{name}-{versions[-1]}-{load}",
        file=directory / name / str(versions[-1]) / MODEL_FILE,
        threads=config.threads,
        max_batch=config.max_batch_size,
        max_delay=config.max_queue_delay_ms / 1000,
    )


def _versions(model: Path) -> list[int]:
    try:
        found = [entry.name for entry in model.iterdir() if (entry / MODEL_FILE).is_file()]
    except OSError as error:
        raise DeviceError(f"{model}: {error.strerror}", "no_models") from error
    return sorted(int(name) for name in found if name.isdecimal() and name == str(int(name)))


def _config(file: Path) -> Config:
    try:
        return msgspec.convert(tomllib.loads(file.read_text()), Config)
    except FileNotFoundError:
        return Config()
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise UsageError(f"{file}: {error}", "bad_settings") from error


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
