"""Statements on join tokens, devices and certificates.

Invariant: a device's sequence moves only in the transaction of the message's own effect (``accept``). Decides nothing:
`enrolment.py`, `sequence.py` and `presence.py` do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Row, and_, delete, func, insert, not_, or_, select, update

from controller.database.tables import certificates, devices, join_tokens
from controller.devices import sequence as sequences
from controller.devices.authority import Certificate
from controller.devices.enrolment import Known, Token
from controller.devices.presence import LATE_AFTER, LOST_AFTER, PresenceState, supersedes
from controller.devices.sequence import Duplicate, Fresh, Gap, Held
from controller.errors import NotFoundError
from wire.messages import Facts, Reported, State

FORGOTTEN: Final = 90 * 86_400.0  # seconds after its end that a join token is kept
CLOCKS_DIFFER: Final = 60.0  # seconds: what lies further ahead was written under a clock that was wrong
DeviceRow = Row[*tuple[Any, ...]]
_SHOWN: Final = [
    column for column in devices.c if column.name not in ("public_key", "join_token", "stream", "sequence")
]
LISTED: Final = [column for column in _SHOWN if column.name != "facts"]


# joining ------------------------------------------------------------------------------------------------------------


def add_join_token(connection: Connection, token: Token, created: float) -> None:
    """Store a join token by the hash of its secret; drop those that ended long ago and that nobody joined with."""
    with_it = select(devices.c.id).where(devices.c.join_token == join_tokens.c.id)
    connection.execute(delete(join_tokens).where(join_tokens.c.expires < created - FORGOTTEN, ~with_it.exists()))
    connection.execute(
        insert(join_tokens).values(
            id=token.id,
            tenant=token.tenant,
            secret_sha256=token.secret_sha256,
            uses_left=token.uses_left,
            tags=list(token.tags),
            created=created,
            expires=token.expires,
        )
    )


def find_join_token(connection: Connection, token: str) -> Token | None:
    """Return a join token."""
    row = connection.execute(select(join_tokens).where(join_tokens.c.id == token)).one_or_none()
    if row is None:
        return None
    return Token(row.id, row.tenant, row.secret_sha256, row.uses_left, row.expires, tuple(row.tags))


def join_tokens_of(connection: Connection, tenant: str, now: float, limit: int) -> list[Row[tuple[Any, ...]]]:
    """Return a tenant's join tokens that still hold, the newest first, without what hides their secrets."""
    columns = [column for column in join_tokens.c if column.name not in ("secret_sha256", "tenant")]
    statement = (
        select(*columns)
        .where(join_tokens.c.tenant == tenant, join_tokens.c.expires > now, join_tokens.c.uses_left > 0)
        .order_by(join_tokens.c.created.desc(), join_tokens.c.id)
        .limit(limit)
    )
    return list(connection.execute(statement))


def withdraw_join_token(connection: Connection, tenant: str, token: str) -> bool:
    """Let nobody else join with a token; return whether that was news. Raises NotFoundError."""
    mine = (join_tokens.c.id == token, join_tokens.c.tenant == tenant)
    row = connection.execute(select(join_tokens.c.uses_left).where(*mine)).one_or_none()
    if row is None:
        raise NotFoundError(f"there is no join token {token!r}", "no_token")
    connection.execute(update(join_tokens).where(*mine).values(uses_left=0))
    return bool(row.uses_left)


def find_known(connection: Connection, token: str, public_key: str) -> Known | None:
    """Return the device that joined with this token and key."""
    statement = select(devices.c.id, devices.c.revoked).where(
        devices.c.join_token == token, devices.c.public_key == public_key
    )
    row = connection.execute(statement).one_or_none()
    return None if row is None else Known(row.id, row.revoked is not None)


def add_device(
    connection: Connection,
    *,
    device: str,
    tenant: str,
    name: str,
    tags: Iterable[str],
    public_key: str,
    join_token: str,
    now: float,
) -> None:
    """Store a new device and spend one use of its join token."""
    connection.execute(
        update(join_tokens).where(join_tokens.c.id == join_token).values(uses_left=join_tokens.c.uses_left - 1)
    )
    connection.execute(
        insert(devices).values(
            id=device,
            tenant=tenant,
            name=name,
            tags=list(tags),
            public_key=public_key,
            join_token=join_token,
            enrolled=now,
            online=False,
            sequence=0,
        )
    )


def add_certificate(connection: Connection, device: str, certificate: Certificate) -> None:
    """Note a certificate before it is handed out."""
    connection.execute(
        insert(certificates).values(
            serial=certificate.serial,
            device=device,
            pem=certificate.pem,
            issued=certificate.issued,
            expires=certificate.expires,
        )
    )


def newest_certificate(connection: Connection, device: str) -> tuple[str, float, float] | None:
    """Return PEM, when it was issued and when it ends, of the certificate of ``device`` that ends last."""
    statement = (
        select(certificates.c.pem, certificates.c.issued, certificates.c.expires)
        .where(certificates.c.device == device)
        .order_by(certificates.c.expires.desc(), certificates.c.issued.desc())
        .limit(1)
    )
    row = connection.execute(statement).one_or_none()
    return None if row is None else (row.pem, row.issued, row.expires)


def forget_certificates(connection: Connection, device: str, ended_before: float) -> None:
    """Forget the certificates of ``device`` that ended before: nobody takes them any more."""
    connection.execute(
        delete(certificates).where(certificates.c.device == device, certificates.c.expires < ended_before)
    )


# reading ------------------------------------------------------------------------------------------------------------


def find_device(connection: Connection, tenant: str, device: str) -> DeviceRow | None:
    """Return a tenant's device, with ``certificate_expires``."""
    expires = select(func.max(certificates.c.expires)).where(certificates.c.device == devices.c.id).scalar_subquery()
    statement = select(*_SHOWN, expires.label("certificate_expires"))
    return connection.execute(statement.where(devices.c.id == device, devices.c.tenant == tenant)).one_or_none()


