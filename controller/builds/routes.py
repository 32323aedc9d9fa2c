"""Artifacts, models, builds and build jobs over HTTP.

Invariant: a tenant sees the artifacts that itself uploaded, even where another has the same bytes; a job is changed by
the builder that holds its lease only. `app.py` sets ``app.state``: database, settings, artifacts (ArtifactStore) and
builder_keys (key id to public key). Does not build anything: builders come and ask (`worker.py`).
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Mapping
from typing import Annotated, Any, Final, cast

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.responses import FileResponse
from sqlalchemy import Connection
from starlette.requests import ClientDisconnect

from controller.audit.store import record
from controller.builds import store
from controller.builds.artifacts import ArtifactStore
from controller.builds.documents import (
    ModelName,
    ProgressRequest,
    ResultRequest,
    Sha256,
    VersionRequest,
    build_as_json,
    job_as_json,
    version_as_json,
)
from controller.builds.results import take_candidate
from controller.database.connection import Database
from controller.database.http import database
from controller.errors import ConflictError, InvalidError, NotFoundError, TooLargeError
from controller.settings import Settings
from controller.tenants.access import Principal
from controller.tenants.guard import permit
from device_profiles import load as load_profiles
from wire.envelope import PublicKey

LEASE_SECONDS: Final = 60.0
MAX_LISTED: Final = 1000
STREAMED: Final = 2**63 - 1  # the application's bound is for bodies in memory; this one's is in the settings
FOREVER: Final = "private, max-age=31536000, immutable"  # the address is the content's hash

router = APIRouter(tags=["builds"])


def artifact_store(request: Request) -> ArtifactStore:
    """Return the application's artifact store."""
    return cast("ArtifactStore", request.app.state.artifacts)


def builder_keys(request: Request) -> Mapping[str, PublicKey]:
    """Return the keys that vouch for builds, by key id."""
    return cast("Mapping[str, PublicKey]", request.app.state.builder_keys)


Db = Annotated[Database, Depends(database)]
Artifacts = Annotated[ArtifactStore, Depends(artifact_store)]
Keys = Annotated[Mapping[str, PublicKey], Depends(builder_keys)]
ArtifactReader = Annotated[Principal, Depends(permit("artifacts.read"))]
ModelReader = Annotated[Principal, Depends(permit("models.read"))]
BuildReader = Annotated[Principal, Depends(permit("builds.read"))]
Builder = Annotated[Principal, Depends(permit("builds.make"))]
Hash = Annotated[Sha256, Path()]


@router.put("/api/v1/artifacts/{sha256}", status_code=201, max_body_size=STREAMED)
async def put_artifact(
    sha256: Hash,
    request: Request,
    response: Response,
    principal: Annotated[Principal, Depends(permit("artifacts.write"))],
    db: Db,
    artifacts: Artifacts,
) -> dict[str, Any]:
    """Store the body under its SHA-256. 200 instead of 201 when the tenant held it before; 413 when it is too large."""
    limit = _limit(request)
    if await asyncio.to_thread(_held, db, principal.tenant, sha256) is not None:
        response.status_code = 200
    try:
        size = await artifacts.put(sha256, request.stream(), limit)
    except ClientDisconnect as error:
        raise InvalidError("the upload broke off: send it again", "broken_off") from error
    if size == 0:
        raise InvalidError("an artifact cannot be empty", "empty")
    await asyncio.to_thread(_note_artifact, db, principal, sha256, size)
    return {"sha256": sha256, "size": size}


@router.post("/api/v1/artifacts", status_code=201, max_body_size=STREAMED)
async def post_artifact(
    request: Request, principal: Annotated[Principal, Depends(permit("artifacts.write"))], db: Db, artifacts: Artifacts
) -> dict[str, Any]:
    """Store the body and tell its SHA-256, for those who cannot hash before they send. 413 when it is too large."""
    limit = _limit(request)
    try:
        sha256, size = await artifacts.put_unnamed(request.stream(), limit)
    except ClientDisconnect as error:
        raise InvalidError("the upload broke off: send it again", "broken_off") from error
    if size == 0:
        raise InvalidError("an artifact cannot be empty", "empty")
    await asyncio.to_thread(_note_artifact, db, principal, sha256, size)
    return {"sha256": sha256, "size": size}


@router.api_route("/api/v1/artifacts/{sha256}", methods=["GET", "HEAD"])
def get_artifact(sha256: Hash, principal: ArtifactReader, db: Db, artifacts: Artifacts) -> Response:
    """Return an artifact, or the asked range of it. The ETag is the hash, so a download goes on safely."""
    path = artifacts.path(sha256)
    if _held(db, principal.tenant, sha256) is None or not path.is_file():
        raise NotFoundError(f"there is no artifact {sha256} in tenant {principal.tenant}", "no_artifact")
    headers = {"etag": f'"{sha256}"', "cache-control": FOREVER}
    return FileResponse(path, media_type="application/octet-stream", headers=headers)


