"""Signed heads find what a chain alone does not: rows cut off at the end, and a trail rewritten with all its hashes."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from sqlalchemy import text

from controller.audit import exported, head_files, sealer, store
from controller.audit.exported import KeptHead
from controller.audit.head_files import HeadFiles
from controller.audit.heads import Head
from controller.audit.seal import Broken, Intact
from controller.audit.store import record
from controller.database.connection import Database
from controller.errors import InvalidError

KEY = ed25519.Ed25519PrivateKey.generate()
NOW = 1_800_000_000.0


@pytest.fixture
def db(tmp_path: Path) -> Database:
    database = Database(tmp_path / "state.db")
    database.migrate()
    return database


@pytest.fixture
def files(tmp_path: Path) -> HeadFiles:
    return HeadFiles(tmp_path / "audit", KEY)


def write(db: Database, number: int, tenant: str = "a") -> None:
    with db.begin() as c:
        for position in range(number):
            body = {"before": {"x": position / 3}, "after": {"x": None}}
            record(c, tenant=tenant, actor="me", action="did", thing=f"t{position}", at=NOW + position / 7, body=body)
    sealer.seal(db)


def run(db: Database, *statements: str) -> None:
    with db.begin() as c:
        for statement in statements:
            c.execute(text(statement))


def again_from(db: Database, number: int) -> None:
    """Chain everything from row ``number`` on anew, as someone does who owns the database and knows how."""
    run(db, f"UPDATE audit SET number = NULL, previous_hash = NULL, hash = NULL WHERE number >= {number}")
    sealer.seal(db)


def exported_lines(db: Database, files: HeadFiles, tenant: str = "a") -> list[str]:
    lines = [exported.first_line(tenant, files.public_key)]
    for rows in sealer.pieces(db, tenant):
        lines += [exported.row_line(row) for row in rows]
    return lines + [exported.head_line(envelope) for _, envelope in files.of(tenant)]


def changed(db: Database) -> None:
    run(db, "UPDATE audit SET actor = 'nobody' WHERE number = 3")


def changed_and_chained_again(db: Database) -> None:
    changed(db)
    again_from(db, 3)


def removed(db: Database) -> None:
    run(db, "DELETE FROM audit WHERE number = 3")


def removed_and_chained_again(db: Database) -> None:
    removed(db)
    again_from(db, 3)


def reordered(db: Database) -> None:
    run(
        db,
        "UPDATE audit SET number = 99 WHERE number = 3",
        "UPDATE audit SET number = 3 WHERE number = 4",
        "UPDATE audit SET number = 4 WHERE number = 99",
    )


def reordered_and_chained_again(db: Database) -> None:
    run(
        db,
        "UPDATE audit SET id = 99 WHERE number = 3",
        "UPDATE audit SET id = 3 WHERE number = 4",
        "UPDATE audit SET id = 4 WHERE id = 99",
    )
    again_from(db, 3)


def truncated(db: Database) -> None:
    run(db, "DELETE FROM audit WHERE number > 4")


def truncated_and_grown_again(db: Database) -> None:
    truncated(db)
    write(db, 10)


def emptied(db: Database) -> None:
    run(db, "DELETE FROM audit")


TAMPERING: dict[Callable[[Database], None], int] = {
    changed: 3,
    changed_and_chained_again: 6,
    removed: 3,
    removed_and_chained_again: 6,
    reordered: 3,
    reordered_and_chained_again: 6,
    truncated: 5,
    truncated_and_grown_again: 6,
    emptied: 1,
}


@pytest.mark.parametrize("tamper", TAMPERING, ids=lambda tamper: tamper.__name__)
def test_tampering_is_found_by_the_heads_here_in_a_file_and_by_one_kept_elsewhere(
    db: Database, files: HeadFiles, tamper: Callable[[Database], None]
) -> None:
    write(db, 6)
    assert sealer.sign_heads(db, files, NOW) == []
    signed = [head for head, _ in files.of("a")]
    kept = KeptHead(head=files.of("a")[-1][1].decode(), public_key=files.public_key)
    assert sealer.check(db, "a", signed) == Intact(6, signed[-1].hash)
    assert exported.check(exported_lines(db, files), kept) == Intact(6, signed[-1].hash)
    tamper(db)
    verdicts = [
        sealer.check(db, "a", signed),
        exported.check(exported_lines(db, files)),
        exported.check([line for line in exported_lines(db, files) if not line.startswith('{"head"')], kept),
    ]
    for verdict in verdicts:
        assert isinstance(verdict, Broken)
        assert verdict.number == TAMPERING[tamper]
    write(db, 1)
    wrong = sealer.sign_heads(db, files, NOW + 3600)
    assert [head for head, _ in files.of("a")] == signed or not wrong, "what is broken is not signed again"
    if tamper not in (changed, removed, reordered):
        assert wrong, "the row that was signed last is not there any more"


def test_a_head_is_signed_when_the_trail_grew_and_only_then(db: Database, files: HeadFiles) -> None:
    write(db, 3)
    write(db, 2, tenant="b/../c")
    for _ in range(3):
        assert sealer.sign_heads(db, files, NOW) == []
    write(db, 2)
    assert sealer.sign_heads(db, files, NOW + 3600) == []
    assert [head.number for head, _ in files.of("a")] == [3, 5]
    assert [head.number for head, _ in files.of("b/../c")] == [2]
    directory = db.path.parent / "audit"
    assert sorted(path.parent for path in directory.rglob("*.heads")) == [directory] * 2
    assert {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {0o600}


def test_a_torn_or_foreign_line_counts_for_nothing_and_hides_nothing(db: Database, files: HeadFiles) -> None:
    write(db, 3)
    sealer.sign_heads(db, files, NOW)
    file = db.path.parent / "audit" / "a.heads"
    other = HeadFiles(db.path.parent / "other", ed25519.Ed25519PrivateKey.generate())
    forged = other.add(Head(tenant="a", number=2, hash="0" * 64, at=NOW))
    with file.open("ab") as output:
        output.write(forged + b"\n" + b'{"key_id":"ab')
    write(db, 1)
    assert sealer.sign_heads(db, files, NOW) == []
    assert [head.number for head, _ in files.of("a")] == [3, 4]


def test_the_file_of_heads_is_bounded(files: HeadFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_files, "MOST", 20)
    for number in range(1, 200):
        files.add(Head(tenant="a", number=number, hash="0" * 64, at=NOW))
    held = [head.number for head, _ in files.of("a")]
    assert len(held) <= 20
    assert (held[0], held[-1]) == (1, 199)


@pytest.mark.parametrize(
    "lines",
    [[], ["nonsense"], ["[]"], ["{}"], ['{"muster_audit": 1, "tenant": "a", "public_key": "x"}'], ["[" * 100_000]],
)
def test_what_is_no_trail_is_refused(lines: list[str]) -> None:
    with pytest.raises(InvalidError):
        exported.check(lines)


def test_lines_of_an_export_that_do_not_belong_are_refused(db: Database, files: HeadFiles) -> None:
    write(db, 3)
    sealer.sign_heads(db, files, NOW)
    lines = exported_lines(db, files)
    other = HeadFiles(db.path.parent / "other", ed25519.Ed25519PrivateKey.generate())
    strange = other.add(Head(tenant="a", number=3, hash="0" * 64, at=NOW)).decode()
    for added in (
        json.dumps({"head": strange}),
        json.dumps({"row": {"tenant": "a"}}),
        json.dumps({"other": 1}),
        lines[1].replace('"tenant":"a"', '"tenant":"b"'),
    ):
        with pytest.raises(InvalidError):
            exported.check([*lines, added])
    with pytest.raises(InvalidError):
        exported.check(lines, KeptHead(head=strange, public_key=files.public_key))


def test_unsealed_rows_are_found_without_reading_the_trail(db: Database) -> None:
    write(db, 5)
    write(db, 2, tenant="b")
    asked: list[str] = []
    with db.read() as c:
        assert store.tenants_of(c) == ["a", "b"]
        assert store.unsealed(c, 10) == []
        query = "SELECT * FROM audit WHERE tenant IN ('a', 'b') AND number IS NULL ORDER BY id LIMIT 1"
        plan: Any = c.exec_driver_sql(f"EXPLAIN QUERY PLAN {query}").all()
        asked += [row[-1] for row in plan]
    assert any("audit_by_tenant" in step for step in asked), asked
    assert not any(step.startswith("SCAN audit") for step in asked), asked
