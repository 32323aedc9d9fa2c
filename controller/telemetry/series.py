"""`series.db`: what devices measured, as windows over time.

Invariant: one message is stored once, however often it arrives (``write`` keeps the highest sequence of each device's
stream); the file stays below its bound: raw windows are kept for a day, minutes for a week, hours for 90 days, and
less of each when the bound is near. A device has a bounded number of series: those without points go, and those that
were silent for a week make room for new ones. Roll-ups are brought up to date with each write, so late windows count.
In them p50 is the mean of the windows' medians weighted by samples, p95 and p99 the largest of the windows' own.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from controller.errors import UnavailableError
from controller.telemetry.plausible import plausible
from wire.messages import Health, Window

RAW_SECONDS: Final = 86_400.0
MINUTE_SECONDS: Final = 7 * 86_400.0
HOUR_SECONDS: Final = 90 * 86_400.0
KEPT: Final = (  # by table: seconds, and the fewest of them when the file's bound is near
    ("raw", RAW_SECONDS, 3600.0),
    ("minute", MINUTE_SECONDS, 86_400.0),
    ("hour", HOUR_SECONDS, 7 * 86_400.0),
)
SILENT_SECONDS: Final = 7 * 86_400.0  # after which a series makes room for another
MAX_BYTES: Final = 4 * 1024**3
MAX_SERIES: Final = 512  # of one device
MAX_POINTS: Final = 5000  # in one answer
EARLIEST: Final = 30 * 86_400.0  # windows further from now than these are a wrong clock
LATEST: Final = 86_400.0
_KNOWN: Final = 200_000  # series ids in memory
_STEPS: Final = (("hour", 3600), ("minute", 60))

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS series (
    id INTEGER PRIMARY KEY, device TEXT NOT NULL, name TEXT NOT NULL, labels TEXT NOT NULL,
    UNIQUE (device, name, labels));
CREATE TABLE IF NOT EXISTS stored (
    device TEXT PRIMARY KEY, stream TEXT NOT NULL, sequence INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS raw (
    series INTEGER NOT NULL, start REAL NOT NULL, seconds REAL NOT NULL, count INTEGER NOT NULL, total REAL NOT NULL,
    minimum REAL, maximum REAL, p50 REAL, p95 REAL, p99 REAL, PRIMARY KEY (series, start)) WITHOUT ROWID;
"""
_ROLLED: Final = """
CREATE TABLE IF NOT EXISTS {table} (
    series INTEGER NOT NULL, start REAL NOT NULL, count INTEGER NOT NULL, total REAL NOT NULL,
    minimum REAL, maximum REAL, p50_total REAL NOT NULL, p50_count INTEGER NOT NULL, p95 REAL, p99 REAL,
    PRIMARY KEY (series, start)) WITHOUT ROWID
"""
_INSERT: Final = "INSERT OR REPLACE INTO raw VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_ADD: Final = """
INSERT INTO {table} VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (series, start) DO UPDATE SET
    count = count + excluded.count, total = total + excluded.total,
    minimum = min(ifnull(minimum, excluded.minimum), ifnull(excluded.minimum, minimum)),
    maximum = max(ifnull(maximum, excluded.maximum), ifnull(excluded.maximum, maximum)),
    p50_total = p50_total + excluded.p50_total, p50_count = p50_count + excluded.p50_count,
    p95 = max(ifnull(p95, excluded.p95), ifnull(excluded.p95, p95)),
    p99 = max(ifnull(p99, excluded.p99), ifnull(excluded.p99, p99))
"""

_DROP_EMPTY: Final = """
DELETE FROM series WHERE NOT EXISTS (SELECT 1 FROM raw WHERE raw.series = series.id)
    AND NOT EXISTS (SELECT 1 FROM minute WHERE minute.series = series.id)
    AND NOT EXISTS (SELECT 1 FROM hour WHERE hour.series = series.id)
"""
_SILENT: Final = """
SELECT id FROM series WHERE device = ?
    AND NOT EXISTS (SELECT 1 FROM hour WHERE hour.series = series.id AND hour.start >= ?)
