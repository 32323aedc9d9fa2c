"""Statements on artifacts, models, model_versions, build_jobs and builds.

Invariant: a job is worked on by the holder of its newest attempt alone: every change by a builder names the attempt,
and one that is no longer the newest changes nothing. A job whose attempt fails or goes silent is failed for good when
it was not among the first ``MAX_ATTEMPTS`` - 1; stopping a builder fails nothing. Each function takes the caller's
connection; none begins a transaction.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Row, and_, func, insert, or_, select, update
from sqlalchemy.dialects.sqlite import insert as insert_or

from controller.database.tables import artifacts, build_jobs, builds, model_versions, models

MAX_ATTEMPTS: Final = 3
RETRY_SECONDS: Final = 5.0  # before the second try; three times as long before the third
PROGRESS_LENGTH: Final = 200
ERROR_LENGTH: Final = 4000

AnyRow = Row[*tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Target:
    """For what a build is made. arch: machine names, empty for any; optimization: see `recipe.py`."""

    profile: str
    arch: tuple[str, ...]
    optimization: str

    def as_json(self) -> dict[str, Any]:
        """Return the column's value."""
        return {"profile": self.profile, "arch": list(self.arch), "optimization": self.optimization}


def add_artifact(connection: Connection, tenant: str, sha256: str, size: int, at: float) -> None:
    """Note that ``tenant`` holds an artifact; again is no error."""
    connection.execute(
        insert_or(artifacts)
        .values(tenant=tenant, sha256=sha256, size=size, created=at)
        .on_conflict_do_nothing(index_elements=["tenant", "sha256"])
    )


def artifact_size(connection: Connection, tenant: str, sha256: str) -> int | None:
    """Return the size in bytes of an artifact that ``tenant`` holds, else None."""
    statement = select(artifacts.c.size).where(artifacts.c.tenant == tenant, artifacts.c.sha256 == sha256)
    found: int | None = connection.execute(statement).scalar_one_or_none()
    return found


def add_version(
    connection: Connection, tenant: str, model: str, source_sha256: str, data_sha256: str, at: float
) -> int:
    """Store a new version of a model (and the model, if it is new); return its number, 1 and up."""
    connection.execute(
        insert_or(models)
        .values(tenant=tenant, name=model, created=at)
        .on_conflict_do_nothing(index_elements=["tenant", "name"])
    )
    of_model = and_(model_versions.c.tenant == tenant, model_versions.c.model == model)
    newest = connection.execute(select(func.max(model_versions.c.version)).where(of_model)).scalar_one_or_none()
    version = (newest or 0) + 1
    connection.execute(
        insert(model_versions).values(
            tenant=tenant,
            model=model,
            version=version,
            source_sha256=source_sha256,
            data_sha256=data_sha256,
            created=at,
        )
    )
    return version


def list_models(connection: Connection, tenant: str, limit: int) -> Sequence[AnyRow]:
    """Return name, created and newest version of a tenant's models, by name."""
    same = and_(model_versions.c.tenant == models.c.tenant, model_versions.c.model == models.c.name)
    statement = (
        select(models.c.name, models.c.created, func.max(model_versions.c.version).label("newest"))
        .join(model_versions, same)
        .where(models.c.tenant == tenant)
        .group_by(models.c.name, models.c.created)
        .order_by(models.c.name)
        .limit(limit)
    )
    return connection.execute(statement).all()


def versions(connection: Connection, tenant: str, model: str, limit: int) -> Sequence[AnyRow]:
    """Return the versions of a model, the newest first; none when there is no such model."""
    statement = (
        select(model_versions)
        .where(model_versions.c.tenant == tenant, model_versions.c.model == model)
        .order_by(model_versions.c.version.desc())
        .limit(limit)
    )
    return connection.execute(statement).all()


