"""What the gateway reads of `state.db`: devices, tokens and models, as one unchangeable picture.

Invariant: reads only, through a connection that cannot write; a picture is complete or it is not returned. The cost
of finding out that nothing relevant changed does not depend on how often devices report. Does not judge tokens
(`fleet_view.py`) and knows no tunnels.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

from sqlalchemy import Connection, Engine, create_engine, func, select, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import StaticPool

from controller.database.tables import api_tokens, devices, model_versions, models, sessions
from controller.errors import UnavailableError

_BUSY_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class RegisteredDevice:
    """public_key: as `wire.envelope.encode_public_key` writes it."""

    tenant: str
    public_key: str
    revoked: bool


@dataclass(frozen=True, slots=True)
class RegisteredToken:
    """An API token by the hash of its secret. Times are seconds since 1970."""

    tenant: str
    name: str
    role: str
    secret_sha256: str
    expires: float | None
    revoked: bool


@dataclass(frozen=True, slots=True)
class Registry:
    """One consistent state. ``models``: (tenant, name); ``versions``: (tenant, model, version as text).

    sessions: of the console, by the SHA-256 of their text: the token's id, and when they end.
    """

    devices: Mapping[str, RegisteredDevice]
    tokens: Mapping[str, RegisteredToken]
    sessions: Mapping[str, tuple[str, float]]
    models: frozenset[tuple[str, str]]
    versions: frozenset[tuple[str, str, str]]


class RegistryFile:
    """The database in ``path``. Not to be used by two threads at once; opened when it is first read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._engine: Engine | None = None
        self._inode = 0
        self._version = -1
        self._fingerprint: tuple[object, ...] = ()

    def read_if_changed(self) -> Registry | None:
        """Return the registry when it differs from the one returned last, else None. Raises UnavailableError."""
        try:
            return self._read()
        except (OSError, sqlite3.Error, SQLAlchemyError) as error:
            self.close()
            raise UnavailableError(
                f"the registry in {self._path} cannot be read: {error}; is the controller's data directory there?",
                "registry_unreadable",
            ) from error

    def close(self) -> None:
        """Close the connection; the next read opens it again and returns the whole registry."""
        if self._engine is not None:
            self._engine.dispose()
        self._engine, self._version, self._fingerprint = None, -1, ()

    def _read(self) -> Registry | None:
        inode = self._path.stat().st_ino
        if self._engine is None or inode != self._inode:  # another file: a backup was restored
            self.close()
            self._engine, self._inode = _open(self._path), inode
        with self._engine.connect() as connection:
            version = connection.execute(text("PRAGMA data_version")).scalar_one()
            if version == self._version:
                return None
            # heartbeats move the version all the time; this tells without building 10,000 rows that nothing here did
            fingerprint = _take_fingerprint(connection)
            changed = fingerprint != self._fingerprint
            registry = _take_registry(connection) if changed else None
        self._version, self._fingerprint = version, fingerprint
        return registry


def _open(path: Path) -> Engine:
    uri = f"file:{quote(str(path.absolute()))}?mode=ro"

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(uri, uri=True, timeout=_BUSY_SECONDS, check_same_thread=False)

    return create_engine("sqlite://", creator=connect, poolclass=StaticPool)


def _take_fingerprint(connection: Connection) -> tuple[object, ...]:
    d, t = devices.c, api_tokens.c
    found: list[object] = []
    for statement in (
        select(func.count(), func.total(d.enrolled), func.count(d.revoked), func.total(d.revoked)).select_from(devices),
        select(func.count(), func.total(t.created), func.total(t.revoked), func.total(t.expires)).select_from(
            api_tokens
        ),
        select(func.count(), func.total(sessions.c.expires)).select_from(sessions),
        select(func.count(), func.total(models.c.created)).select_from(models),
        select(func.count(), func.total(model_versions.c.created)).select_from(model_versions),
    ):
        found.extend(connection.execute(statement).one())
    return tuple(found)


def _take_registry(connection: Connection) -> Registry:
    d, t, v = devices.c, api_tokens.c, model_versions.c
    return Registry(
        devices={
            device: RegisteredDevice(tenant, key, revoked is not None)
            for device, tenant, key, revoked in connection.execute(select(d.id, d.tenant, d.public_key, d.revoked))
        },
        tokens={
            token: RegisteredToken(tenant, name, role, secret, expires, revoked is not None)
            for token, tenant, name, role, secret, expires, revoked in connection.execute(
                select(t.id, t.tenant, t.name, t.role, t.secret_sha256, t.expires, t.revoked)
            )
        },
        sessions={
            hashed: (token, expires)
            for hashed, token, expires in connection.execute(
                select(sessions.c.id_sha256, sessions.c.token_id, sessions.c.expires)
            )
        },
        models=frozenset((tenant, name) for tenant, name in connection.execute(select(models.c.tenant, models.c.name))),
        versions=frozenset(
            (tenant, model, str(version))
            for tenant, model, version in connection.execute(select(v.tenant, v.model, v.version))
        ),
    )
