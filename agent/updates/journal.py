"""What was decided, written down before it is done: executions, their transitions, bad builds, the position held.

Invariant: each method that changes something is one transaction, on the disk when the method returns (SQLite, WAL,
synchronous FULL). A journal that cannot be read is set aside as ``NAME.broken-TIME`` and begun anew; what runs stays
known, because that stands in links (`agent/builds/slots.py`). Does not decide what follows what (`machine.py`).
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

from agent import durable
from agent.errors import DeviceError
from agent.updates import machine
from wire.assignment import Item
from wire.execution import TERMINAL, ExecutionState
from wire.messages import Fault

SCHEMA_VERSION: Final = 1
KEPT_EXECUTIONS: Final = 20  # of a component, once they are done and reported
KEPT_BAD_BUILDS: Final = 500
KEPT_BROKEN: Final = 2

_SCHEMA: Final = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
CREATE TABLE executions (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    execution TEXT NOT NULL,
    component TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    item TEXT NOT NULL,
    state TEXT NOT NULL,
    outcome TEXT,
    fault TEXT,
    wish TEXT,
    done INTEGER NOT NULL DEFAULT 0,
    count INTEGER NOT NULL DEFAULT 0,
    starts INTEGER NOT NULL DEFAULT 0,
    spent REAL NOT NULL DEFAULT 0,
    since REAL NOT NULL,
    UNIQUE (component, epoch, generation)
);
CREATE TABLE transitions (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    execution TEXT NOT NULL,
    n INTEGER NOT NULL,
    component TEXT NOT NULL,
    generation INTEGER NOT NULL,
    origin TEXT NOT NULL,
    state TEXT NOT NULL,
    at REAL NOT NULL,
    detail TEXT NOT NULL,
    fault TEXT,
    figures TEXT NOT NULL,
    reported INTEGER NOT NULL DEFAULT 0,
    UNIQUE (execution, n)
);
CREATE INDEX transitions_unreported ON transitions (reported, id);
CREATE TABLE bad_builds (build TEXT PRIMARY KEY, reason TEXT NOT NULL, at REAL NOT NULL);
"""
_EXECUTIONS: Final = (
    "SELECT id, execution, component, epoch, generation, item, state, outcome, fault, wish, count, starts, spent, since"
    " FROM executions WHERE "
)
_TRANSITIONS: Final = (
    "SELECT id, execution, n, component, generation, origin, state, at, detail, fault, figures FROM transitions WHERE "
)


@dataclass(frozen=True, slots=True)
class Execution:
    """One row. ``wish``: CANCELED or SUPERSEDED once asked for. ``spent``: seconds in this state before a restart."""

    id: int
    execution: str
    component: str
    epoch: int
    generation: int
    item: Item
    state: ExecutionState
    outcome: ExecutionState | None
    fault: Fault | None
    wish: ExecutionState | None
    count: int
    starts: int
    spent: float
    since: float

    @property
    def model(self) -> str:
        """The model's name: the component without its kind."""
        return self.component.partition(":")[2]


@dataclass(frozen=True, slots=True)
class Transition:
    """One transition as it will be reported. ``n``: which one of its execution; with it the key of the report."""

    id: int
    execution: str
    n: int
    component: str
    generation: int
    origin: ExecutionState
    state: ExecutionState
    at: float
    detail: str
    fault: Fault | None
    figures: dict[str, float]

    @property
    def key(self) -> str:
        """The key under which the report is put into the outbox exactly once."""
        return f"{self.execution}/{self.n}"