def version(connection: Connection, tenant: str, model: str, number: int) -> AnyRow | None:
    """Return one version of a model."""
    statement = select(model_versions).where(
        model_versions.c.tenant == tenant, model_versions.c.model == model, model_versions.c.version == number
    )
    return connection.execute(statement).one_or_none()


def add_job(
    connection: Connection, *, job: str, tenant: str, model: str, number: int, target: Target, at: float
) -> None:
    """Store a job that waits for a builder."""
    connection.execute(
        insert(build_jobs).values(
            id=job, tenant=tenant, model=model, version=number, target=target.as_json(), state="waiting", created=at
        )
    )


def job(connection: Connection, tenant: str, identifier: str) -> AnyRow | None:
    """Return a job of ``tenant``."""
    statement = select(build_jobs).where(build_jobs.c.tenant == tenant, build_jobs.c.id == identifier)
    return connection.execute(statement).one_or_none()


def jobs_of(connection: Connection, tenant: str, model: str, number: int) -> Sequence[AnyRow]:
    """Return the jobs of one version, the oldest first."""
    statement = (
        select(build_jobs)
        .where(build_jobs.c.tenant == tenant, build_jobs.c.model == model, build_jobs.c.version == number)
        .order_by(build_jobs.c.created, build_jobs.c.id)
    )
    return connection.execute(statement).all()


def list_jobs(
    connection: Connection, tenant: str, *, model: str | None, open_only: bool, limit: int
) -> Sequence[AnyRow]:
    """Return jobs, the newest first; ``open_only``: those that wait or run."""
    statement = select(build_jobs).where(build_jobs.c.tenant == tenant)
    if model is not None:
        statement = statement.where(build_jobs.c.model == model)
    if open_only:
        statement = statement.where(build_jobs.c.state.in_(("waiting", "running")))
    return connection.execute(statement.order_by(build_jobs.c.created.desc(), build_jobs.c.id).limit(limit)).all()


def failed_jobs(connection: Connection, tenant: str, since: float, limit: int) -> Sequence[AnyRow]:
    """Return jobs that failed for good since then, and whose version has got no build for their target since."""
    later = build_jobs.alias()
    mended = select(later.c.id).where(
        later.c.tenant == build_jobs.c.tenant,
        later.c.model == build_jobs.c.model,
        later.c.target == build_jobs.c.target,
        later.c.state == "done",
        later.c.created > build_jobs.c.created,
    )
    failed = and_(build_jobs.c.tenant == tenant, build_jobs.c.state == "failed", build_jobs.c.finished >= since)
    statement = select(build_jobs).where(failed, ~mended.exists()).order_by(build_jobs.c.finished.desc())
    return connection.execute(statement.limit(limit)).all()


def fail_abandoned(connection: Connection, tenant: str, now: float) -> Sequence[str]:
    """Fail for good the jobs whose last allowed attempt ran out of its lease; return their ids."""
    statement = (
        update(build_jobs)
        .where(
            build_jobs.c.tenant == tenant,
            build_jobs.c.state == "running",
            build_jobs.c.lease_until <= now,
            build_jobs.c.attempt >= MAX_ATTEMPTS,
        )
        .values(
            state="failed",
            error=f"the builder went silent in each of {MAX_ATTEMPTS} attempts; its log says more",
            lease_until=None,
            finished=now,
        )
        .returning(build_jobs.c.id)
    )
    return [row.id for row in connection.execute(statement)]


def lease(connection: Connection, tenant: str, now: float, seconds: float) -> AnyRow | None:
    """Give out the oldest job that waits or whose lease ran out, as a new attempt; None when there is none."""
    ready = or_(
        and_(build_jobs.c.state == "waiting", func.coalesce(build_jobs.c.lease_until, 0.0) <= now),
        and_(
            build_jobs.c.state == "running",
            build_jobs.c.lease_until <= now,
            build_jobs.c.attempt < MAX_ATTEMPTS,
        ),
    )
    statement = (
        select(build_jobs.c.id)
        .where(build_jobs.c.tenant == tenant, ready)
        .order_by(build_jobs.c.created, build_jobs.c.id)
        .limit(1)
    )
    identifier = connection.execute(statement).scalar_one_or_none()
    if identifier is None:
        return None
    connection.execute(
        update(build_jobs)
        .where(build_jobs.c.id == identifier)
        .values(
            state="running", attempt=build_jobs.c.attempt + 1, lease_until=now + seconds, progress="a builder took it"
        )
    )
    return connection.execute(select(build_jobs).where(build_jobs.c.id == identifier)).one()


