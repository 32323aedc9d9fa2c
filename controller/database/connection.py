"""`state.db`: one SQLite file, opened the same way everywhere.

Invariant: a write transaction holds the write lock from its first statement (`BEGIN IMMEDIATE`), so it never fails half
way because another writer came first; what ``begin`` has committed survives a power cut (WAL, synchronous FULL).
Knows no table and no statement: those stand in the features' `store.py`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import structlog
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DatabaseError, OperationalError
from sqlalchemy.exc import TimeoutError as NoConnectionError

from controller.database import schema
from controller.errors import ControllerError, InvalidError, UnavailableError

BUSY_SECONDS: Final = 5.0
_BEGIN: Final = "muster_begin"  # execution option: the word after BEGIN

log = structlog.get_logger()


class Database:
    """The database in the file ``path`` (made with mode 0600 when it is missing). Safe to use from any thread.

    Raises ConflictError (code "newer_schema") when a newer version of this program has migrated the file, and
    UnavailableError (code "database_unusable") when the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        except OSError as error:
            raise UnavailableError(
                f"database {path}: {error}; check the data directory", "database_unusable"
            ) from error
        self._engine = _engine(path)
        self._write_lock = threading.Lock()
        self._subscribers: list[Callable[[], None]] = []
        with self.read() as connection:
            schema.refuse_newer(connection)

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """Yield a connection inside a write transaction; commit at the end, roll back when the block raises.

        One writer at a time: waits at most ``BUSY_SECONDS``, then raises UnavailableError (code "database_busy"). Not
        to be nested, and never to be held across an ``await``.
        """
        # SQLite's own waiting is unfair between the threads of one process; the lock queues them.
        if not self._write_lock.acquire(timeout=BUSY_SECONDS):
            raise UnavailableError(f"database {self.path} is busy: try again", "database_busy")
        try:
            with self._connection("IMMEDIATE") as connection:
                yield connection
        finally:
            self._write_lock.release()
        self._notify()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Yield a connection that sees one consistent state and is rolled back at the end: writes in it are lost."""
        with self._connection("DEFERRED") as connection:
            yield connection

    def migrate(self) -> None:
        """Bring the schema up to this program's version, all of it or nothing. Raises as the constructor does."""
        with self.begin() as connection:
            schema.refuse_newer(connection)
            schema.upgrade(connection)

    def subscribe(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` after each commit of ``begin`` in this process, in the committing thread.

        What it raises is logged, not passed on: the commit has already happened.
        """
        self._subscribers.append(callback)

    def close(self) -> None:
        """Close all idle connections; folds the write-ahead log into the file."""
        self._engine.dispose()

    @contextmanager
    def _connection(self, kind: str) -> Iterator[Connection]:
        try:
            with self._engine.connect() as plain:
                connection = plain.execution_options(**{_BEGIN: kind})
                transaction = connection.begin()
                try:
                    yield connection
                except BaseException:
                    transaction.rollback()
                    raise
                if kind == "IMMEDIATE":
                    transaction.commit()
                else:
                    transaction.rollback()
        except OperationalError as error:
            raise _explained(self.path, error) from error
        except NoConnectionError as error:
            raise UnavailableError(f"database {self.path} is busy: try again", "database_busy") from error
        except OverflowError as error:
            raise InvalidError("a number in this request is larger than any that is stored", "too_large") from error
        except DatabaseError as error:
            if "not a database" in str(error.orig) or "malformed" in str(error.orig):
                raise UnavailableError(
                    f"database {self.path} is damaged: {error.orig}; restore a backup", "database_unusable"
                ) from error
            raise

    def _notify(self) -> None:
        for callback in tuple(self._subscribers):
            try:
                callback()
            except Exception:
                log.exception("a subscriber of the database failed")


def _engine(path: Path) -> Engine:
    engine = create_engine(
        f"sqlite:///{path}",
        connect_args={"timeout": BUSY_SECONDS},
        pool_size=8,
        max_overflow=32,
        pool_timeout=BUSY_SECONDS,
    )

    @event.listens_for(engine, "connect")
    def prepare(driver_connection: Any, _record: Any) -> None:
        driver_connection.isolation_level = None  # the driver's own BEGIN comes too late; `begin` below does it
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "trusted_schema=OFF"):
            driver_connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        kind = connection.get_execution_options().get(_BEGIN, "DEFERRED")
        connection.exec_driver_sql(f"BEGIN {kind}")

    return engine


def _explained(path: Path, error: OperationalError) -> ControllerError | OperationalError:
    cause = str(error.orig)
    if "locked" in cause or "busy" in cause:
        return UnavailableError(f"database {path} is busy: try again", "database_busy")
    if "full" in cause:
        return UnavailableError(f"no space left for {path}: make room and try again", "disk_full")
    if "readonly" in cause or "unable to open" in cause or "disk I/O" in cause:
        return UnavailableError(f"database {path}: {cause}; check the disk and its rights", "database_unusable")
    return error
