"""A device's series over HTTP.

Invariant: a tenant sees its own devices only; an answer is bounded in points.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Query
from starlette.requests import Request

from controller.database.connection import Database
from controller.database.http import database
from controller.devices.store import find_device
from controller.errors import InvalidError, NotFoundError
from controller.telemetry.series import HOUR_SECONDS, Series
from controller.tenants.access import Principal
from controller.tenants.guard import permit

DAY: Final = 86_400.0

router = APIRouter(prefix="/api/v1", tags=["telemetry"])


@router.get("/devices/{device}/series")
def device_series(
    device: str,
    request: Request,
    principal: Annotated[Principal, Depends(permit("metrics.read"))],
    db: Annotated[Database, Depends(database)],
    name: Annotated[str | None, Query(max_length=128)] = None,
    since: float | None = None,
    until: float | None = None,
    seconds: Annotated[float | None, Query(gt=0, le=HOUR_SECONDS)] = None,
    step: Annotated[float, Query(ge=1, le=DAY)] = 60.0,
) -> dict[str, Any]:
    """Return the series ``name`` of a device from ``since`` to ``until`` (the last hour); without a name, all names.

    seconds: instead of ``since`` and ``until`` the time up to the end of this very step, so that the answer moves by
    whole steps.
    """
    with db.read() as connection:
        if find_device(connection, principal.tenant, device) is None:
            raise NotFoundError(f"there is no device {device!r}", "no_device")
    series = request.app.state.series
    assert isinstance(series, Series), "app.py sets app.state.series before it serves"
    if name is None:
        return {"device": device, "names": series.names(device)}
    if seconds is not None:
        end = (time.time() // step + 1) * step
        begin = end - seconds
    else:
        end = time.time() if until is None else until
        begin = end - 3600.0 if since is None else since
    if not 0 < end - begin <= HOUR_SECONDS:
        raise InvalidError("`since` must be before `until`, by 90 days at most", "bad_range")
    found = series.query(device, name, begin, end, step)
    return {
        "device": device,
        "name": name,
        "since": begin,
        "until": end,
        "series": [entry | {"points": [asdict(point) for point in entry["points"]]} for entry in found],
    }
