"""The list of the fleet over HTTP: filter, order, page, and deeds over all that a filter matches.

Invariant: a tenant sees and changes its own devices only; what a filter matches is decided here in one place, so that a
deed reaches exactly the devices that the list shows. How devices do (vitals) is handed down by `app.py`; orders by such
figures are made here, over the ids that match, because they change with every report and stand in no table.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Final, Literal, cast

import msgspec
from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field, model_validator
from sqlalchemy import Connection

from controller.audit.store import record
from controller.database.connection import Database
from controller.database.http import database
from controller.devices import list_store
from controller.devices.list_store import BY_WORD, ORDERS, Cursor, DeviceFilter
from controller.devices.presence import PresenceState, presence
from controller.devices.store import DeviceRow
from controller.errors import InvalidError, NotFoundError
from controller.tenants.access import Principal
from controller.tenants.guard import permit

MAX_PAGE: Final = 500
MAX_IDS: Final = 10_000  # as many as a rollout's selector names
MAX_NAMED: Final = 100  # devices in one audit row; how many there were stands beside them
MAX_TAGS: Final = 32  # of one device
VITALS: Final = (
    *("requests_per_s", "errors_per_s", "p50_ms", "p95_ms", "queued", "cpu", "load"),
    *("memory_available_bytes", "disk_free_bytes", "temperature_celsius"),
)
ReadVitals = Callable[[Iterable[str], float], Mapping[str, Mapping[str, Any]]]  # (device ids, now)

router = APIRouter(prefix="/api/v1", tags=["devices"])
Db = Annotated[Database, Depends(database)]
Reader = Annotated[Principal, Depends(permit("devices.read"))]
Writer = Annotated[Principal, Depends(permit("devices.write"))]
Tag = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:=/-]{0,62}$")]
Id = Annotated[str, Field(pattern=r"^d-[a-z2-7]{26}$")]


class FilterDocument(BaseModel):
    """Which devices. What is not given does not matter."""

    model_config = ConfigDict(extra="forbid")
    q: str | None = Field(default=None, max_length=63)
    state: PresenceState | None = None
    profile: str | None = Field(default=None, max_length=128)
    tag: str | None = Field(default=None, max_length=63)
    build: str | None = Field(default=None, max_length=34)
    join_token: str | None = Field(default=None, max_length=16)
    revoked: bool = False

    def value(self) -> DeviceFilter:
        """Return what the statements take."""
        return DeviceFilter(**self.model_dump())


class ListQuery(FilterDocument):
    """A page of the list.

    sort: an order, with "-" before it the other way round. after: ``next`` of the page before.
    """

    name: str | None = Field(default=None, max_length=63, description="the older word for `q`")
    ids: list[Id] = Field(default_factory=list, max_length=MAX_PAGE)
    sort: str = Field(default="id", max_length=32)
    after: str = Field(default="", max_length=400)
    limit: int = Field(default=100, ge=1, le=MAX_PAGE)

    def value(self) -> DeviceFilter:
        """Return what the statements take."""
        return DeviceFilter(
            q=self.q if self.q is not None else self.name,
            state=self.state,
            profile=self.profile,
            tag=self.tag,
            build=self.build,
            join_token=self.join_token,
            revoked=self.revoked,
            ids=tuple(self.ids),
        )


class TagRequest(BaseModel):
    """Give or take a tag: on named devices, or on all that a filter matches. Exactly one of the two."""

    model_config = ConfigDict(extra="forbid")
    action: Literal["tag", "untag"]
    tag: Tag
    devices: list[Id] | None = Field(default=None, min_length=1, max_length=MAX_IDS)
    filter: FilterDocument | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> TagRequest:
        if (self.devices is None) == (self.filter is None):
            raise ValueError("give either `devices` or `filter`")
        return self


class DeviceChange(BaseModel):
    """What changes; what is not given stays."""

    model_config = ConfigDict(extra="forbid")
    name: str | None = Field(default=None, pattern=r"^[^\x00-\x1f\x7f]{1,63}$")
    tags: list[Tag] | None = Field(default=None, max_length=MAX_TAGS)


def read_vitals(request: Request) -> ReadVitals:
    """Return the application's reader of vitals; without one, no device has told any."""
    return cast("ReadVitals", getattr(request.app.state, "read_vitals", _no_vitals))


def _no_vitals(_devices: Iterable[str], _now: float) -> Mapping[str, Mapping[str, Any]]:
    return {}


Vitals = Annotated[ReadVitals, Depends(read_vitals)]


@router.get("/devices")
def list_devices(asked: Annotated[ListQuery, Query()], principal: Reader, db: Db, vitals: Vitals) -> dict[str, Any]:
    """Return devices that match, a page at a time.

    ``total``: on all pages; ``next``: what ``after`` is for the next page, null at the end.
    """
    now = time.time()
    order, descending = asked.sort.removeprefix("-"), asked.sort.startswith("-")
    after = _read_cursor(asked.after) if asked.after else None
    wanted = asked.value()
    with db.read() as connection:
        total = list_store.count(connection, principal.tenant, wanted, now)
        if order in ORDERS:
            if after is not None and not isinstance(after.value, str if order in BY_WORD else float):
                raise InvalidError("after: this is no cursor of this order", "bad_cursor")
            rows: Sequence[DeviceRow] = list_store.page(
                *(connection, principal.tenant, wanted, now),
                order=order,
                descending=descending,
                after=after,
                limit=asked.limit,
            )
            last = Cursor(rows[-1].order_value, rows[-1].id) if len(rows) == asked.limit else None
        elif order in VITALS:
            rows, last = _by_vitals(connection, principal, wanted, now, vitals, order, descending, after, asked.limit)
        else:
            raise InvalidError(f"sort: one of {', '.join([*ORDERS, *VITALS])}, with or without `-`", "bad_sort")
    told = vitals([row.id for row in rows], now)
    return {
        "devices": [shown(row, now) | {"vitals": told.get(row.id)} for row in rows],
        "next": None if last is None else _write_cursor(last),
        "total": total,
    }