def renew(connection: Connection, tenant: str, identifier: str, attempt: int, progress: str, until: float) -> bool:
    """Note progress and lengthen the lease. False when this attempt no longer holds the job."""
    statement = _held(tenant, identifier, attempt).values(progress=progress[:PROGRESS_LENGTH], lease_until=until)
    return connection.execute(statement).rowcount == 1


def finish(connection: Connection, tenant: str, identifier: str, attempt: int, now: float) -> bool:
    """Note that a job is done. False when this attempt no longer holds it."""
    statement = _held(tenant, identifier, attempt).values(
        state="done", progress="done", error="", lease_until=None, finished=now
    )
    return connection.execute(statement).rowcount == 1


def fail(
    connection: Connection,
    tenant: str,
    identifier: str,
    attempt: int,
    error: str,
    *,
    permanent: bool,
    stopped: bool = False,
    now: float,
) -> str | None:
    """Note that an attempt failed; return the job's state after it ("waiting" or "failed"), None as above.

    ``stopped``: it did not fail, its builder was stopped; any builder may go on at once, however often that was.
    """
    final = permanent or (attempt >= MAX_ATTEMPTS and not stopped)
    values: dict[str, Any] = {"error": error[:ERROR_LENGTH], "progress": "failed"}
    if final:
        values |= {"state": "failed", "lease_until": None, "finished": now}
    else:
        pause = 0.0 if stopped else RETRY_SECONDS * 3 ** (attempt - 1)
        values |= {"state": "waiting", "lease_until": now + pause}
    if connection.execute(_held(tenant, identifier, attempt).values(**values)).rowcount != 1:
        return None
    return str(values["state"])


def _held(tenant: str, identifier: str, attempt: int) -> Any:
    return update(build_jobs).where(
        build_jobs.c.tenant == tenant,
        build_jobs.c.id == identifier,
        build_jobs.c.attempt == attempt,
        build_jobs.c.state == "running",
    )


def add_build(connection: Connection, values: Mapping[str, Any]) -> None:
    """Store one build (the columns of the table); again is no error, for an id names its content."""
    connection.execute(insert_or(builds).values(**values).on_conflict_do_nothing(index_elements=["id"]))


def build(connection: Connection, tenant: str, identifier: str) -> AnyRow | None:
    """Return one build."""
    statement = select(builds).where(builds.c.tenant == tenant, builds.c.id == identifier)
    return connection.execute(statement).one_or_none()


def builds_by_id(connection: Connection, tenant: str, ids: Collection[str]) -> dict[str, AnyRow]:
    """Return those of a tenant's builds that are among ``ids``."""
    statement = select(builds).where(builds.c.tenant == tenant, builds.c.id.in_(ids))
    return {row.id: row for row in connection.execute(statement)}


def builds_of(
    connection: Connection,
    tenant: str,
    *,
    model: str | None = None,
    number: int | None = None,
    verdict: str | None = None,
    job: str | None = None,
    limit: int,
) -> Sequence[AnyRow]:
    """Return builds, the newest first, of which all given fields are so."""
    statement = select(builds).where(builds.c.tenant == tenant)
    wanted = ((builds.c.model, model), (builds.c.version, number), (builds.c.verdict, verdict), (builds.c.job, job))
    for column, value in wanted:
        if value is not None:
            statement = statement.where(column == value)
    return connection.execute(statement.order_by(builds.c.created.desc(), builds.c.id).limit(limit)).all()
