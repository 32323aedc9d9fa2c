"""What is written down: positions, executions, transitions, bad builds; and a file that broke."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from agent import durable
from agent.errors import DeviceError
from agent.updates import machine
from agent.updates.journal import KEPT_EXECUTIONS, Journal
from wire.assignment import Item, Policy
from wire.execution import ExecutionState
from wire.messages import Fault

S = ExecutionState
C = "model:digits"
FAULT = Fault(phase="WARMING", code="trial_failed", message="it hangs")


def item(generation: int, component: str = C) -> Item:
    return Item(
        component=component, generation=generation, execution=f"{component}-{generation}", build="b-" + "0" * 32,
        manifest_sha256="0" * 64, manifest_size=1, policy=Policy(probation=7),
    )  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "updates.db"


def test_what_was_taken_is_there_after_reopening(path: Path) -> None:
    journal = Journal(path)
    assert journal.position() == (0, 0)
    journal.take((2, 5), [item(1), item(1, "model:faces")], [])
    journal.close()
    journal = Journal(path)
    assert journal.position() == (2, 5)
    [row] = journal.unfinished(C)
    assert row.item == item(1)
    assert (row.state, row.count, row.model) == (S.IDLE, 0, "digits")
    assert len(journal.unfinished()) == 2
    assert journal.components() == [C, "model:faces"]
    assert not journal.rebuilt
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_commit_waits_for_the_disk(path: Path) -> None:
    journal = Journal(path)
    assert journal._connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL: power cuts in tests count on it
    assert journal._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_transition_is_one_row_and_one_report_with_its_own_key(path: Path) -> None:
    journal = Journal(path, now=lambda: 12.5)
    journal.take((1, 1), [item(1)], [])
    [row] = journal.unfinished()
    row = journal.transition(row, S.OFFERED, None)
    row = journal.transition(row, S.CLEANUP, S.FAILED, fault=FAULT, figures={"ms": 1.0}, bad="it hangs")
    row = journal.transition(row, S.FAILED, S.FAILED)
    assert row.fault == FAULT
    first, second, third = journal.unreported()
    assert [t.key for t in (first, second, third)] == [f"{C}-1/1", f"{C}-1/2", f"{C}-1/3"]
    assert (second.fault, second.figures, second.at) == (FAULT, {"ms": 1.0}, 12.5)
    assert third.fault == FAULT
    assert journal.bad_builds() == {"b-" + "0" * 32: "it hangs"}
    assert journal.last(row.execution, S.CLEANUP) == second
    journal.reported([first, second])
    assert journal.unreported() == [third]
    assert journal.unfinished() == []


def test_the_first_fault_stays(path: Path) -> None:
    journal = Journal(path)
    journal.take((1, 1), [item(1)], [])
    [row] = journal.unfinished()
    row = journal.transition(row, S.ROLLING_BACK, S.FAILED, fault=FAULT)
    row = journal.transition(row, S.CLEANUP, S.INCONSISTENT, fault=Fault(phase="x", code="y", message="z"))
    assert row.fault == FAULT


def test_restarts_count_where_they_may_be_the_updates_own_doing(path: Path) -> None:
    journal = Journal(path)
    journal.take((1, 1), [item(1)], [])
    [row] = journal.unfinished()
    for state in S:
        if state not in (S.IDLE, *machine.TERMINAL):
            row = journal.transition(row, state, None)
            again = journal.resumed(row, machine.RESUME[state])
            assert again.count - row.count == (state in machine.RISKY)
            row = again
    assert journal.started(row).starts == 1
    journal.spend(row, 42.0)
    assert journal.refresh(row).spent == 42.0
    assert journal.transition(row, S.PROBATION, None).spent == 0.0


def test_the_first_wish_stays_and_only_for_its_row(path: Path) -> None:
    journal = Journal(path)
    journal.take((1, 1), [item(1), item(1, "model:faces")], [])
    digits, faces = journal.unfinished()
    journal.take((1, 2), [item(2)], [(digits.id, S.SUPERSEDED)])
    journal.wish(digits, S.CANCELED)
    assert journal.refresh(digits).wish is S.SUPERSEDED
    assert journal.refresh(faces).wish is None
    newest = journal.newest(C)
    assert newest is not None
    assert newest.generation == 2


def test_a_commit_that_fails_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(path)
    journal.take((1, 1), [item(1)], [])
    durable.set_hook(lambda name: (_ for _ in ()).throw(durable.PowerCut(name)))
    with pytest.raises(durable.PowerCut):
        journal.take((1, 2), [item(2)], [])
    durable.set_hook(None)
    assert journal.position() == (1, 1)
    with pytest.raises(DeviceError):
        journal.take((1, 2), [item(1)], [])  # the generation is there already
    assert journal.position() == (1, 1)


def test_it_does_not_grow_for_ever(path: Path) -> None:
    journal = Journal(path)
    for generation in range(1, 3 * KEPT_EXECUTIONS):
        journal.take((1, generation), [item(generation)], [])
        [row] = journal.unfinished()
        row = journal.transition(row, S.OFFERED, None)
        journal.transition(row, S.SKIPPED, None)
        journal.reported(journal.unreported())
    with sqlite3.connect(path) as c:
        assert c.execute("SELECT count(*) FROM executions").fetchone()[0] == KEPT_EXECUTIONS
        assert c.execute("SELECT count(*) FROM transitions").fetchone()[0] <= 2 * KEPT_EXECUTIONS + 2
    c.close()
    newest = journal.newest(C)
    assert newest is not None
    assert newest.generation == 3 * KEPT_EXECUTIONS - 1


def damage_everything(path: Path) -> None:
    path.write_bytes(b"\xa5" * 8192)


def damage_a_page(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xa5" * (len(data) - 4096)
    path.write_bytes(bytes(data))


def damage_a_row(path: Path) -> None:
    with sqlite3.connect(path) as c:
        c.execute("UPDATE executions SET item = '{\"no\": 1}'")
    c.close()


def damage_the_version(path: Path) -> None:
    with sqlite3.connect(path) as c:
        c.execute("PRAGMA user_version = 99")
    c.close()


@pytest.mark.parametrize("damage", [damage_everything, damage_a_page, damage_a_row, damage_the_version])
def test_a_file_that_cannot_be_understood_is_set_aside(path: Path, damage: object) -> None:
    journal = Journal(path)
    journal.take((1, 1), [item(1)], [])
    journal.close()
    assert callable(damage)
    damage(path)
    for time in range(100, 105):
        journal = Journal(path, now=lambda time=time: float(time))
        assert journal.rebuilt == (time == 100)
        assert journal.unfinished() == []
        journal.take((1, time), [item(time)], [])
        [row] = journal.unfinished()
        row = journal.transition(row, S.SUPERSEDED, S.SUPERSEDED)
        assert int(journal.unreported()[-1].key.split("/")[1]) > 100  # no key of the lost journal comes again
        journal.close()
    assert [p.name for p in path.parent.glob("*.broken-*")] == ["updates.db.broken-100"]


def test_only_the_newest_broken_files_are_kept(path: Path) -> None:
    for time in range(1000, 1006):
        damage_everything(path)
        Journal(path, now=lambda time=time: float(time)).close()
    kept = sorted(p.name for p in path.parent.glob("*.broken-*"))
    assert kept == ["updates.db.broken-1004", "updates.db.broken-1005"]


def test_an_empty_file_is_a_new_journal(path: Path) -> None:
    path.write_bytes(b"")
    journal = Journal(path)
    assert not journal.rebuilt
    assert journal.position() == (0, 0)
