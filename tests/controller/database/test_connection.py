"""The database: durable settings, write transactions, migrations that match the tables."""

from __future__ import annotations

import contextlib
import sqlite3
import stat
import threading
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import func, insert, select, text
from sqlalchemy.exc import IntegrityError

from controller.database import connection as connection_module
from controller.database import schema
from controller.database.connection import Database
from controller.database.tables import join_tokens, metadata, tenants
from controller.errors import ConflictError, InvalidError, UnavailableError


@pytest.fixture
def db(tmp_path: Path) -> Database:
    database = Database(tmp_path / "data" / "state.db")
    database.migrate()
    return database


def count(db: Database) -> int:
    with db.read() as c:
        return c.execute(select(func.count()).select_from(tenants)).scalar_one()


def test_a_migrated_database_has_exactly_the_tables(db: Database) -> None:
    with db.read() as c:
        context = MigrationContext.configure(c, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
        made = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
        assert set(c.scalars(text(made))) == set(metadata.tables) | {"alembic_version"}


def test_the_comparison_sees_drift(db: Database) -> None:
    with db.begin() as c:
        c.execute(text("ALTER TABLE tenants ADD COLUMN surprise TEXT"))
    with db.read() as c:
        assert compare_metadata(MigrationContext.configure(c), metadata) != []


def test_constraints_are_those_of_the_tables(db: Database, tmp_path: Path) -> None:
    made = Database(tmp_path / "made.db")
    with made.begin() as c:
        metadata.create_all(c)
    query = "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL AND name != 'alembic_version'"

    def shape(database: Database) -> dict[str, set[str]]:
        with database.read() as c:
            rows = c.execute(text(query)).all()
        return {row.name: {part.strip(" \t),") for part in row.sql.split("\n")} for row in rows}

    assert shape(db) == shape(made)


def test_settings_of_each_connection(db: Database) -> None:
    with db.read() as c:
        read = {name: c.execute(text(f"PRAGMA {name}")).scalar_one() for name in ("journal_mode", "synchronous")}
        assert read == {"journal_mode": "wal", "synchronous": 2}
        assert c.execute(text("PRAGMA foreign_keys")).scalar_one() == 1
        assert c.execute(text("PRAGMA busy_timeout")).scalar_one() == 5_000
    assert stat.S_IMODE(db.path.stat().st_mode) == 0o600


def test_foreign_keys_hold(db: Database) -> None:
    with pytest.raises(IntegrityError), db.begin() as c:
        c.execute(
            insert(join_tokens).values(
                id="a", tenant="no", secret_sha256="s", uses_left=1, tags=[], created=1.0, expires=2.0
            )
        )


def test_commit_rollback_and_reads(db: Database) -> None:
    calls: list[int] = []
    db.subscribe(lambda: calls.append(threading.get_ident()))
    with db.begin() as c:
        c.execute(insert(tenants).values(name="kept", created=1.0))
        assert calls == []
    assert calls == [threading.get_ident()]
    with pytest.raises(IntegrityError), db.begin() as c:
        c.execute(insert(tenants), [{"name": "lost", "created": 1.0}, {"name": "kept", "created": 1.0}])
    with db.read() as c:
        c.execute(insert(tenants).values(name="read", created=1.0))
    assert count(db) == 1
    assert len(calls) == 1


def test_a_failing_subscriber_harms_nobody(db: Database) -> None:
    calls: list[str] = []

    def fail() -> None:
        raise RuntimeError("bad subscriber")

    db.subscribe(fail)
    db.subscribe(lambda: calls.append("called"))
    with db.begin() as c:
        c.execute(insert(tenants).values(name="kept", created=1.0))
    assert calls == ["called"]
    assert count(db) == 1


def test_a_write_transaction_holds_the_lock_from_its_beginning(db: Database) -> None:
    with (
        db.begin(),
        sqlite3.connect(db.path, timeout=0) as other,
        pytest.raises(sqlite3.OperationalError, match="lock"),
    ):
        other.execute("BEGIN IMMEDIATE")
    other.close()


def test_readers_do_not_wait_for_a_writer_and_see_one_state(db: Database) -> None:
    with db.read() as reader:
        assert reader.execute(select(func.count()).select_from(tenants)).scalar_one() == 0
        with db.begin() as c:
            c.execute(insert(tenants).values(name="later", created=1.0))
        assert reader.execute(select(func.count()).select_from(tenants)).scalar_one() == 0
    assert count(db) == 1


def test_writers_from_many_threads_all_get_through(db: Database) -> None:
    def write(number: int) -> None:
        for part in range(5):
            with db.begin() as c:
                c.execute(insert(tenants).values(name=f"t{number}-{part}", created=1.0))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert count(db) == 40


def test_a_busy_database_is_told(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "BUSY_SECONDS", 0.05)
    with db.begin(), pytest.raises(UnavailableError) as told, db.begin():
        pass
    assert told.value.code == "database_busy"
    impatient = Database(db.path)
    other = sqlite3.connect(db.path)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(UnavailableError) as told, impatient.begin():
        pass
    assert told.value.code == "database_busy"
    other.close()
    assert count(db) == 0


def test_migrating_again_changes_nothing(db: Database) -> None:
    db.migrate()
    assert count(Database(db.path)) == 0


def test_a_newer_schema_is_refused_and_left_alone(db: Database) -> None:
    with db.begin() as c:
        c.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ConflictError, match=r"9999.*newer") as told:
        Database(db.path)
    assert told.value.code == "newer_schema"
    with pytest.raises(ConflictError):
        db.migrate()


def test_a_migration_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    db = Database(tmp_path / "state.db")
    scripts = tmp_path / "migrations"
    (scripts / "versions").mkdir(parents=True)
    (scripts / "env.py").write_text((schema.SCRIPTS / "env.py").read_text())
    (scripts / "versions" / "r1.py").write_text(
        "from alembic import op\nimport sqlalchemy as sa\nrevision = 'r1'\ndown_revision = None\n"
        "def upgrade():\n    op.create_table('half', sa.Column('a', sa.Integer()))\n"
        "    raise RuntimeError('power cut')\n"
    )
    monkeypatch.setattr(schema, "SCRIPTS", scripts)
    with pytest.raises(RuntimeError, match="power cut"):
        db.migrate()
    with db.read() as c:
        assert list(c.scalars(text("SELECT name FROM sqlite_master WHERE name = 'half'"))) == []


def test_a_file_that_is_no_database_is_told(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_bytes(b"this is not a database at all, but a text of some length" * 20)
    with pytest.raises(UnavailableError) as told:
        Database(tmp_path / "state.db")
    assert told.value.code == "database_unusable"
    (tmp_path / "file").write_text("")
    with pytest.raises(UnavailableError):
        Database(tmp_path / "file" / "state.db")


def test_more_readers_at_once_than_there_are_connections_are_told_to_try_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.database.connection.BUSY_SECONDS", 0.05)
    database = Database(tmp_path / "state.db")
    with contextlib.ExitStack() as held:
        for _ in range(40):
            held.enter_context(database.read())
        with pytest.raises(UnavailableError) as told:
            held.enter_context(database.read())
        assert told.value.code == "database_busy"
    with database.read():
        pass


def test_a_number_that_no_column_holds_is_the_askers_mistake(tmp_path: Path) -> None:
    database = Database(tmp_path / "state.db")
    with pytest.raises(InvalidError), database.read() as connection:
        connection.exec_driver_sql("SELECT ?", (2**64,))