"""


@dataclass(frozen=True, slots=True)
class Point:
    """One step of a series; ``start`` in seconds since 1970. Values are None where nothing was measured."""

    start: float
    count: int
    mean: float | None
    minimum: float | None
    maximum: float | None
    p50: float | None
    p95: float | None
    p99: float | None


class Series:
    """The file at ``path``. Safe to use from any thread; one writer at a time. Raises UnavailableError throughout.

    counts: "stored" windows, "repeated" messages, and windows refused: "wrong_clock", "too_many_series", "impossible".
    """

    def __init__(self, path: Path, max_bytes: int = MAX_BYTES) -> None:
        self.counts: Counter[str] = Counter()
        self._path = path
        self._max_bytes = max_bytes
        self._lock, self._read_lock = threading.Lock(), threading.Lock()
        self._known: dict[tuple[str, str, str], int] = {}
        self._full: set[str] = set()  # devices that had no room left in this transaction
        self._touched: set[int] = set()  # series that get points in this transaction
        with self._explained():
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            self._writer = _open(path)
            for statement in (_SCHEMA, *(_ROLLED.format(table=table) + ";" for table, _ in _STEPS)):
                self._writer.executescript(statement)
            self._reader = _open(path)

    def write(self, messages: Iterable[tuple[str, Health]], now: float) -> None:
        """Store the windows of (device, message) in one transaction; a message that is there already is skipped."""
        with self._transaction() as cursor:
            raw: list[tuple[Any, ...]] = []
            for device, message in messages:
                if self._is_new(cursor, device, message):
                    raw.extend(self._rows(cursor, device, message.windows, now))
                else:
                    self.counts["repeated"] += 1
            cursor.executemany(_INSERT, raw)
            for table, step in _STEPS:
                cursor.executemany(_ADD.format(table=table), (_rolled(row, step) for row in raw))
        self.counts["stored"] += len(raw)

    def add(self, key: str, windows: Sequence[Window], now: float) -> None:
        """Store windows that the controller measured itself under a ``key`` that is no device's id."""
        with self._transaction() as cursor:
            raw = list(self._rows(cursor, key, windows, now))
            cursor.executemany(_INSERT, raw)
            for table, step in _STEPS:
                cursor.executemany(_ADD.format(table=table), (_rolled(row, step) for row in raw))

    def query(self, device: str, name: str, since: float, until: float, step: float) -> list[dict[str, Any]]:
        """Return [{labels, step, points}] of every series ``name`` of ``device`` in [since, until), by steps.

        step: seconds, at least 1; made larger where the answer would have more than ``MAX_POINTS``.
        """
        step = max(step, 1.0, (until - since) / MAX_POINTS)
        table = next((table for table, size in _STEPS if step >= size), "raw")
        with self._read_lock, self._explained(), closing(self._reader.cursor()) as cursor:
            found = cursor.execute(
                "SELECT id, labels FROM series WHERE device = ? AND name = ? ORDER BY labels", (device, name)
            ).fetchall()
            return [
                {
                    "labels": json.loads(labels),
                    "step": step,
                    "points": [Point(*row) for row in cursor.execute(_points(table), (step, step, id_, since, until))],
                }
                for id_, labels in found
            ]

    def names(self, device: str) -> list[str]:
        """Return the names of a device's series."""
        with self._read_lock, self._explained(), closing(self._reader.cursor()) as cursor:
            rows = cursor.execute("SELECT DISTINCT name FROM series WHERE device = ? ORDER BY name", (device,))
            return [row[0] for row in rows]

    def prune(self, now: float) -> None:
        """Drop what is older than its time, and more of the oldest while the file is beyond its bound."""
        with self._transaction() as cursor:
            for table, seconds, _ in KEPT:
                _drop(cursor, table, now - seconds)
            for table, seconds, fewest in KEPT:
                keep = seconds
                while _used(cursor) > self._max_bytes and keep > fewest:
                    keep /= 2
                    _drop(cursor, table, now - keep)
            cursor.execute(_DROP_EMPTY)
            self._known.clear()

    def used(self) -> int:
        """Return how many bytes of the file are in use."""
        with self._read_lock, self._explained(), closing(self._reader.cursor()) as cursor:
            return _used(cursor)

    def close(self) -> None:
        """Close the file."""
        with self._lock, self._read_lock:
            self._reader.close()
            self._writer.close()

    def _is_new(self, cursor: sqlite3.Cursor, device: str, message: Health) -> bool:
        held = cursor.execute("SELECT stream, sequence FROM stored WHERE device = ?", (device,)).fetchone()
        if held is not None and held[0] == message.stream and held[1] >= message.sequence:
            return False
        cursor.execute("INSERT OR REPLACE INTO stored VALUES (?, ?, ?)", (device, message.stream, message.sequence))
        return True

    def _rows(
        self, cursor: sqlite3.Cursor, device: str, windows: Sequence[Window], now: float
    ) -> Iterator[tuple[Any, ...]]:
        for window in windows:
            if not plausible(window):
                self.counts["impossible"] += 1
                continue
            if not now - EARLIEST <= window.start <= now + LATEST:
                self.counts["wrong_clock"] += 1
                continue
            id_ = self._series_id(cursor, device, window, now)
            if id_ is None:
                self.counts["too_many_series"] += 1
                continue
            self._touched.add(id_)
            w = window
            yield id_, w.start, w.seconds, w.count, w.total, w.minimum, w.maximum, w.p50, w.p95, w.p99

    def _series_id(self, cursor: sqlite3.Cursor, device: str, window: Window, now: float) -> int | None:
        key = (device, window.name, json.dumps(window.labels, sort_keys=True, separators=(",", ":")))
        known = self._known.get(key)
        if known is not None:
            return known
        row = cursor.execute("SELECT id FROM series WHERE device = ? AND name = ? AND labels = ?", key).fetchone()
        if row is None:
            if not self._has_room(cursor, device, now):
                return None
            cursor.execute("INSERT INTO series (device, name, labels) VALUES (?, ?, ?)", key)
            row = (cursor.lastrowid,)
        if len(self._known) >= _KNOWN:
            self._known.clear()
        self._known[key] = int(row[0])
        return self._known[key]

    def _has_room(self, cursor: sqlite3.Cursor, device: str, now: float) -> bool:
        count = "SELECT count(*) FROM series WHERE device = ?"
        if cursor.execute(count, (device,)).fetchone()[0] < MAX_SERIES:
            return True
        if device in self._full:
            return False
        found = cursor.execute(_SILENT, (device, now - SILENT_SECONDS)).fetchall()
        silent = [row[0] for row in found if row[0] not in self._touched]
        for table in ("raw", "minute", "hour"):
            cursor.executemany(f"DELETE FROM {table} WHERE series = ?", ((id_,) for id_ in silent))  # noqa: S608
        cursor.executemany("DELETE FROM series WHERE id = ?", ((id_,) for id_ in silent))
        self._known.clear()
        if not silent:
            self._full.add(device)
        return bool(silent)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Cursor]:
        with self._lock, self._explained(), closing(self._writer.cursor()) as cursor:
            cursor.execute("BEGIN IMMEDIATE")
            self._full.clear()
            self._touched.clear()
            try:
                yield cursor
            except BaseException:
                cursor.execute("ROLLBACK")
                self._known.clear()  # ids given in what was rolled back
                raise
            cursor.execute("COMMIT")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise UnavailableError(f"series database {self._path}: {error}", "series_unusable") from error