class Journal:
    """The journal in the file ``path``. Raises DeviceError when the disk does not take it.

    rebuilt: the file could not be read and was begun anew. now: seconds since 1970.
    """

    def __init__(self, path: Path, now: Callable[[], float] = time.time) -> None:
        self._path = path
        self._now = now
        self._log = structlog.get_logger()
        self.rebuilt = False
        durable.make_directory(path.parent, "journal.mkdir")
        try:
            self._connection = self._open()
        except DeviceError as error:
            if error.code != "database_broken":
                raise
            self._set_aside(error)
            self._connection = self._open()
            self.rebuilt = True
            with self._write("journal.rebuilt") as c:  # keys of the lost journal must not be used a second time
                c.execute("INSERT OR REPLACE INTO facts VALUES ('first_n', ?)", (int(self._now()),))

    def close(self) -> None:
        """Close the file. What was not committed is gone."""
        self._connection.close()

    # What stands here

    def position(self) -> tuple[int, int]:
        """Return the (epoch, number) of the newest assignment taken; (0, 0) for none."""
        return self._fact("epoch"), self._fact("number")

    def unfinished(self, component: str | None = None) -> list[Execution]:
        """Return the executions that have not ended, oldest first, of one component or of all."""
        return self._executions("done = 0 AND ? IN ('', component) ORDER BY id", component or "")

    def newest(self, component: str) -> Execution | None:
        """Return the execution of the newest generation of ``component``."""
        found = self._executions("component = ? ORDER BY epoch DESC, generation DESC LIMIT 1", component)
        return found[0] if found else None

    def components(self) -> list[str]:
        """Return every component that the journal knows, sorted."""
        return [row[0] for row in self._read("SELECT DISTINCT component FROM executions ORDER BY component")]

    def bad_builds(self) -> dict[str, str]:
        """Return the builds that failed here through their own fault, each with the reason."""
        return dict(self._read("SELECT build, reason FROM bad_builds"))

    def unreported(self, limit: int = 100) -> list[Transition]:
        """Return the oldest transitions that are not in the outbox yet."""
        return self._transitions("reported = 0 ORDER BY id LIMIT ?", limit)

    def last(self, execution: str, state: ExecutionState) -> Transition | None:
        """Return the last transition of ``execution`` into ``state``."""
        found = self._transitions("execution = ? AND state = ? ORDER BY id DESC LIMIT 1", execution, state.value)
        return found[0] if found else None

    # What is written down

    def take(
        self, position: tuple[int, int], items: Sequence[Item], wishes: Collection[tuple[int, ExecutionState]]
    ) -> None:
        """Hold ``position``, begin an execution for each item, and note wishes (row id, CANCELED or SUPERSEDED)."""
        now = self._now()
        with self._write("journal.take") as c:
            c.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?)", zip(("epoch", "number"), position, strict=True))
            c.executemany(
                "INSERT INTO executions (execution, component, epoch, generation, item, state, since)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                [
                    (
                        i.execution,
                        i.component,
                        position[0],
                        i.generation,
                        msgspec.json.encode(i).decode(),
                        ExecutionState.IDLE.value,
                        now,
                    )
                    for i in items
                ],
            )
            c.executemany(
                "UPDATE executions SET wish = ? WHERE id = ? AND wish IS NULL",
                [(wish.value, row) for row, wish in wishes],
            )

    def transition(
        self,
        row: Execution,
        state: ExecutionState,
        outcome: ExecutionState | None,
        *,
        fault: Fault | None = None,
        detail: str = "",
        figures: dict[str, float] | None = None,
        bad: str | None = None,
    ) -> Execution:
        """Write down that ``row`` goes to ``state``, and return the row as it is then.

        fault: kept as the execution's cause unless it has one. bad: why the row's build must not come here again.
        """
        now = self._now()
        cause = row.fault or fault
        with self._write(f"journal.{state.value.lower()}") as c:
            c.execute(
                "UPDATE executions SET state = ?, outcome = ?, fault = ?, done = ?, since = ?,"
                " count = count + 1, spent = 0 WHERE id = ?",
                (state.value, outcome and outcome.value, _json(cause), state in TERMINAL, now, row.id),
            )
            ended = state in TERMINAL or state in machine.BACK or state is ExecutionState.CLEANUP
            c.execute(
                "INSERT INTO transitions"
                " (execution, n, component, generation, origin, state, at, detail, fault, figures)"
                " SELECT ?, 1 + coalesce(max(n), (SELECT value FROM facts WHERE name = 'first_n'), 0),"
                " ?, ?, ?, ?, ?, ?, ?, ?"
                " FROM transitions WHERE execution = ?",
                (row.execution, row.component, row.generation, row.state.value, state.value, now, detail[:4096],
                 _json(cause if ended else None), msgspec.json.encode(figures or {}).decode(), row.execution),
            )  # fmt: skip
            if bad is not None and row.item.build is not None:
                c.execute("INSERT OR REPLACE INTO bad_builds VALUES (?, ?, ?)", (row.item.build, bad[:1000], now))
                c.execute(
                    "DELETE FROM bad_builds WHERE build NOT IN (SELECT build FROM bad_builds ORDER BY at DESC LIMIT ?)",
                    (KEPT_BAD_BUILDS,),
                )
            if state in TERMINAL:
                _prune(c, row.component)
        return self._again(row)

    def resumed(self, row: Execution, state: ExecutionState) -> Execution:
        """Write down that a restart goes on with ``row`` in ``state``; in a risky state it counts as a transition."""
        risky = row.state in machine.RISKY
        with self._write("journal.resumed") as c:
            c.execute(
                "UPDATE executions SET state = ?, count = count + ? WHERE id = ?", (state.value, int(risky), row.id)
            )
        return self._again(row)

    def started(self, row: Execution) -> Execution:
        """Count one more start of the row's probation, before it starts."""
        with self._write("journal.started") as c:
            c.execute("UPDATE executions SET starts = starts + 1 WHERE id = ?", (row.id,))
        return self._again(row)

    def spend(self, row: Execution, seconds: float) -> None:
        """Note how long the row's state has taken so far, so that its deadline outlives a restart."""
        with self._write("journal.spent") as c:
            c.execute("UPDATE executions SET spent = ? WHERE id = ? AND state = ?", (seconds, row.id, row.state.value))

    def wish(self, row: Execution, wish: ExecutionState) -> None:
        """Note that ``row`` is withdrawn (CANCELED or SUPERSEDED). The first wish stays."""
        with self._write("journal.wish") as c:
            c.execute("UPDATE executions SET wish = ? WHERE id = ? AND wish IS NULL", (wish.value, row.id))

    def reported(self, transitions: Sequence[Transition]) -> None:
        """Note that these are in the outbox."""
        with self._write("journal.reported") as c:
            c.executemany("UPDATE transitions SET reported = 1 WHERE id = ?", [(t.id,) for t in transitions])

    def refresh(self, row: Execution) -> Execution:
        """Return ``row`` as it stands now."""
        return self._again(row)

    # How

    def _open(self) -> sqlite3.Connection:
        try:
            connection = sqlite3.connect(self._path, isolation_level=None, timeout=5)
        except sqlite3.Error as error:
            raise durable.database_error(error) from error
        try:
            self._path.chmod(0o600)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            [[verdict]] = connection.execute("PRAGMA quick_check(1)").fetchall()
            [[version]] = connection.execute("PRAGMA user_version").fetchall()
            if verdict != "ok" or version not in (0, SCHEMA_VERSION):
                raise DeviceError(f"{self._path}: {verdict}, schema {version}; it will be set aside", "database_broken")
            if version == 0:
                connection.execute("BEGIN IMMEDIATE")
                for statement in _SCHEMA.split(";\n"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
                durable.commit(connection, "journal.schema")
            self._connection = connection
            self.unfinished()  # a row that cannot be understood is found now, not in the middle of an update
            self.unreported()
        except sqlite3.Error as error:
            connection.close()
            raise durable.database_error(error) from error
        except BaseException:
            connection.close()
            raise
        return connection

    def _set_aside(self, error: DeviceError) -> None:
        aside = self._path.with_name(f"{self._path.name}.broken-{int(self._now())}")
        self._log.error("update journal is broken and was begun anew", path=str(aside), reason=str(error))
        for suffix in ("-wal", "-shm"):
            durable.remove(self._path.with_name(self._path.name + suffix), "journal.aside")
        durable.replace(self._path, aside, "journal.aside")
        for old in sorted(self._path.parent.glob(f"{self._path.name}.broken-*"))[:-KEPT_BROKEN]:
            durable.remove(old, "journal.aside")

    @contextmanager
    def _write(self, point: str) -> Iterator[sqlite3.Connection]:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            yield self._connection
            durable.commit(self._connection, point)
        except sqlite3.Error as error:
            raise durable.database_error(error) from error
        finally:
            if self._connection.in_transaction:
                with suppress(sqlite3.Error):
                    self._connection.rollback()

    def _read(self, statement: str, *values: Any) -> list[Any]:
        try:
            with closing(self._connection.execute(statement, values)) as cursor:
                return cursor.fetchall()
        except sqlite3.Error as error:
            raise durable.database_error(error) from error

    def _fact(self, name: str) -> int:
        found = self._read("SELECT value FROM facts WHERE name = ?", name)
        return int(found[0][0]) if found else 0

    def _executions(self, where: str, *values: Any) -> list[Execution]:
        rows = self._read(_EXECUTIONS + where, *values)
        try:
            return [
                Execution(
                    row_id, execution, component, epoch, generation, msgspec.json.decode(item, type=Item),
                    ExecutionState(state), outcome and ExecutionState(outcome), _fault(fault),
                    wish and ExecutionState(wish), count, starts, spent, since,
                )
                for row_id, execution, component, epoch, generation, item, state, outcome, fault, wish, count, starts,
                    spent, since in rows
            ]  # fmt: skip
        except (ValueError, TypeError, msgspec.MsgspecError) as error:
            raise DeviceError(f"{self._path}: an execution cannot be read: {error}", "database_broken") from error

    def _transitions(self, where: str, *values: Any) -> list[Transition]:
        rows = self._read(_TRANSITIONS + where, *values)
        try:
            return [
                Transition(
                    row_id, execution, n, component, generation, ExecutionState(origin), ExecutionState(state), at,
                    detail, _fault(fault), msgspec.json.decode(figures, type=dict[str, float]),
                )
                for row_id, execution, n, component, generation, origin, state, at, detail, fault, figures in rows
            ]  # fmt: skip
        except (ValueError, TypeError, msgspec.MsgspecError) as error:
            raise DeviceError(f"{self._path}: a transition cannot be read: {error}", "database_broken") from error

    def _again(self, row: Execution) -> Execution:
        [again] = self._executions("id = ?", row.id)
        return again


def _prune(c: sqlite3.Connection, component: str) -> None:
    """Drop what is done, reported and old. The newest stays: it says which generation the device has taken."""
    c.execute(
        "DELETE FROM executions WHERE component = ?1 AND done = 1 AND id NOT IN"
        " (SELECT id FROM executions WHERE component = ?1 ORDER BY epoch DESC, generation DESC LIMIT ?2)",
        (component, KEPT_EXECUTIONS),
    )
    c.execute(
        "DELETE FROM transitions WHERE component = ? AND reported = 1"
        " AND execution NOT IN (SELECT execution FROM executions)",
        (component,),
    )


def _json(fault: Fault | None) -> str | None:
    return None if fault is None else msgspec.json.encode(fault).decode()


def _fault(text: str | None) -> Fault | None:
    return None if text is None else msgspec.json.decode(text, type=Fault)
