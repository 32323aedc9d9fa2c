"""The fleet at a glance, over HTTP: numbers, what runs, what is under way, what needs a person.

Invariant: reads in one consistent look at the database, changes nothing, and shows one tenant: the caller's.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Annotated, Any, Final, cast

from fastapi import APIRouter, Depends, Query, Request
from sqlalchemy import Connection

from controller.builds import store as builds_store
from controller.console import attention as judged
from controller.database.connection import Database
from controller.database.http import database
from controller.devices import list_store
from controller.devices.copies import Copies
from controller.devices.fleet import Fleet
from controller.devices.revoking import Revoking
from controller.errors import InvalidError
from controller.rollouts import store as rollouts_store
from controller.rollouts.model import LIVE
from controller.rollouts.routes import rollout_as_json
from controller.telemetry import fleet_series
from controller.telemetry.series import HOUR_SECONDS, Series
from controller.telemetry.vitals import LatestVitals, Vitals
from controller.tenants.access import Principal
from controller.tenants.guard import permit
from controller.trust import keeping

MAX_ATTENTION: Final = 50
MAX_DEVICES: Final = 200_000
MAX_ROLLOUTS: Final = 50

router = APIRouter(prefix="/api/v1", tags=["console"])
Db = Annotated[Database, Depends(database)]
Reader = Annotated[Principal, Depends(permit("fleet.read"))]


@router.get("/overview")
def overview(request: Request, principal: Reader, db: Db) -> dict[str, Any]:
    """Return how the caller's fleet stands now."""
    now, tenant = time.time(), principal.tenant
    latest = cast("LatestVitals", request.app.state.vitals)
    with db.read() as connection:
        counts = list_store.counts_by_state(connection, tenant, now)
        ids = list_store.ids(connection, tenant, list_store.DeviceFilter(), now, MAX_DEVICES)
        vitals = list(latest.all(ids, now).values())
        rollouts = rollouts_store.rollouts_of(connection, tenant, MAX_ROLLOUTS)
        executions = rollouts_store.execution_counts(connection, [row.id for row in rollouts])
        standing = _standing(connection, tenant, counts, rollouts, vitals, _suspects(request, ids, now), now)
        authority_ends, own_end = cast("Fleet", request.app.state.fleet).authority.ends()
        standing = replace(standing, authority_ends=authority_ends, own_certificates_end=own_end)
        items = judged.attention(standing, now)
        runs = _runs(connection, tenant)
    return {
        "devices": counts | {"total": sum(counts.values())},
        "traffic": asdict(fleet_series.traffic(vitals)),
        "runs": runs,
        "rollouts": [rollout_as_json(row, executions.get(row.id, {})) for row in rollouts if row.state in LIVE],
        "attention": [asdict(item) for item in items[:MAX_ATTENTION]],
        "attention_total": len(items),
    }


@router.get("/fleet/series")
def series(
    request: Request,
    principal: Annotated[Principal, Depends(permit("metrics.read"))],
    name: Annotated[str, Query(max_length=64)],
    seconds: Annotated[float, Query(gt=0, le=HOUR_SECONDS)] = 3600.0,
    step: Annotated[float, Query(ge=fleet_series.STEP, le=86_400)] = 30.0,
) -> dict[str, Any]:
    """Return a series of the caller's whole fleet over the last ``seconds``."""
    if name not in fleet_series.NAMES:
        raise InvalidError(f"name: one of {', '.join(fleet_series.NAMES)}", "bad_name")
    kept = cast("Series", request.app.state.series)
    end = (
        time.time() // step + 1
    ) * step  # moves by whole steps, so that an answer changes when there is something new
    found = kept.query(fleet_series.key_of(principal.tenant), name, end - seconds, end, step)
    told = [entry | {"points": [asdict(point) for point in entry["points"]]} for entry in found]
    return {"name": name, "since": end - seconds, "until": end, "series": told}


def _standing(
    connection: Connection,
    tenant: str,
    counts: Mapping[str, int],
    rollouts: Any,
    vitals: list[Vitals],
    suspects: list[judged.Suspect],
    now: float,
) -> judged.Standing:
    expiring, first = list_store.with_certificates_until(connection, tenant, now + judged.CERTIFICATE_SECONDS)
    return judged.Standing(
        lost=counts["lost"],
        late=counts["late"],
        serving_down=list_store.with_serving_down(connection, tenant, now),
        noticing=list_store.with_notices(connection, tenant, now),
        signatures=keeping.overdue(connection, tenant, now),
        inconsistent=rollouts_store.inconsistent_devices(connection, tenant),
        suspects=suspects,
        expiring=expiring,
        first_expiry=first,
        rollouts=[
            judged.RolloutSeen(row.id, row.release_name, row.state, row.updated, row.reasons or []) for row in rollouts
        ],
        failed_jobs=[
            judged.JobSeen(row.model, row.version, row.target["profile"], row.error, row.finished or now)
            for row in builds_store.failed_jobs(connection, tenant, now - judged.DAY, MAX_ATTENTION)
        ],
        devices=[
            judged.DeviceSeen(
                one.throttling or (),
                one.disk_free_bytes,
                one.memory_available_bytes,
                one.requests_per_s,
                one.errors_per_s,
            )
            for one in vitals
        ],
    )


def _suspects(request: Request, ids: Sequence[str], now: float) -> list[judged.Suspect]:
    copied = cast("Copies", request.app.state.copies).all(now)
    silenced = set(cast("Revoking", request.app.state.revoking).silenced())
    found = [judged.Suspect(one, "copied", copied[one].reason, copied[one].since) for one in ids if one in copied]
    why = "it sends more messages than the broker can pass on, and is kept out for a while: look at its log"
    return found + [judged.Suspect(one, "flood", why) for one in ids if one in silenced]


def _runs(connection: Connection, tenant: str) -> list[dict[str, Any]]:
    rows = list_store.running(connection, tenant)
    known = builds_store.builds_by_id(connection, tenant, {row.build for row in rows if row.build})
    return [
        {
            "component": row.component,
            "build": row.build,
            "version": known[row.build].version if row.build in known else None,
            "precision": known[row.build].precision if row.build in known else None,
            "devices": row.devices,
            "ready": row.ready if row.build else 0,
        }
        for row in rows
    ]
