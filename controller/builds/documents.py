"""What the routes of models, builds and build jobs take, and what rows look like to a reader.

Invariant: everything that comes in is bounded here, by pydantic, before a function sees it. Does not read or write
anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from controller.builds.recipe import Optimization
from controller.builds.store import AnyRow

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
ModelName = Annotated[str, Field(pattern="^[a-z0-9][a-z0-9._-]{0,62}$")]
Word = Annotated[str, Field(pattern="^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
Sentence = Annotated[str, Field(max_length=4096)]


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TargetDocument(_Document):
    """For what to build. arch: machine names as `uname -m` gives them, one or several, none for any."""

    profile: Word
    arch: Annotated[tuple[Word, ...], Field(max_length=8)] = ()
    optimization: Optimization = Optimization.BALANCED

    @field_validator("arch", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return ((value,) if value else ()) if isinstance(value, str) else value


class VersionRequest(_Document):
    """A new version of a model: two artifacts that were uploaded before, and what to build."""

    source_sha256: Sha256
    data_sha256: Sha256
    targets: Annotated[tuple[TargetDocument, ...], Field(min_length=1, max_length=16)]


class ProgressRequest(_Document):
    """What the builder does now."""

    attempt: Annotated[int, Field(ge=1)]
    progress: Annotated[str, Field(max_length=200)]


class CandidateDocument(_Document):
    """One build that was tried. For "published" the manifest is what counts, and the rest is read from there."""

    precision: Annotated[str, Field(pattern="^[a-z0-9-]{1,16}$")]
    verdict: Literal["published", "accepted", "refused"]
    target: Annotated[dict[str, Any], Field(max_length=8)]
    figures: Annotated[dict[str, Any], Field(max_length=32)]
    reasons: Annotated[tuple[Sentence, ...], Field(max_length=32)]
    manifest_sha256: Sha256 | None = None


class ResultRequest(_Document):
    """How an attempt ended: with candidates, or with an error.

    permanent: another try would fail the same way. stopped: nothing failed, the builder was asked to stop.
    """

    attempt: Annotated[int, Field(ge=1)]
    candidates: Annotated[tuple[CandidateDocument, ...], Field(max_length=16)] = ()
    error: Annotated[str, Field(max_length=4000)] = ""
    permanent: bool = False
    stopped: bool = False


def job_as_json(row: AnyRow) -> dict[str, Any]:
    """Return a row of build_jobs for a reader."""
    shown = ("id", "model", "version", "target", "state", "attempt", "progress", "error", "created", "finished")
    return {name: getattr(row, name) for name in shown}


def build_as_json(row: AnyRow) -> dict[str, Any]:
    """Return a row of builds for a reader."""
    shown = (
        *("id", "model", "version", "job", "precision", "target", "figures", "verdict", "reasons"),
        *("manifest_sha256", "manifest_size", "created"),
    )
    return {name: getattr(row, name) for name in shown}


def version_as_json(row: AnyRow, jobs: Sequence[AnyRow]) -> dict[str, Any]:
    """Return a row of model_versions with the ids of its jobs."""
    return {
        "version": row.version,
        "source_sha256": row.source_sha256,
        "data_sha256": row.data_sha256,
        "created": row.created,
        "jobs": [job.id for job in jobs],
    }
