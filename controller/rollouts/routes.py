"""Releases, rollouts and executions over HTTP.

Invariant: a tenant sees and moves its own rollouts only; what an operator orders is written down with its audit row in
one transaction and carried out by the loop. Plans nothing itself: a dry run asks the same functions as the loop.
"""

from __future__ import annotations

import time
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection
from starlette.requests import HTTPConnection

from controller.audit.store import record
from controller.builds import store as builds_store
from controller.database.connection import Database
from controller.database.http import database
from controller.devices import store as devices_store
from controller.errors import ConflictError, NotFoundError
from controller.rollouts import store
from controller.rollouts.fleet_store import FleetReader
from controller.rollouts.look import fleet_of, open_rollouts, with_claims, with_executions
from controller.rollouts.loop import new_id
from controller.rollouts.model import CONCLUDED, Rollout, RolloutState, Wanted, order
from controller.rollouts.policy import parse_policy, parse_selector, policy_schema
from controller.rollouts.preview import dry_run, gate_now
from controller.rollouts.store import AnyRow
from controller.tenants.access import Principal
from controller.tenants.guard import permit, public
from wire.execution import ExecutionState

MAX_LISTED: Final = 200
MAX_PAGE: Final = 1000

router = APIRouter(prefix="/api/v1", tags=["rollouts"])
Db = Annotated[Database, Depends(database)]
ReleaseReader = Annotated[Principal, Depends(permit("releases.read"))]
Reader = Annotated[Principal, Depends(permit("rollouts.read"))]
Writer = Annotated[Principal, Depends(permit("rollouts.write"))]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]


def fleet_reader(connection: HTTPConnection) -> FleetReader:
    """Return the application's reader of fleets, made at its first use."""
    state = connection.app.state
    if not hasattr(state, "fleet_reader"):
        state.fleet_reader = FleetReader()
    found = state.fleet_reader
    assert isinstance(found, FleetReader)
    return found


Reading = Annotated[FleetReader, Depends(fleet_reader)]


class ReleaseRequest(BaseModel):
    """``models``: model name to version."""

    model_config = ConfigDict(extra="forbid")
    name: Name
    models: dict[Name, Annotated[int, Field(ge=1)]] = Field(min_length=1, max_length=64)


class RolloutRequest(BaseModel):
    """``release``: its id or name; ``selector`` and ``policy``: see /api/v1/schemas; ``dry_run``: store nothing."""

    model_config = ConfigDict(extra="forbid")
    release: str = Field(min_length=1, max_length=64)
    selector: dict[str, Any] = Field(default_factory=dict)
    policy: dict[str, Any] = Field(default_factory=dict)
    dry_run: bool = False


@router.get("/schemas/rollout-policy", dependencies=[Depends(public("the form of a document, the same for everybody"))])
def rollout_policy_schema() -> dict[str, Any]:
    """Return the JSON Schema of a rollout's policy."""
    return policy_schema()


@router.post("/releases", status_code=201)
def create_release(
    request: ReleaseRequest, principal: Annotated[Principal, Depends(permit("releases.write"))], db: Db
) -> dict[str, Any]:
    """Make a release of model versions that exist."""
    now, release = time.time(), new_id("rel")
    with db.begin() as connection:
        if store.find_release(connection, principal.tenant, request.name) is not None:
            raise ConflictError(
                f"there is a release {request.name!r} already: releases do not change", "release_exists"
            )
        for model, version in request.models.items():
            if builds_store.version(connection, principal.tenant, model, version) is None:
                raise NotFoundError(f"there is no version {version} of a model {model!r}", "no_model_version")
        store.add_release(
            connection, release=release, tenant=principal.tenant, name=request.name, models=request.models, now=now
        )
        record(
            connection,
            tenant=principal.tenant,
            actor=principal.actor,
            action="releases.create",
            thing=release,
            at=now,
            body=request.model_dump(),
        )
    return {"id": release, "name": request.name, "models": request.models, "created": now}


@router.get("/releases")
def list_releases(principal: ReleaseReader, db: Db) -> dict[str, Any]:
    """Return the newest releases."""
    with db.read() as connection:
        rows = store.releases_of(connection, principal.tenant, MAX_LISTED)
    listed = [{"id": row.id, "name": row.name, "models": row.models, "created": row.created} for row in rows]
    return {"releases": listed}


