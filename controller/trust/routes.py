"""The signed repository over HTTP: metadata for devices, new versions from builders, new roots from a key ceremony.

Invariant: a tenant's metadata tell which models it has, so only the tenant's own devices and people read them. What is
sent here is judged by `repository.py`; no private key ever passes. A version, once served, never changes.
"""

from __future__ import annotations

import re
import time
from typing import Annotated, Any, Final, Literal, cast

from fastapi import APIRouter, Depends, Path, Request, Response
from pydantic import Base64Bytes, BaseModel, ConfigDict, Field
from sqlalchemy import Connection
from tuf.api.metadata import Root

from controller.audit.store import record
from controller.database.connection import Database
from controller.database.http import database
from controller.errors import NotFoundError
from controller.tenants.access import Principal
from controller.tenants.guard import permit
from controller.trust import keeping, layout, metadata, repository, store, trial
from controller.trust.keeping import Keeper

JSON: Final = "application/json"
_NAME: Final = re.compile(r"(?:(?P<version>[1-9][0-9]{0,9})\.)?(?P<role>[a-z0-9][a-z0-9._-]{0,79})\.json")
_FOREVER: Final = "private, max-age=31536000, immutable"

router = APIRouter(tags=["trust"])
Db = Annotated[Database, Depends(database)]
Reader = Annotated[Principal, Depends(permit("trust.read"))]


def keeper(request: Request) -> Keeper:
    """Return the application's keeper of repositories."""
    return cast("Keeper", request.app.state.keeper)


OurKeeper = Annotated[Keeper, Depends(keeper)]


class RootsRequest(BaseModel):
    """roots: the next versions of the root, oldest first; targets: new top-level targets. Base64 of signed bytes."""

    model_config = ConfigDict(extra="forbid")
    roots: list[Base64Bytes] = Field(default_factory=list, max_length=16)
    targets: Base64Bytes | None = None
    reason: str = Field(default="", max_length=1000)


class OnlineKeyRequest(BaseModel):
    """role: whose key shall be a new one."""

    model_config = ConfigDict(extra="forbid")
    role: Literal["snapshot", "timestamp"]


class RolesRequest(BaseModel):
    """roles: new versions of delegated roles by name, in base64 of the bytes signed."""

    model_config = ConfigDict(extra="forbid")
    roles: dict[str, Base64Bytes] = Field(min_length=1, max_length=repository.MAX_DOCUMENTS)


@router.get("/tuf/{tenant}/metadata/{name}")
def get_metadata(
    tenant: Annotated[str, Path(max_length=63)],
    name: Annotated[str, Path(max_length=120)],
    principal: Reader,
    db: Db,
) -> Response:
    """Return signed metadata as a TUF client asks for it: `timestamp.json`, or `VERSION.ROLE.json` (wire 10)."""
    match = _NAME.fullmatch(name)
    if tenant != principal.tenant or match is None:
        raise _nothing(name, tenant)
    with db.read() as connection:
        if match["version"] is None:
            data = store.newest(connection, tenant, layout.TIMESTAMP) if match["role"] == layout.TIMESTAMP else None
        else:
            data = store.version(connection, tenant, match["role"], int(match["version"]))
    if data is None:
        raise _nothing(name, tenant)
    caching = "no-cache" if match["version"] is None else _FOREVER
    return Response(data, media_type=JSON, headers={"cache-control": caching})


@router.get("/api/v1/trust")
def get_trust(principal: Reader, db: Db, keep: OurKeeper) -> dict[str, Any]:
    """Return how the tenant's signed repository stands: roles, versions, expiry, keys."""
    with db.read() as connection:
        return keeping.status(connection, principal.tenant, keep)


@router.post("/api/v1/trust/root")
def put_roots(
    asked: RootsRequest, principal: Annotated[Principal, Depends(permit("trust.manage"))], db: Db, keep: OurKeeper
) -> dict[str, Any]:
    """Take new roots and top-level targets from a key ceremony. Where the keys were for trial, those sign as well."""
    now, tenant = time.time(), principal.tenant
    with db.begin() as connection:
        held = store.newest(connection, tenant, layout.ROOT)
        if held is None:
            raise _nothing("root", tenant)
        directory, roots, trusted = keep.trial_directory(tenant), [], metadata.read(held, Root)
        for data in asked.roots:
            roots.append(trial.co_sign(directory, trusted, data))
            trusted = metadata.read(roots[-1], Root)
        online = keep.online_for(tenant, trusted.signed)
        taken = repository.take_roots(connection, tenant, roots, asked.targets, online, now)
        _record(connection, principal, "trust.roots", taken, now, asked.reason)
    settled = keep.settle(tenant, trusted.signed)
    return {
        "versions": taken.versions,
        "online_keys_changed": settled,
        "trial_keys_removed": trial.retire(directory, trusted),
    }


@router.post("/api/v1/trust/online-keys", status_code=201)
def make_online_key(
    asked: OnlineKeyRequest,
    principal: Annotated[Principal, Depends(permit("trust.manage"))],
    db: Db,
    keep: OurKeeper,
) -> dict[str, Any]:
    """Make a new key of the controller's own; it signs as soon as a root names it. The private half stays here."""
    now, tenant = time.time(), principal.tenant
    with db.begin() as connection:  # the write lock: nobody takes a root meanwhile
        keep.settle(tenant, metadata.read(repository.require_root(connection, tenant), Root).signed)
        key = keep.make_next(tenant, asked.role)
        record(
            connection,
            tenant=tenant,
            actor=principal.actor,
            action="trust.make_online_key",
            thing=f"repository:{tenant}",
            at=now,
            body={"role": asked.role, "keyid": key.keyid},
        )
    return {"role": asked.role, "keyid": key.keyid, "key": key.to_dict()}


def record_roles(connection: Connection, principal: Principal, taken: repository.Taken, now: float) -> None:
    """Write into the audit that delegated roles got new versions."""
    _record(connection, principal, "trust.roles", taken, now, "")


def _record(
    connection: Connection, principal: Principal, action: str, taken: repository.Taken, now: float, reason: str
) -> None:
    record(
        connection,
        tenant=principal.tenant,
        actor=principal.actor,
        action=action,
        thing=f"repository:{principal.tenant}",
        at=now,
        reason=reason,
        body={"versions": taken.versions, "added": taken.added[:100]},
    )


def _nothing(name: str, tenant: str) -> NotFoundError:
    return NotFoundError(f"there is no metadata {name[:120]!r} of tenant {tenant!r}", "no_metadata")