def active_key(connection: Connection, device: str) -> tuple[str, str, str] | None:
    """Return tenant, name and public key of a device that is not revoked."""
    statement = select(devices.c.tenant, devices.c.name, devices.c.public_key).where(
        devices.c.id == device, devices.c.revoked.is_(None)
    )
    row = connection.execute(statement).one_or_none()
    return None if row is None else (row.tenant, row.name, row.public_key)


def is_active(connection: Connection, device: str) -> bool:
    """Whether the device is enrolled and not revoked."""
    statement = select(devices.c.id).where(devices.c.id == device, devices.c.revoked.is_(None))
    return connection.execute(statement).one_or_none() is not None


def revoked_certificates(connection: Connection, since: float, also: Sequence[str] = ()) -> list[tuple[str, str]]:
    """Return device and serial of each certificate that ends after ``since``, of revoked devices and of ``also``."""
    statement = (
        select(certificates.c.device, certificates.c.serial)
        .join(devices, devices.c.id == certificates.c.device)
        .where(or_(devices.c.revoked.is_not(None), devices.c.id.in_(also)), certificates.c.expires > since)
    )
    return [(device, serial) for device, serial in connection.execute(statement)]


# what a device says -------------------------------------------------------------------------------------------------


def accept(connection: Connection, device: str, stream: str, sequence: int, previous: int) -> Fresh | Duplicate | Gap:
    """Judge a sequenced message (wire 4.2) and, when it is fresh, move the device's sequence in this transaction.

    Raises NotFoundError for a device that is unknown or revoked.
    """
    statement = select(devices.c.stream, devices.c.sequence).where(devices.c.id == device, devices.c.revoked.is_(None))
    row = connection.execute(statement).one_or_none()
    if row is None:
        raise NotFoundError(f"there is no device {device}", "no_device")
    verdict = sequences.judge(Held(row.stream, row.sequence), stream, sequence, previous)
    if isinstance(verdict, Fresh):
        connection.execute(update(devices).where(devices.c.id == device).values(stream=stream, sequence=sequence))
    return verdict


def save_state(connection: Connection, device: str, state: State, now: float) -> None:
    """Store a State (wire 4.3), unless it is of an older connection than the one held.

    Only the state of a new connection counts as having heard the device: retained ones are repeated by the broker.
    """
    held = select(devices.c.boot, devices.c.session, devices.c.reported).where(devices.c.id == device)
    row = connection.execute(held).one_or_none()
    if row is None or not supersedes(state.boot, state.session, row.boot, row.session):
        return
    values: dict[str, Any] = {
        "online": state.online,
        "boot": state.boot,
        "session": state.session,
        "agent_version": state.agent_version,
    }
    if state.online and (state.boot, state.session) != (row.boot, row.session):
        values["last_seen"] = now
        if row.reported is not None:
            # a device says again what it runs when it connects, and its clock may have been put back meanwhile
            values["reported"] = dict(row.reported) | {"at": 0.0}
    connection.execute(update(devices).where(devices.c.id == device).values(values))


def save_facts(connection: Connection, device: str, facts: Facts, builtins: Mapping[str, Any]) -> None:
    """Store Facts (wire 4.5), also as ``builtins``."""
    connection.execute(
        update(devices)
        .where(devices.c.id == device)
        .values(profile=facts.profile, agent_version=facts.agent_version, facts=dict(builtins))
    )


def save_reported(
    connection: Connection, device: str, reported: Reported, builtins: Mapping[str, Any], now: float
) -> None:
    """Store Reported (wire 4.6) as ``builtins``, unless a later one is held."""
    held = connection.execute(select(devices.c.reported).where(devices.c.id == device)).scalar_one_or_none()
    at, number = (0.0, -1) if held is None else (held.get("at", 0.0), held.get("number", 0))
    if reported.at < at <= now + CLOCKS_DIFFER and reported.number <= number:
        return
    connection.execute(update(devices).where(devices.c.id == device).values(reported=dict(builtins)))


def save_seen(connection: Connection, seen: Mapping[str, float]) -> None:
    """Note when devices were last heard: device id to seconds since 1970."""
    for device, at in seen.items():
        connection.execute(
            update(devices)
            .where(
                devices.c.id == device,
                or_(
                    devices.c.last_seen.is_(None),
                    devices.c.last_seen < at,
                    devices.c.last_seen > at + CLOCKS_DIFFER,  # or a dead device would look alive until then
                ),
            )
            .values(last_seen=at)
        )


def revoke(connection: Connection, tenant: str, device: str, now: float) -> bool:
    """Revoke a device; return whether that was news. Raises NotFoundError."""
    row = connection.execute(
        select(devices.c.revoked).where(devices.c.id == device, devices.c.tenant == tenant)
    ).one_or_none()
    if row is None:
        raise NotFoundError(f"there is no device {device!r}", "no_device")
    if row.revoked is not None:
        return False
    connection.execute(update(devices).where(devices.c.id == device).values(revoked=now, online=False))
    return True


def in_state(state: PresenceState, now: float) -> ColumnElement[bool]:
    """`presence.presence` as a condition; a test compares the two."""
    heard = and_(devices.c.online, devices.c.last_seen >= now - LATE_AFTER)
    silent = and_(devices.c.online, devices.c.last_seen < now - LATE_AFTER, devices.c.last_seen >= now - LOST_AFTER)
    if state is PresenceState.ONLINE:
        return heard
    if state is PresenceState.LATE:
        return silent
    return or_(devices.c.last_seen.is_(None), not_(or_(heard, silent)))