@router.post("/rollouts", status_code=201)
def create_rollout(request: RolloutRequest, principal: Writer, db: Db, reader: Reading) -> dict[str, Any]:
    """Begin a rollout, or with ``dry_run`` say who would get what, in which stage, and who not and why.

    ``warnings`` in the answer says what is probably not meant, such as a device that is not in the fleet.
    """
    policy, selector = parse_policy(request.policy), parse_selector(request.selector)
    now, rollout = time.time(), new_id("r")
    with db.read() as connection:
        release = store.find_release(connection, principal.tenant, request.release)
        if release is None:
            raise NotFoundError(f"there is no release {request.release!r}", "no_release")
        draft = Rollout(
            id=rollout,
            tenant=principal.tenant,
            created=store.next_moment(connection, principal.tenant, now),
            models=release.models,
            selector=selector,
            policy=policy,
            state=RolloutState.PENDING,
            wanted=Wanted.RUN,
            stages=(),
            executions=(),
        )
        preview = dry_run(draft, fleet_of(connection, reader, principal.tenant, [draft], now), now)
    if request.dry_run:
        return {"dry_run": True, "release": release.id} | preview
    with db.begin() as connection:
        store.add_rollout(
            connection,
            rollout=rollout,
            tenant=principal.tenant,
            release=release.id,
            selector=selector,
            policy=policy,
            now=now,
        )
        record(
            connection,
            tenant=principal.tenant,
            actor=principal.actor,
            action="rollouts.create",
            thing=rollout,
            at=now,
            body={"release": release.id, "selector": request.selector, "policy": request.policy},
        )
        return rollout_as_json(_find(connection, principal, rollout), {}) | {"warnings": preview["warnings"]}


@router.get("/rollouts")
def list_rollouts(principal: Reader, db: Db) -> dict[str, Any]:
    """Return the newest rollouts."""
    with db.read() as connection:
        rows = store.rollouts_of(connection, principal.tenant, MAX_LISTED)
        counts = store.execution_counts(connection, [row.id for row in rows])
    return {"rollouts": [rollout_as_json(row, counts.get(row.id, {})) for row in rows]}


@router.get("/rollouts/{rollout}")
def show_rollout(rollout: str, principal: Reader, db: Db, reader: Reading) -> dict[str, Any]:
    """Return one rollout with its stages, how its gate stands now, and why."""
    now = time.time()
    with db.read() as connection:
        row = _find(connection, principal, rollout)
        counts = store.execution_counts(connection, [rollout]).get(rollout, {})
        view = with_executions(connection, store.rollout_view(row, ()))
        gate: dict[str, Any] | None = None
        if view.stages and view.state not in CONCLUDED:
            others = [other for other in open_rollouts(connection)[0] if other.tenant == principal.tenant]
            fleet = fleet_of(connection, reader, principal.tenant, [view, *others], now)
            gate = gate_now(view, with_claims(fleet, view, others), now)
    stages = [
        {
            "number": stage.number,
            "state": stage.state.value,
            "started": stage.started,
            "finished": stage.finished,
            "devices": len(stage.devices),
            "carried": len(stage.carried),
            "reasons": list(stage.reasons),
        }
        for stage in view.stages
    ]
    return rollout_as_json(row, counts) | {
        "selector": row.selector,
        "policy": row.policy,
        "stages": stages,
        "stages_planned": len(view.policy.stages),
        "gate": gate,
    }


@router.post("/rollouts/{rollout}/pause")
def pause_rollout(rollout: str, principal: Writer, db: Db) -> dict[str, Any]:
    """Give it to no further device; those that have begun finish."""
    return _order(rollout, Wanted.PAUSE, principal, db)


@router.post("/rollouts/{rollout}/resume")
def resume_rollout(rollout: str, principal: Writer, db: Db) -> dict[str, Any]:
    """Go on. After a gate has paused it, the failures so far are forgiven."""
    return _order(rollout, Wanted.RUN, principal, db)


@router.post("/rollouts/{rollout}/abort")
def abort_rollout(rollout: str, principal: Writer, db: Db) -> dict[str, Any]:
    """Stop, and take back what devices have not finished."""
    return _order(rollout, Wanted.ABORT, principal, db)