@router.get("/devices/facets")
def list_facets(principal: Reader, db: Db) -> dict[str, Any]:
    """Return which profiles and tags there are, with how many devices each."""
    with db.read() as connection:
        return list_store.facets(connection, principal.tenant)


@router.get("/devices/ids")
def list_ids(asked: Annotated[FilterDocument, Query()], principal: Reader, db: Db) -> dict[str, Any]:
    """Return the ids of all devices that match, for a rollout's selector. 400 when there are more than it can name."""
    with db.read() as connection:
        return {"ids": matching(connection, principal, asked.value())}


@router.post("/devices/tags")
def change_tags(asked: TagRequest, principal: Writer, db: Db) -> dict[str, Any]:
    """Give or take one tag on many devices; tells how many ``devices`` were meant, and how many ``changed``."""
    now = time.time()
    with db.begin() as connection:
        ids = asked.devices or matching(connection, principal, (asked.filter or FilterDocument()).value())
        rows = list_store.rows_of(connection, principal.tenant, ids)
        full = [row for row in rows.values() if asked.tag not in row.tags and len(row.tags) >= MAX_TAGS]
        if asked.action == "tag" and full:
            raise InvalidError(
                f"{len(full)} of these devices have {MAX_TAGS} tags already, {full[0].name!r} first: take one away",
                "too_many_tags",
            )
        meant = [row.id for row in rows.values() if (asked.tag in row.tags) == (asked.action == "untag")]
        change = list_store.add_tag if asked.action == "tag" else list_store.remove_tag
        changed = change(connection, rows.values(), asked.tag)
        record(
            connection,
            tenant=principal.tenant,
            actor=principal.actor,
            action=f"devices.{asked.action}",
            thing="devices",
            at=now,
            body=asked.model_dump(mode="json", exclude_none=True, exclude={"devices"})
            | {"devices": len(rows), "changed": changed, "first": meant[:MAX_NAMED]},
        )
    return {"devices": len(rows), "changed": changed}


@router.patch("/devices/{device}")
def change_device(device: str, asked: DeviceChange, principal: Writer, db: Db) -> dict[str, Any]:
    """Change a device's name or tags."""
    now = time.time()
    with db.begin() as connection:
        before = list_store.set_name_and_tags(connection, principal.tenant, device, asked.name, asked.tags)
        if before is None:
            raise NotFoundError(f"there is no device {device!r}", "no_device")
        record(
            connection,
            tenant=principal.tenant,
            actor=principal.actor,
            action="devices.change",
            thing=f"device:{device}",
            at=now,
            body={"before": {"name": before.name, "tags": before.tags}, "after": asked.model_dump(exclude_none=True)},
        )
        return shown(list_store.rows_of(connection, principal.tenant, [device])[device], now)


def shown(row: DeviceRow, now: float) -> dict[str, Any]:
    """Return a row for a reader, with how present the device is."""
    fields = dict(row._mapping)
    fields.pop("order_value", None)
    return fields | {"state": presence(fields["last_seen"], fields["online"], now).state.value}


def matching(connection: Connection, principal: Principal, wanted: DeviceFilter) -> list[str]:
    """Return the ids of the caller's devices that match. Raises InvalidError when they are more than ``MAX_IDS``."""
    found = list_store.ids(connection, principal.tenant, wanted, time.time(), MAX_IDS + 1)
    if len(found) > MAX_IDS:
        raise InvalidError(f"more than {MAX_IDS} devices match: narrow the filter, or use a tag", "too_many_devices")
    return found


def _by_vitals(
    connection: Connection,
    principal: Principal,
    wanted: DeviceFilter,
    now: float,
    vitals: ReadVitals,
    name: str,
    descending: bool,
    after: Cursor | None,
    limit: int,
) -> tuple[list[DeviceRow], Cursor | None]:
    """Those that told the figure in its order, then those that did not, by id."""
    ids = list_store.ids(connection, principal.tenant, wanted, now, 1_000_000)
    told = vitals(ids, now)

    def key(value: float | None, device: str) -> tuple[bool, float, str]:
        return (value is None, 0.0 if value is None else -value if descending else value, device)

    values = {device: (told.get(device) or {}).get(name) for device in ids}
    ordered = sorted(ids, key=lambda device: key(values[device], device))
    if after is not None:
        if after.value is not None and not isinstance(after.value, int | float):
            raise InvalidError("after: this is no cursor of this order", "bad_cursor")
        beyond = key(after.value, after.id)
        ordered = [device for device in ordered if key(values[device], device) > beyond]
    chosen = ordered[:limit]
    found = list_store.rows_of(connection, principal.tenant, chosen)
    rows = [found[device] for device in chosen if device in found]
    return rows, Cursor(values[chosen[-1]], chosen[-1]) if len(chosen) == limit else None


def _write_cursor(cursor: Cursor) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode([cursor.value, cursor.id])).decode().rstrip("=")


def _read_cursor(text: str) -> Cursor:
    try:
        decoded = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        value, device = msgspec.json.decode(decoded, type=tuple[str | float | None, str])
    except (ValueError, msgspec.MsgspecError) as error:
        raise InvalidError("after: this is no cursor; take `next` of the page before", "bad_cursor") from error
    return Cursor(value, device)
