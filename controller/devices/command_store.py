"""Statements on commands and their answers.

Invariant: a command is answered once; after that, or once it has expired, nothing about it changes, except that an
answer that comes late is still kept. Decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Connection, Row, and_, bindparam, delete, func, insert, or_, select, update

from controller.database.tables import commands, devices
from wire.messages import Reply

CommandRow = Row[*tuple[Any, ...]]
KEPT: Final = 50  # of one device
_SHOWN: Final = [column for column in commands.c if column.name not in ("tenant", "envelope", "text")]


def add(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Store new commands."""
    connection.execute(insert(commands).values(state="waiting"), [dict(row) for row in rows])


def of_device(connection: Connection, tenant: str, device: str, limit: int) -> Sequence[CommandRow]:
    """Return a device's commands, the newest first, without the texts of their answers."""
    mine = and_(commands.c.tenant == tenant, commands.c.device == device)
    newest_first = (commands.c.created.desc(), commands.c.id)
    return connection.execute(select(*_SHOWN).where(mine).order_by(*newest_first).limit(limit)).all()


def find(connection: Connection, tenant: str, command: str) -> CommandRow | None:
    """Return one command with the text of its answer."""
    statement = select(*_SHOWN, commands.c.text)
    return connection.execute(statement.where(commands.c.tenant == tenant, commands.c.id == command)).one_or_none()


def active_devices(connection: Connection, tenant: str, ids: Iterable[str]) -> list[str]:
    """Return those of ``ids`` that are devices of the tenant and not revoked."""
    wanted = list(ids)
    found: list[str] = []
    for start in range(0, len(wanted), 500):
        here = devices.c.id.in_(wanted[start : start + 500])
        mine = and_(devices.c.tenant == tenant, devices.c.revoked.is_(None))
        found += connection.scalars(select(devices.c.id).where(here, mine))
    return found


def due(connection: Connection, now: float, again_before: float, limit: int) -> list[tuple[str, str, bytes]]:
    """Return (id, device, envelope) of commands to send: new ones, and those unanswered since ``again_before``."""
    statement = (
        select(commands.c.id, commands.c.device, commands.c.envelope)
        .join(devices, devices.c.id == commands.c.device)
        .where(
            commands.c.state.in_(("waiting", "sent")),
            commands.c.expires > now,
            devices.c.revoked.is_(None),
            devices.c.online,
            or_(commands.c.sent.is_(None), commands.c.sent < again_before, commands.c.sent > now),
        )
        .order_by(commands.c.created)
        .limit(limit)
    )
    return [(row.id, row.device, row.envelope) for row in connection.execute(statement)]


def mark_sent(connection: Connection, ids: Sequence[str], now: float) -> None:
    """Note that these were sent, unless they were answered meanwhile."""
    if ids:
        open_ = commands.c.state.in_(("waiting", "sent"))
        statement = update(commands).where(commands.c.id == bindparam("b_id"), open_).values(state="sent", sent=now)
        connection.execute(statement, [{"b_id": id_} for id_ in ids])


def has_expired(connection: Connection, now: float) -> bool:
    """Whether some command that is not answered is past its time."""
    late = and_(commands.c.state.in_(("waiting", "sent")), commands.c.expires <= now)
    return connection.execute(select(commands.c.id).where(late).limit(1)).first() is not None


def expire(connection: Connection, now: float) -> None:
    """Note which commands are past their time."""
    late = and_(commands.c.state.in_(("waiting", "sent")), commands.c.expires <= now)
    connection.execute(update(commands).where(late).values(state="expired"))


def record_reply(connection: Connection, device: str, reply: Reply, received: float) -> None:
    """Keep what became of a command; an answer about another device's command, or a second one, changes nothing."""
    open_ = and_(commands.c.id == reply.command, commands.c.device == device, commands.c.state != "answered")
    connection.execute(
        update(commands)
        .where(open_)
        .values(
            state="answered",
            answered=received,
            outcome=reply.outcome[:32],
            detail=reply.detail,
            text=reply.text,
        )
    )


def prune(connection: Connection, ids: Sequence[str]) -> None:
    """Keep the newest ``KEPT`` commands of each of these devices."""
    order = (commands.c.created.desc(), commands.c.id)
    rank = func.row_number().over(partition_by=commands.c.device, order_by=order)
    for start in range(0, len(ids), 500):
        here = commands.c.device.in_(ids[start : start + 500])
        ranked = select(commands.c.id, rank.label("rank")).where(here).subquery()
        old = select(ranked.c.id).where(ranked.c.rank > KEPT)
        connection.execute(delete(commands).where(commands.c.id.in_(old)))
