"""Statements on the list of the fleet: filtered, sorted, a page at a time.

Invariant: a page begins right after the row that its cursor names, so that no row is shown twice or left out because
others came or went; each order ends with the id, so that it is total. Knows nothing of how devices do: an order by
figures is made by the caller (`list_routes.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, and_, case, func, or_, select, true, update

from controller.database.tables import certificates, devices
from controller.devices.presence import PresenceState
from controller.devices.store import LISTED, DeviceRow, in_state

CHUNK: Final = 500  # rows or ids in one statement
MAX_FACETS: Final = 200
# a device that has not said it yet comes first
ORDERS: Final[Mapping[str, ColumnElement[Any]]] = {
    "id": devices.c.id,
    "name": devices.c.name,
    "profile": func.coalesce(devices.c.profile, ""),
    "last_seen": func.coalesce(devices.c.last_seen, 0.0),
    "enrolled": devices.c.enrolled,
}
BY_WORD: Final = frozenset({"id", "name", "profile"})  # the other orders are by a number


@dataclass(frozen=True, slots=True)
class DeviceFilter:
    """Which devices of a tenant; what is not given does not matter.

    q: part of the name, or the beginning of the id. build: a build's id that the device says it runs. join_token: the
    id of the token that it joined with.
    """

    q: str | None = None
    state: PresenceState | None = None
    profile: str | None = None
    tag: str | None = None
    build: str | None = None
    join_token: str | None = None
    revoked: bool = False
    ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Cursor:
    """The last row of a page: its value in the page's order, and its id."""

    value: Any
    id: str


def page(
    connection: Connection,
    tenant: str,
    wanted: DeviceFilter,
    now: float,
    *,
    order: str = "id",
    descending: bool = False,
    after: Cursor | None = None,
    limit: int = 100,
) -> Sequence[DeviceRow]:
    """Return rows with ``order_value``; facts are left out. ``order``: a key of ``ORDERS``."""
    key = ORDERS[order]
    conditions = _conditions(tenant, wanted, now)
    if after is not None:
        beyond = key < after.value if descending else key > after.value
        conditions.append(or_(beyond, and_(key == after.value, devices.c.id > after.id)))
    statement = select(*LISTED, key.label("order_value")).where(*conditions)
    ordered = statement.order_by(key.desc() if descending else key, devices.c.id)
    return connection.execute(ordered.limit(limit)).all()


def rows_of(connection: Connection, tenant: str, ids: Sequence[str]) -> dict[str, DeviceRow]:
    """Return the rows of those ``ids`` that are the tenant's, by id."""
    found: dict[str, DeviceRow] = {}
    for start in range(0, len(ids), CHUNK):
        here = devices.c.id.in_(ids[start : start + CHUNK])
        statement = select(*LISTED).where(devices.c.tenant == tenant, here)
        found |= {row.id: row for row in connection.execute(statement)}
    return found


def ids(connection: Connection, tenant: str, wanted: DeviceFilter, now: float, limit: int) -> list[str]:
    """Return the ids of all that match, in order."""
    statement = select(devices.c.id).where(*_conditions(tenant, wanted, now)).order_by(devices.c.id).limit(limit)
    return list(connection.scalars(statement))


def ids_by_tenant(connection: Connection) -> dict[str, list[str]]:
    """Return the ids of all devices that are not revoked, by tenant."""
    found: dict[str, list[str]] = {}
    for tenant, device in connection.execute(select(devices.c.tenant, devices.c.id).where(devices.c.revoked.is_(None))):
        found.setdefault(tenant, []).append(device)
    return found


def count(connection: Connection, tenant: str, wanted: DeviceFilter, now: float) -> int:
    """Return how many match."""
    return connection.execute(
        select(func.count()).select_from(devices).where(*_conditions(tenant, wanted, now))
    ).scalar_one()


def counts_by_state(connection: Connection, tenant: str, now: float) -> dict[str, int]:
    """Return how many devices that are not revoked are in each state of presence."""
    return {state.value: count(connection, tenant, DeviceFilter(state=state), now) for state in PresenceState}


def facets(connection: Connection, tenant: str) -> dict[str, dict[str, int]]:
    """Return the profiles and tags that the tenant's devices have, each with how many, the commonest first."""
    mine = and_(devices.c.tenant == tenant, devices.c.revoked.is_(None))
    number = func.count().label("number")
    tags = func.json_each(devices.c.tags).table_valued("value")
    with_profile = select(devices.c.profile.label("word"), number).where(mine, devices.c.profile.is_not(None))
    with_tag = select(tags.c.value.label("word"), number).select_from(devices).join(tags, onclause=true()).where(mine)
    found: dict[str, dict[str, int]] = {}
    for name, statement in (("profiles", with_profile), ("tags", with_tag)):
        rows = connection.execute(statement.group_by("word").order_by(number.desc(), "word").limit(MAX_FACETS))
        found[name] = {row[0]: row[1] for row in rows}
    return found


