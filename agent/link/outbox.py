"""Messages that must arrive once, on disk until the controller has them (wire 4.2).

Invariant: what ``put`` returned for survives a power cut and is handed out, in order, until an ``Ack`` covers it; the
same key is never taken twice. What the broker acknowledges means nothing here. Execution reports are never dropped;
health reports are, oldest first, when they outgrow their bound. Does not send anything (`session.py`).

A file that SQLite cannot read is set aside as ``NAME.broken-TIME``, and a new stream begins.
"""

from __future__ import annotations

import contextlib
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

from agent import durable
from agent.errors import DeviceError
from wire import codec, topics
from wire.errors import WireError
from wire.messages import Health, Sequenced
from wire.topics import Channel

MAX_HEALTH_ROWS: Final = 4096
MAX_HEALTH_BYTES: Final = 16 * 1024**2
KEPT_KEYS: Final = 10_000  # of each message type, after their acknowledgement
_KEPT_BROKEN: Final = 2
_SLACK: Final = 64  # bytes that stream, sequence and previous may grow by when a row is sent
_KINDS: Final[dict[str, tuple[type[Sequenced], Channel]]] = {
    channel.message.__name__: (channel.message, channel)
    for channel in topics.CHANNELS
    if channel.message is not None and issubclass(channel.message, Sequenced)
}
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS marks (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS messages (
    sequence INTEGER PRIMARY KEY, kind TEXT NOT NULL, key TEXT NOT NULL, size INTEGER NOT NULL, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS keys (key TEXT PRIMARY KEY, kind TEXT NOT NULL, sequence INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS keys_by_age ON keys (kind, sequence);
CREATE INDEX IF NOT EXISTS messages_by_kind ON messages (kind, size);
"""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Waiting:
    """One message that is not acknowledged, encoded as it is to be sent."""

    sequence: int
    channel: Channel
    payload: bytes


class Outbox:
    """The queue in one SQLite file. May be used from any thread; each call is one short transaction."""

    def __init__(self, path: Path, *, health_rows: int = MAX_HEALTH_ROWS, health_bytes: int = MAX_HEALTH_BYTES) -> None:
        """Open or make the file at ``path``. Raises DeviceError when the directory cannot be written."""
        self._path = path
        self._health_rows = health_rows
        self._health_bytes = health_bytes
        self._lock = threading.Lock()
        self.on_put: Callable[[], None] = lambda: None
        durable.make_directory(path.parent, "outbox.directory")
        try:
            self._connection = self._open()
        except sqlite3.DatabaseError as error:
            failure = durable.database_error(error)
            if failure.code != "database_broken":
                raise failure from error
            self._set_aside()
            _log.error("outbox was broken and is set aside; reports in it are lost", path=str(path), error=str(error))
            try:
                self._connection = self._open()
            except sqlite3.Error as again:
                raise durable.database_error(again) from again

    @property
    def stream(self) -> str:
        """The random id of this outbox (wire 4.2)."""
        with self._reading():
            return str(self._mark("stream"))

    def put(self, message_type: type[Sequenced], fields: dict[str, Any], key: str) -> None:
        """Keep a message until it is acknowledged; nothing happens where ``key`` was put before.

        ``fields`` are those of ``message_type`` without stream, sequence and previous. Texts that are too long for the
        message are cut. Raises DeviceError: "bad_message" or the code of what the disk said.
        """
        _, channel = _KINDS[message_type.__name__]
        message = _fitting(message_type, channel, fields)
        body = codec.encode(message)
        with self._writing("outbox.put") as c:
            if c.execute("SELECT 1 FROM keys WHERE key = ?", (key,)).fetchone():
                return
            sequence = int(self._mark("last")) + 1
            self._set_mark("last", sequence)
            values = (sequence, message_type.__name__, key, len(body), body)
            c.execute("INSERT INTO messages (sequence, kind, key, size, body) VALUES (?, ?, ?, ?, ?)", values)
            c.execute("INSERT INTO keys (key, kind, sequence) VALUES (?, ?, ?)", (key, message_type.__name__, sequence))
            if message_type is Health:
                self._evict()
        self.on_put()

    def pending(self) -> int:
        """Return how many messages are not acknowledged."""
        with self._reading() as c:
            return int(c.execute("SELECT count(*) FROM messages").fetchone()[0])

    def sent_and_waiting(self, position: int) -> int:
        """Return how many messages up to sequence ``position`` are not acknowledged."""
        with self._reading() as c:
            return int(c.execute("SELECT count(*) FROM messages WHERE sequence <= ?", (position,)).fetchone()[0])

    def waiting(self, after: int, limit: int, *, anew: bool = False) -> list[Waiting]:
        """Return the next ``limit`` messages above sequence ``after``, in order.

        Each names the one before it that is still here, the first of all the last acknowledged one. With ``anew`` the
        first names none, so that a controller that went back to an older state takes the rest instead of a gap.
        """
        found: list[Waiting] = []
        with self._reading() as c:
            stream = str(self._mark("stream"))
            before = c.execute("SELECT max(sequence) FROM messages WHERE sequence <= ?", (after,)).fetchone()[0]
            previous = int(before or (0 if anew else self._mark("acked")))
            rows = c.execute("SELECT sequence, kind, body FROM messages WHERE sequence > ? ORDER BY sequence", (after,))
            while len(found) < limit and (row := rows.fetchone()) is not None:
                sequence, kind, body = row
                try:
                    message_type, channel = _KINDS[kind]
                    message = codec.decode(message_type, body, channel.limit)
                except (KeyError, WireError) as error:  # another version wrote it: the next acknowledgement removes it
                    _log.error("outbox row cannot be read and is skipped", sequence=sequence, error=str(error))
                    continue
                message = msgspec.structs.replace(message, stream=stream, sequence=sequence, previous=previous)
                found.append(Waiting(sequence, channel, codec.encode(message)))
                previous = sequence
            rows.close()
        return found

    def acknowledge(self, stream: str, sequence: int) -> bool:
        """Forget everything up to ``sequence``; return whether that was news.

        An acknowledgement of another stream means nothing. One of something that was never put means that this file
        went back to an older state (a restored backup, a disk that lied): its sequences are used up, so that what
        waits goes on under a new stream. Raises DeviceError.
        """
        with self._writing("outbox.acknowledge") as c:
            if stream != self._mark("stream") or sequence <= int(self._mark("acked")):
                return False
            if sequence > int(self._mark("last")):
                self._renew()
                return True
            self._set_mark("acked", sequence)
            c.execute("DELETE FROM messages WHERE sequence <= ?", (sequence,))
            for kind in _KINDS:
                c.execute(
                    "DELETE FROM keys WHERE kind = ? AND sequence <= ? AND sequence <= "
                    "(SELECT sequence FROM keys WHERE kind = ? ORDER BY sequence DESC LIMIT 1 OFFSET ?)",
                    (kind, sequence, kind, KEPT_KEYS),
                )
        return True

    def acked(self, key: str) -> bool:
        """Return whether the controller has acknowledged the message that was put with ``key``."""
        with self._reading() as c:
            row = c.execute("SELECT sequence FROM keys WHERE key = ?", (key,)).fetchone()
            return row is not None and int(row[0]) <= int(self._mark("acked"))

    def begin_session(self) -> int:
        """Return the number of the connection that is about to begin: it grows, also over restarts (wire 4.3)."""
        with self._writing("outbox.session"):
            number = int(self._mark("session")) + 1
            self._set_mark("session", number)
        return number

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, check_same_thread=False, isolation_level=None, timeout=5.0)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA journal_size_limit = 1048576")
            answer = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            if answer != "ok":
                raise _broken(str(answer))
            connection.executescript(_SCHEMA)
            connection.execute("BEGIN IMMEDIATE")
            marks = {"stream": secrets.token_hex(16), "last": 0, "acked": 0, "session": 0}
            connection.executemany("INSERT OR IGNORE INTO marks (name, value) VALUES (?, ?)", marks.items())
            durable.commit(connection, "outbox.open")
        except BaseException:
            connection.close()
            raise
        return connection

    def _set_aside(self) -> None:
        name = self._path.name
        older = sorted(self._path.parent.glob(f"{name}.broken-*"))
        for path in older[: max(len(older) - _KEPT_BROKEN + 1, 0)]:
            durable.remove(path, "outbox.broken_old")
        # the log and the index go first: a new database must never meet the old one's log
        for suffix in ("-wal", "-shm"):
            durable.remove(self._path.with_name(name + suffix), "outbox.broken_log")
        durable.replace(self._path, self._path.with_name(f"{name}.broken-{time.time_ns()}"), "outbox.broken")

    def _mark(self, name: str) -> Any:
        return self._connection.execute("SELECT value FROM marks WHERE name = ?", (name,)).fetchone()[0]

    def _set_mark(self, name: str, value: object) -> None:
        self._connection.execute("UPDATE marks SET value = ? WHERE name = ?", (value, name))

    def _evict(self) -> None:
        kind = Health.__name__
        rows, size = self._connection.execute(
            "SELECT count(*), coalesce(sum(size), 0) FROM messages WHERE kind = ?", (kind,)
        ).fetchone()
        dropped = 0
        while rows > 1 and (rows > self._health_rows or size > self._health_bytes):
            sequence, key, row_size = self._connection.execute(
                "SELECT sequence, key, size FROM messages WHERE kind = ? ORDER BY sequence LIMIT 1", (kind,)
            ).fetchone()
            self._connection.execute("DELETE FROM messages WHERE sequence = ?", (sequence,))
            self._connection.execute("DELETE FROM keys WHERE key = ?", (key,))
            rows, size, dropped = rows - 1, size - row_size, dropped + 1
        if dropped:
            _log.debug("outbox is full; oldest health reports dropped", dropped=dropped)

    def _renew(self) -> None:
        c = self._connection
        waiting = [row[0] for row in c.execute("SELECT sequence FROM messages ORDER BY sequence")]
        c.execute("UPDATE keys SET sequence = 0 WHERE sequence <= ?", (self._mark("acked"),))
        for number, sequence in enumerate(waiting, start=1):  # ascending, so that no two rows ever meet
            c.execute("UPDATE messages SET sequence = ? WHERE sequence = ?", (number, sequence))
            c.execute("UPDATE keys SET sequence = ? WHERE sequence = ?", (number, sequence))
        for name, value in (("stream", secrets.token_hex(16)), ("last", len(waiting)), ("acked", 0)):
            self._set_mark(name, value)
        _log.warning("outbox went back to an older state; a new stream begins", waiting=len(waiting))

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                yield self._connection
            except sqlite3.Error as error:
                raise durable.database_error(error) from error

    @contextlib.contextmanager
    def _writing(self, point: str) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                yield self._connection
            except sqlite3.Error as error:
                raise durable.database_error(error) from error
            else:
                durable.commit(self._connection, point)
            finally:
                if self._connection.in_transaction:
                    with contextlib.suppress(sqlite3.Error):
                        self._connection.rollback()


def _broken(reason: str) -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError(reason)
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


def _fitting(message_type: type[Sequenced], channel: Channel, fields: dict[str, Any]) -> Sequenced:
    """Return the message, with its long texts cut until it fits its channel. The end of a log says most: it stays."""
    plain = msgspec.to_builtins(fields) | {"stream": "-" * 32, "sequence": 1, "previous": 0}
    fault = plain.get("fault") or {}
    for allowed in (4096, 1024, 256):
        for holder, name in ((plain, "detail"), (fault, "message")):
            if name in holder:
                holder[name] = str(holder[name])[:allowed]
        if "log_tail" in fault:
            fault["log_tail"] = str(fault["log_tail"])[-2 * allowed :]
        try:
            message = msgspec.convert(plain, message_type)
        except msgspec.ValidationError as error:
            raise DeviceError(f"{message_type.__name__}: {error}", "bad_message") from error
        if len(codec.encode(message)) <= channel.limit - _SLACK:
            return message
    raise DeviceError(f"{message_type.__name__} is larger than {channel.limit} bytes", "bad_message")
