"""Devices over HTTP: joining, sessions, the list of the fleet, revocation.

Invariant: what anybody may send is bounded in size and rate before it is read or decided. A tenant sees and changes its
own devices only; the tenant comes from the token, never from the request.
"""

from __future__ import annotations

import time
from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from controller.audit.store import record
from controller.database.connection import Database
from controller.database.http import database
from controller.devices import joining, store
from controller.devices.fleet import Fleet, fleet
from controller.devices.list_routes import Vitals, shown
from controller.devices.presence import presence
from controller.devices.session import MAX_ENVELOPE_BYTES, DeviceSessions
from controller.errors import InvalidError, NotFoundError, TooLargeError
from controller.tenants.access import Principal
from controller.tenants.guard import permit, public
from controller.tenants.tokens import DEFAULT_TENANT
from wire import enrolment as wire_enrolment
from wire.codec import decode, encode
from wire.errors import WireError
from wire.topics import DEVICE_ID

JSON: Final = "application/json"
_WHY_OPEN_TO_NEW: Final = "a new device has no credential but the join token in its request, which is judged"
_WHY_OPEN_TO_SIGNED: Final = "the device's signature in the request is the credential"

router = APIRouter(prefix="/api/v1", tags=["devices"])
Db = Annotated[Database, Depends(database)]
OurFleet = Annotated[Fleet, Depends(fleet)]
Reader = Annotated[Principal, Depends(permit("devices.read"))]
Tag = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:=/-]{0,62}$")]


class JoinTokenRequest(BaseModel):
    """``uses``: how many devices may join; ``seconds``: how long; ``tags``: given to each of them."""

    model_config = ConfigDict(extra="forbid")
    uses: int = Field(default=1, ge=1, le=10_000)
    seconds: float = Field(default=3_600, gt=0, le=30 * 86_400)
    tags: list[Tag] = Field(default_factory=list, max_length=32)


@router.post("/join-tokens", status_code=201)
def create_join_token(
    request: JoinTokenRequest,
    principal: Annotated[Principal, Depends(permit("devices.enrol"))],
    db: Db,
    our_fleet: OurFleet,
) -> dict[str, Any]:
    """Make a join token; ``token`` in the answer is shown this once."""
    with db.begin() as connection:
        made = joining.make_join_token(
            connection,
            our_fleet,
            principal,
            uses=request.uses,
            seconds=request.seconds,
            tags=request.tags,
            now=time.time(),
        )
    return {
        "id": made.id,
        "token": made.text,
        "expires": made.expires,
        "uses": request.uses,
        "tags": request.tags,
        "controller": our_fleet.api_url,
    }


@router.get("/join-tokens")
def list_join_tokens(
    principal: Annotated[Principal, Depends(permit("devices.enrol"))],
    db: Db,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
) -> dict[str, Any]:
    """Return the caller's tenant's join tokens that still hold; no secrets."""
    with db.read() as connection:
        rows = store.join_tokens_of(connection, principal.tenant, time.time(), limit)
    return {"join_tokens": [dict(row._mapping) for row in rows]}


@router.delete("/join-tokens/{token}", status_code=204)
def withdraw_join_token(token: str, principal: Annotated[Principal, Depends(permit("devices.enrol"))], db: Db) -> None:
    """Let no further device join with a token. Devices that joined with it stay, and may ask for their answer again."""
    with db.begin() as connection:
        if store.withdraw_join_token(connection, principal.tenant, token):
            record(
                connection,
                tenant=principal.tenant,
                actor=principal.actor,
                action="devices.withdraw_join_token",
                thing=f"join-token:{token}",
                at=time.time(),
            )


@router.get(
    "/enrolment/trust", dependencies=[Depends(public("public keys; a device checks them against its join token"))]
)
def trust_bundle(our_fleet: OurFleet, tenant: Annotated[str, Query(max_length=63)] = DEFAULT_TENANT) -> Response:
    """Return the tenant's trust bundle, byte for byte as its join tokens fingerprint it (wire 8.2)."""
    return Response(our_fleet.trust_bundle(tenant), media_type=JSON)