def _open(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=5.0, isolation_level=None, check_same_thread=False)
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL"):
        connection.execute(f"PRAGMA {pragma}")
    return connection


def _rolled(row: tuple[Any, ...], step: int) -> tuple[Any, ...]:
    series, start, _, count, total, minimum, maximum, p50, p95, p99 = row
    weighted, weight = (0.0, 0) if p50 is None else (p50 * count, count)
    return series, start - start % step, count, total, minimum, maximum, weighted, weight, p95, p99


def _points(table: str) -> str:
    # the table is one of the three of this file, never a word from outside
    if table == "raw":
        median = "sum(p50 * count) / nullif(sum(iif(p50 IS NULL, 0, count)), 0)"
    else:
        median = "sum(p50_total) / nullif(sum(p50_count), 0)"
    columns = (
        f"sum(count), sum(total) / nullif(sum(count), 0), min(minimum), max(maximum), {median}, max(p95), max(p99)"
    )
    return (
        f"SELECT CAST(start / ? AS INTEGER) * ? AS slot, {columns} FROM {table}"  # noqa: S608 - the table is one of the three of this file
        " WHERE series = ? AND start >= ? AND start < ? GROUP BY slot ORDER BY slot"
    )


def _drop(cursor: sqlite3.Cursor, table: str, before: float) -> None:
    # by series, so that the primary key finds the rows
    cursor.execute(f"DELETE FROM {table} WHERE series IN (SELECT id FROM series) AND start < ?", (before,))  # noqa: S608 - as above


def _used(cursor: sqlite3.Cursor) -> int:
    pages, free, size = (
        cursor.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size)