def _limit(request: Request) -> int:
    """Return how many bytes an artifact may have. Raises TooLargeError when the request says that it has more."""
    limit = cast("Settings", request.app.state.settings).max_artifact_bytes
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise TooLargeError(f"an artifact has at most {limit} bytes here, this one has {declared}", "too_large")
    return limit


def _held(db: Database, tenant: str, sha256: str) -> int | None:
    with db.read() as connection:
        return store.artifact_size(connection, tenant, sha256)


def _note_artifact(db: Database, principal: Principal, sha256: str, size: int) -> None:
    now = time.time()
    with db.begin() as connection:
        if store.artifact_size(connection, principal.tenant, sha256) is None:
            store.add_artifact(connection, principal.tenant, sha256, size, now)
            _record(connection, principal, "artifacts.create", f"artifact:{sha256}", now, {"size": size})


@router.post("/api/v1/models/{name}/versions", status_code=201)
def create_version(
    name: Annotated[ModelName, Path()],
    asked: VersionRequest,
    principal: Annotated[Principal, Depends(permit("models.write"))],
    db: Db,
) -> dict[str, Any]:
    """Make a version of a model from two artifacts, and a job for each target."""
    now, jobs = time.time(), []
    with db.begin() as connection:
        for sha256 in (asked.source_sha256, asked.data_sha256):
            if store.artifact_size(connection, principal.tenant, sha256) is None:
                raise ConflictError(f"artifact {sha256} is not here: upload it first", "no_artifact")
        number = store.add_version(connection, principal.tenant, name, asked.source_sha256, asked.data_sha256, now)
        for target in asked.targets:
            jobs.append(secrets.token_hex(16))
            store.add_job(
                connection,
                job=jobs[-1],
                tenant=principal.tenant,
                model=name,
                number=number,
                target=store.Target(target.profile, target.arch, target.optimization.value),
                at=now,
            )
        body = asked.model_dump(mode="json") | {"jobs": jobs}
        _record(connection, principal, "models.create_version", f"model:{name}:{number}", now, body)
    return {"model": name, "version": number, "jobs": jobs}


@router.get("/api/v1/models")
def list_models(principal: ModelReader, db: Db) -> dict[str, Any]:
    """Return the tenant's models, by name."""
    with db.read() as connection:
        rows = store.list_models(connection, principal.tenant, MAX_LISTED)
    return {"models": [{"name": row.name, "versions": row.newest, "created": row.created} for row in rows]}


@router.get("/api/v1/models/{name}")
def get_model(name: Annotated[ModelName, Path()], principal: ModelReader, db: Db) -> dict[str, Any]:
    """Return a model with its versions, the newest first."""
    with db.read() as connection:
        rows = store.versions(connection, principal.tenant, name, MAX_LISTED)
        if not rows:
            raise NotFoundError(f"there is no model {name!r} in tenant {principal.tenant}", "no_model")
        found = [version_as_json(row, store.jobs_of(connection, principal.tenant, name, row.version)) for row in rows]
    return {"name": name, "versions": found}


@router.get("/api/v1/builds")
def list_builds(
    principal: BuildReader,
    db: Db,
    model: Annotated[ModelName | None, Query()] = None,
    version: Annotated[int | None, Query(ge=1)] = None,
    verdict: Annotated[str | None, Query(pattern="^(published|accepted|refused)$")] = None,
    job: Annotated[str | None, Query(max_length=32)] = None,
) -> dict[str, Any]:
    """Return builds with their figures and verdicts, the newest first."""
    with db.read() as connection:
        rows = store.builds_of(
            connection, principal.tenant, model=model, number=version, verdict=verdict, job=job, limit=MAX_LISTED
        )
    return {"builds": [build_as_json(row) for row in rows]}


@router.get("/api/v1/builds/{build}")
def get_build(build: Annotated[str, Path(max_length=34)], principal: BuildReader, db: Db) -> dict[str, Any]:
    """Return one build."""
    with db.read() as connection:
        row = store.build(connection, principal.tenant, build)
    if row is None:
        raise NotFoundError(f"there is no build {build!r} in tenant {principal.tenant}", "no_build")
    return build_as_json(row)


@router.get("/api/v1/build-jobs")
def list_jobs(
    principal: BuildReader,
    db: Db,
    model: Annotated[ModelName | None, Query()] = None,
    open_only: Annotated[bool, Query(alias="open")] = False,
) -> dict[str, Any]:
    """Return jobs, the newest first; with ``open`` only those that wait or run."""
    with db.read() as connection:
        rows = store.list_jobs(connection, principal.tenant, model=model, open_only=open_only, limit=MAX_LISTED)
    return {"jobs": [job_as_json(row) for row in rows]}