@router.post("/rollouts/{rollout}/rollback")
def roll_back_rollout(rollout: str, principal: Writer, db: Db) -> dict[str, Any]:
    """Bring every device of this rollout back to what it ran before, also after the rollout has succeeded."""
    return _order(rollout, Wanted.ROLLBACK, principal, db)


@router.get("/rollouts/{rollout}/executions")
def list_executions(
    rollout: str,
    principal: Reader,
    db: Db,
    after: str = "",
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 500,
    state: ExecutionState | None = None,
) -> dict[str, Any]:
    """Return a rollout's executions in the order of their ids; ``next`` continues."""
    with db.read() as connection:
        _find(connection, principal, rollout)
        rows = store.executions_page(connection, rollout, after=after, limit=limit, state=state)
    return {"executions": [_execution(row) for row in rows], "next": rows[-1].id if len(rows) == limit else None}


@router.get("/devices/{device}/executions")
def list_device_executions(
    device: str, principal: Reader, db: Db, limit: Annotated[int, Query(ge=1, le=MAX_LISTED)] = 50
) -> dict[str, Any]:
    """Return a device's newest executions."""
    with db.read() as connection:
        if devices_store.find_device(connection, principal.tenant, device) is None:
            raise NotFoundError(f"there is no device {device!r} in tenant {principal.tenant}", "no_device")
        rows = store.executions_of_device(connection, principal.tenant, device, limit)
    return {"executions": [_execution(row) for row in rows]}


@router.get("/executions/{execution}")
def show_execution(execution: str, principal: Reader, db: Db) -> dict[str, Any]:
    """Return one execution with each of its transitions and their times."""
    with db.read() as connection:
        row = store.find_execution(connection, principal.tenant, execution)
        if row is None:
            raise NotFoundError(f"there is no execution {execution!r}", "no_execution")
        events = store.events_of(connection, execution)
    told = [
        {
            "stream": event.stream,  # of the device's outbox, or "controller"
            "sequence": event.sequence,
            "at": event.at,
            "received": event.received,
            "state": event.state,
            "origin": event.origin,
            "detail": event.detail,
            "fault": event.fault,
        }
        for event in events
    ]
    return _execution(row) | {"events": told}


def _order(rollout: str, wanted: Wanted, principal: Principal, db: Database) -> dict[str, Any]:
    now = time.time()
    with db.begin() as connection:
        row = _find(connection, principal, rollout)
        new, obstacle = order(RolloutState(row.state), Wanted(row.wanted), wanted)
        if obstacle:
            raise ConflictError(f"rollout {rollout}: {obstacle}", "wrong_state")
        if new:
            store.set_wanted(connection, rollout, wanted, now)
            record(
                connection,
                tenant=principal.tenant,
                actor=principal.actor,
                action=f"rollouts.{wanted.value}",
                thing=rollout,
                at=now,
            )
        counts = store.execution_counts(connection, [rollout]).get(rollout, {})
        return rollout_as_json(_find(connection, principal, rollout), counts)


def _find(connection: Connection, principal: Principal, rollout: str) -> AnyRow:
    row = store.find_rollout(connection, principal.tenant, rollout)
    if row is None:
        raise NotFoundError(f"there is no rollout {rollout!r}", "no_rollout")
    return row


def rollout_as_json(row: AnyRow, counts: dict[str, int]) -> dict[str, Any]:
    """Return a row of ``find_rollout`` for a reader, with how many executions are in each state."""
    return {
        "id": row.id,
        "release": row.release,
        "release_name": row.release_name,
        "models": row.models,
        "state": row.state,
        "wanted": row.wanted,
        "stage": row.stage,
        "reasons": row.reasons,
        "executions": counts,
        "created": row.created,
        "updated": row.updated,
        "concluded": row.concluded,
    }


def _execution(row: AnyRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "rollout": row.rollout,
        "stage": None if row.stage == store.REVERTING else row.stage,
        "reverting": row.stage == store.REVERTING,
        "device": row.device,
        "device_name": row.device_name,
        "component": row.component,
        "generation": row.generation,
        "build": row.build,
        "why": row.why,
        "state": row.state,
        "fault": row.fault,
        "figures": row.figures,
        "created": row.created,
        "updated": row.updated,
    }