@router.post("/enrolment", dependencies=[Depends(public(_WHY_OPEN_TO_NEW))])
async def enrol(request: Request, db: Db, our_fleet: OurFleet) -> Response:
    """Admit a device (wire 8.3): EnrolRequest to EnrolAnswer, or 403 with the code of the refusal."""
    our_fleet.attempts.count("enrolment", request)
    body = await _body(request, wire_enrolment.MAX_BYTES)
    try:
        wanted = decode(wire_enrolment.EnrolRequest, body, wire_enrolment.MAX_BYTES)
    except WireError as error:
        raise InvalidError(f"the enrolment request cannot be read: {error}", "bad_request") from error
    answer = await run_in_threadpool(joining.enrol, db, our_fleet, wanted, time.time())
    return Response(encode(answer), media_type=JSON, headers={"Cache-Control": "no-store"})


@router.post("/device-sessions/challenge", dependencies=[Depends(public("a challenge alone opens nothing"))])
async def challenge(request: Request, our_fleet: OurFleet) -> Response:
    """Return the bytes that the device signs (wire 8.5). The request: {"device": "d-…"}."""
    our_fleet.attempts.count("challenge", request)
    try:
        wanted = msgspec.json.decode(await _body(request, 1_024), type=dict[str, str])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidError(f"the request cannot be read: {error}", "bad_request") from error
    device = wanted.get("device", "")
    if not DEVICE_ID.match(device):
        raise InvalidError('the request must be {"device": "d-…"} with a device id', "bad_request")
    return Response(_sessions(request).challenge(device), media_type=JSON)


@router.post("/device-sessions", dependencies=[Depends(public(_WHY_OPEN_TO_SIGNED))])
async def open_session(request: Request, our_fleet: OurFleet) -> dict[str, Any]:
    """Return a bearer token for the device whose envelope around its challenge is the body (wire 8.5)."""
    our_fleet.attempts.count("device-session", request)
    body = await _body(request, MAX_ENVELOPE_BYTES)
    token, expires = await run_in_threadpool(_sessions(request).answer, body)
    return {"token": token, "expires": expires}


@router.post("/device-certificates")
def renew_certificate(
    principal: Annotated[Principal, Depends(permit("certificates.renew"))], db: Db, our_fleet: OurFleet
) -> Response:
    """Return the calling device's newest certificate (wire 8.6): RenewAnswer, or 403 with the code of the refusal."""
    answer = joining.renew(db, our_fleet, principal.id, time.time())
    return Response(encode(answer), media_type=JSON, headers={"Cache-Control": "no-store"})


@router.get("/devices/{device}")
def show_device(device: str, principal: Reader, db: Db, vitals: Vitals) -> dict[str, Any]:
    """Return all about one device, with its facts and its vitals."""
    now = time.time()
    with db.read() as connection:
        row = store.find_device(connection, principal.tenant, device)
    if row is None:
        raise NotFoundError(f"there is no device {device!r}", "no_device")
    reason = presence(row.last_seen, row.online, now).reason
    return shown(row, now) | {"state_reason": reason, "vitals": vitals([device], now).get(device)}


@router.delete("/devices/{device}", status_code=204)
def revoke_device(device: str, principal: Annotated[Principal, Depends(permit("devices.revoke"))], db: Db) -> None:
    """Revoke a device: from now on its tokens, its messages and its enrolment are refused."""
    now = time.time()
    with db.begin() as connection:
        if store.revoke(connection, principal.tenant, device, now):
            row = store.find_device(connection, principal.tenant, device)
            record(
                connection,
                tenant=principal.tenant,
                actor=principal.actor,
                action="devices.revoke",
                thing=f"device:{device}",
                at=now,
                body={"name": row.name if row else "", "before": {"revoked": None}, "after": {"revoked": now}},
            )


def _sessions(request: Request) -> DeviceSessions:
    found = request.app.state.device_sessions
    assert isinstance(found, DeviceSessions), "app.py sets app.state.device_sessions before it serves"
    return found


async def _body(request: Request, limit: int) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise TooLargeError(f"this request may have {limit} bytes at most", "too_large")
    return bytes(body)