@router.get("/api/v1/profiles")
def list_profiles(principal: BuildReader) -> dict[str, Any]:
    """Return the board profiles that builds can be made for, with their machine names."""
    found = sorted(load_profiles().values(), key=lambda profile: profile.id)
    return {"profiles": [{"id": one.id, "title": one.title, "arch": list(one.arch)} for one in found]}


@router.get("/api/v1/build-jobs/{job}")
def get_job(job: Annotated[str, Path(max_length=32)], principal: BuildReader, db: Db) -> dict[str, Any]:
    """Return how far a job is."""
    with db.read() as connection:
        row = store.job(connection, principal.tenant, job)
    if row is None:
        raise _no_job(job)
    return job_as_json(row)


@router.post("/api/v1/build-jobs/lease")
def lease_job(principal: Builder, db: Db) -> dict[str, Any]:
    """Give the caller the next job for a minute, to be renewed by progress; ``job`` is null when nothing waits."""
    now = time.time()
    with db.begin() as connection:
        for job in store.fail_abandoned(connection, principal.tenant, now):
            _record(connection, principal, "build_jobs.fail", f"build-job:{job}", now, {"reason": "abandoned"})
        row = store.lease(connection, principal.tenant, now, LEASE_SECONDS)
        if row is None:
            return {"job": None}
        source = store.version(connection, principal.tenant, row.model, row.version)
    assert source is not None, "a job is made together with its version"
    files = {"source_sha256": source.source_sha256, "data_sha256": source.data_sha256}
    return {"job": job_as_json(row) | files | {"tenant": principal.tenant, "lease_seconds": LEASE_SECONDS}}


@router.post("/api/v1/build-jobs/{job}/progress")
def renew_job(
    job: Annotated[str, Path(max_length=32)], said: ProgressRequest, principal: Builder, db: Db
) -> dict[str, Any]:
    """Note progress and renew the lease. 409 when another attempt holds the job: stop working on it."""
    until = time.time() + LEASE_SECONDS
    with db.begin() as connection:
        if not store.renew(connection, principal.tenant, job, said.attempt, said.progress, until):
            raise _not_held(job, said.attempt)
    return {"lease_seconds": LEASE_SECONDS}


@router.post("/api/v1/build-jobs/{job}/result")
def finish_job(
    job: Annotated[str, Path(max_length=32)],
    said: ResultRequest,
    principal: Builder,
    db: Db,
    artifacts: Artifacts,
    keys: Keys,
) -> dict[str, Any]:
    """Take how an attempt ended. The same result again (its answer was lost) is answered the same way."""
    now = time.time()
    with db.begin() as connection:
        row = store.job(connection, principal.tenant, job)
        if row is None:
            raise _no_job(job)
        if row.state == "done" and row.attempt == said.attempt and said.candidates:
            kept = store.builds_of(connection, principal.tenant, job=job, limit=MAX_LISTED)
            return {"state": "done", "builds": sorted(build.id for build in kept)}
        if not said.candidates:
            error = said.error or "the builder gave no reason"
            state = store.fail(
                *(connection, principal.tenant, job, said.attempt, error),
                permanent=said.permanent,
                stopped=said.stopped,
                now=now,
            )
            if state is None:
                raise _not_held(job, said.attempt)
            body: dict[str, Any] = {"state": state, "error": error}
            _record(connection, principal, "build_jobs.fail", f"build-job:{job}", now, body)
            return {"state": state, "builds": []}
        if sum(candidate.verdict == "published" for candidate in said.candidates) != 1:
            raise InvalidError("a finished job publishes exactly one build", "bad_result")
        if not store.finish(connection, principal.tenant, job, said.attempt, now):
            raise _not_held(job, said.attempt)
        made = [take_candidate(connection, row, one, artifacts, keys, now) for one in said.candidates]
        verdicts = {build: one.verdict for build, one in zip(made, said.candidates, strict=True)}
        _record(connection, principal, "build_jobs.finish", f"build-job:{job}", now, {"builds": verdicts})
    return {"state": "done", "builds": sorted(made)}


def _record(
    connection: Connection, principal: Principal, action: str, thing: str, at: float, body: Mapping[str, Any]
) -> None:
    record(connection, tenant=principal.tenant, actor=principal.actor, action=action, thing=thing, at=at, body=body)


def _no_job(job: str) -> NotFoundError:
    return NotFoundError(f"there is no build job {job!r}", "no_job")


def _not_held(job: str, attempt: int) -> ConflictError:
    return ConflictError(f"attempt {attempt} does not hold build job {job!r} any more: drop it", "not_held")