def set_name_and_tags(
    connection: Connection, tenant: str, device: str, name: str | None, tags: Iterable[str] | None
) -> DeviceRow | None:
    """Change what is given; return the row as it was, None when there is no such device."""
    before = rows_of(connection, tenant, [device]).get(device)
    if before is None:
        return None
    values: dict[str, Any] = {} if name is None else {"name": name}
    if tags is not None:
        values["tags"] = list(dict.fromkeys(tags))
    if values:
        connection.execute(update(devices).where(devices.c.id == device).values(**values))
    return before


def add_tag(connection: Connection, rows: Iterable[DeviceRow], tag: str) -> int:
    """Give ``tag`` to those that lack it; return how many that were."""
    lacking = [row for row in rows if tag not in row.tags]
    for row in lacking:
        connection.execute(update(devices).where(devices.c.id == row.id).values(tags=[*row.tags, tag]))
    return len(lacking)


def remove_tag(connection: Connection, rows: Iterable[DeviceRow], tag: str) -> int:
    """Take ``tag`` from those that have it; return how many that were."""
    having = [row for row in rows if tag in row.tags]
    for row in having:
        connection.execute(
            update(devices).where(devices.c.id == row.id).values(tags=[held for held in row.tags if held != tag])
        )
    return len(having)


def _conditions(tenant: str, wanted: DeviceFilter, now: float) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = [devices.c.tenant == tenant]
    conditions.append(devices.c.revoked.is_not(None) if wanted.revoked else devices.c.revoked.is_(None))
    if wanted.ids:
        conditions.append(devices.c.id.in_(wanted.ids))
    if wanted.profile is not None:
        conditions.append(devices.c.profile == wanted.profile)
    if wanted.join_token is not None:
        conditions.append(devices.c.join_token == wanted.join_token)
    if wanted.q is not None:
        by_name = devices.c.name.icontains(wanted.q, autoescape=True)
        conditions.append(or_(by_name, devices.c.id.startswith(wanted.q, autoescape=True)))
    if wanted.tag is not None:
        tags = func.json_each(devices.c.tags).table_valued("value")
        conditions.append(select(tags.c.value).where(tags.c.value == wanted.tag).exists())
    if wanted.build is not None:
        items = func.json_each(devices.c.reported, "$.items").table_valued("value")
        runs = func.json_extract(items.c.value, "$.build") == wanted.build
        conditions.append(select(items.c.value).where(runs).exists())
    if wanted.state is not None:
        conditions.append(in_state(wanted.state, now))
    return conditions


# for the overview ---------------------------------------------------------------------------------------------------


def running(connection: Connection, tenant: str) -> Sequence[Any]:
    """Return what devices say they run: component, build, on how many devices, and where serving is ready with it."""
    items = func.json_each(devices.c.reported, "$.items").table_valued("value")
    component, build = (func.json_extract(items.c.value, f"$.{name}") for name in ("component", "build"))
    ready = func.sum(case((func.json_extract(devices.c.reported, "$.serving") == "ready", 1), else_=0))
    statement = select(
        component.label("component"), build.label("build"), func.count().label("devices"), ready.label("ready")
    )
    mine = and_(devices.c.tenant == tenant, devices.c.revoked.is_(None), devices.c.reported.is_not(None))
    grouped = statement.select_from(devices).join(items, onclause=true()).where(mine)
    return connection.execute(grouped.group_by("component", "build").order_by("component", "build")).all()


def with_serving_down(connection: Connection, tenant: str, now: float) -> int:
    """Return how many present devices say that their serving is down."""
    down = func.json_extract(devices.c.reported, "$.serving") == "down"
    conditions = [*_conditions(tenant, DeviceFilter(state=PresenceState.ONLINE), now), down]
    return connection.execute(select(func.count()).select_from(devices).where(*conditions)).scalar_one()


def with_notices(connection: Connection, tenant: str, now: float) -> int:
    """Return how many present devices say that something keeps builds from being installed."""
    some = func.json_array_length(devices.c.reported, "$.notices") > 0
    conditions = [*_conditions(tenant, DeviceFilter(state=PresenceState.ONLINE), now), some]
    return connection.execute(select(func.count()).select_from(devices).where(*conditions)).scalar_one()


def with_certificates_until(connection: Connection, tenant: str, until: float) -> tuple[int, float | None]:
    """Return how many devices have no certificate that holds after ``until``, and when the first of them ends."""
    newest = (
        select(func.max(certificates.c.expires).label("expires"))
        .select_from(devices)
        .join(certificates, certificates.c.device == devices.c.id)
        .where(devices.c.tenant == tenant, devices.c.revoked.is_(None))
        .group_by(devices.c.id)
        .subquery()
    )
    found = select(func.count(), func.min(newest.c.expires)).where(newest.c.expires < until)
    row = connection.execute(found).one()
    return row[0], row[1]
