"""Stored once, acknowledged after, whatever is killed in between."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, insert, select, update

from controller.database import tables
from controller.database.connection import Database
from controller.errors import UnavailableError
from controller.telemetry.ingest import MAX_ATTEMPTS, Ingest
from controller.telemetry.series import Series
from wire.codec import decode
from wire.errors import MalformedError
from wire.messages import ExecutionReport, Health, Sequenced, Window

NOW = 1_800_000_000.0
ONE, TWO, THREE = ("d-" + letter * 26 for letter in "abc")


def report(sequence: int, previous: int | None = None, stream: str = "stream-1") -> ExecutionReport:
    return ExecutionReport(
        stream=stream,
        sequence=sequence,
        previous=sequence - 1 if previous is None else previous,
        at=NOW,
        execution="e-1",
        component="model:digits",
        generation=1,
        origin="test",
        state="OFFERED",
    )


def health(sequence: int) -> Health:
    found = Window(name="memory", labels={}, start=NOW + sequence * 10, seconds=10, count=1, total=1.0)
    return Health(stream="stream-1", sequence=sequence, previous=sequence - 1, windows=[found])


class Far:
    """What the devices hear, and an effect that writes a row: (device, sequence) into the audit table."""

    def __init__(self) -> None:
        self.acks: list[tuple[str, str, int]] = []
        self.fails: set[int] = set()
        self.broken = False

    async def acknowledge(self, device: str, stream: str, sequence: int) -> None:
        if self.broken:
            raise UnavailableError("the broker is away")
        self.acks.append((device, stream, sequence))

    def effect(self, connection: Connection, device: str, message: ExecutionReport, received: float) -> None:
        if message.sequence in self.fails:
            raise ValueError("a defect")
        add_row(connection, device, message)


def add_row(connection: Connection, device: str, message: Sequenced) -> None:
    row = {"tenant": "acme", "at": NOW, "actor": device, "action": "x", "reason": "", "body": {}}
    connection.execute(insert(tables.audit).values(**row, thing=str(message.sequence)))


def effects(database: Database) -> list[tuple[str, int]]:
    with database.read() as connection:
        rows = connection.execute(select(tables.audit.c.actor, tables.audit.c.thing).order_by(tables.audit.c.id))
        return [(actor, int(thing)) for actor, thing in rows]


@pytest.fixture
def far() -> Far:
    return Far()


@pytest.fixture
def ingest(database: Database, series: Series, far: Far) -> Ingest:
    return Ingest(database, series, {ExecutionReport: far.effect}, far.acknowledge, lambda: NOW)


@asynccontextmanager
async def running(ingest: Ingest) -> AsyncIterator[None]:
    task = asyncio.create_task(ingest.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def test_messages_are_stored_in_order_and_acknowledged(ingest: Ingest, database: Database, far: Far) -> None:
    async with running(ingest):
        handler = ingest.handlers()[ExecutionReport]
        for sequence in range(1, 6):
            await handler(ONE, report(sequence))
        await until(lambda: (ONE, "stream-1", 5) in far.acks)
    assert effects(database) == [(ONE, sequence) for sequence in range(1, 6)]


async def test_what_waits_is_committed_together(ingest: Ingest, database: Database, far: Far) -> None:
    commits = 0

    def count() -> None:
        nonlocal commits
        commits += 1

    database.subscribe(count)
    await ingest.store([(device, report(sequence)) for sequence in range(1, 51) for device in (ONE, TWO)])
    assert commits == 1
    assert far.acks == [(ONE, "stream-1", 50), (TWO, "stream-1", 50)], "one acknowledgement a device covers them all"


async def test_again_is_acknowledged_and_not_stored(ingest: Ingest, database: Database, far: Far) -> None:
    await ingest.store([(ONE, report(1))])
    await ingest.store([(ONE, report(1))])
    assert effects(database) == [(ONE, 1)]
    assert far.acks == [(ONE, "stream-1", 1)] * 2
    assert ingest.counts == {"stored": 1, "duplicate": 1}


async def test_a_gap_is_neither_stored_nor_acknowledged(ingest: Ingest, database: Database, far: Far) -> None:
    await ingest.store([(ONE, report(1)), (ONE, report(3))])
    assert effects(database) == [(ONE, 1)]
    assert far.acks == [(ONE, "stream-1", 1)]
    assert ingest.counts == {"stored": 1, "gap": 1}
    await ingest.store([(ONE, report(2)), (ONE, report(3))])
    assert [sequence for _, sequence in effects(database)] == [1, 2, 3]


async def test_a_revoked_device_is_refused(ingest: Ingest, database: Database, far: Far) -> None:
    with database.begin() as connection:
        connection.execute(update(tables.devices).where(tables.devices.c.id == ONE).values(revoked=NOW))
    await ingest.store([(ONE, report(1)), (TWO, report(1))])
    assert effects(database) == [(TWO, 1)]
    assert far.acks == [(TWO, "stream-1", 1)]
    assert ingest.counts["refused"] == 1


async def test_a_failing_message_does_not_hold_up_others_and_is_set_aside(
    ingest: Ingest, database: Database, far: Far
) -> None:
    far.fails = {2}
    for _ in range(MAX_ATTEMPTS):
        await ingest.store([(TWO, report(1)), (ONE, report(1)), (ONE, report(2)), (ONE, report(3))])
    assert sorted(effects(database)) == [(ONE, 1), (ONE, 3), (TWO, 1)]
    assert far.acks[-2:] == [(TWO, "stream-1", 1), (ONE, "stream-1", 3)]
    assert ingest.counts["set_aside"] == 1


async def test_with_the_database_away_nothing_is_acknowledged(
    ingest: Ingest, database: Database, far: Far, series: Series
) -> None:
    series.close()
    await ingest.store([(ONE, health(1)), (TWO, report(1))])
    assert far.acks == []
    assert effects(database) == []
    assert ingest.counts["postponed"] == 2


async def test_an_acknowledgement_that_is_lost_is_given_when_the_device_sends_again(
    ingest: Ingest, database: Database, far: Far
) -> None:
    far.broken = True
    await ingest.store([(ONE, report(1))])
    far.broken = False
    await ingest.store([(ONE, report(1))])
    assert far.acks == [(ONE, "stream-1", 1)]
    assert effects(database) == [(ONE, 1)]


async def test_health_goes_into_the_series(ingest: Ingest, series: Series, far: Far) -> None:
    await ingest.store([(ONE, health(1)), (ONE, health(2)), (ONE, health(2)), (ONE, health(4))])
    (found,) = series.query(ONE, "memory", NOW, NOW + 100, 1)
    assert [point.start for point in found["points"]] == [NOW + 10, NOW + 20], "a gap is not stored in the series"
    assert far.acks == [(ONE, "stream-1", 2)]


async def test_the_outcome_of_an_effect_is_counted(database: Database, series: Series, far: Far) -> None:
    from controller.rollouts.store import record_report

    ingest = Ingest(database, series, {ExecutionReport: record_report}, far.acknowledge, lambda: NOW)
    await ingest.store([(ONE, report(1))])
    assert ingest.counts == {"stored": 1, "report_foreign": 1}


async def test_a_message_that_cannot_even_be_set_aside_ends_nothing(
    ingest: Ingest, database: Database, far: Far
) -> None:
    far.fails = {2**70}
    for _ in range(MAX_ATTEMPTS + 1):
        await ingest.store([(ONE, report(2**70, previous=0)), (TWO, report(1))])
    assert effects(database) == [(TWO, 1)]
    assert {device for device, *_ in far.acks} == {TWO}


@pytest.mark.parametrize("fields", [{"sequence": 2**63}, {"sequence": 1, "previous": 10**40}])
def test_a_sequence_that_no_database_takes_is_no_message(fields: dict[str, int]) -> None:
    with pytest.raises(MalformedError, match=r"sequence|previous"):
        decode(Health, json.dumps({"v": 1, "stream": "stream-1", "previous": 0, "windows": []} | fields).encode())


async def test_pruning_goes_on_when_the_clock_is_put_back(
    database: Database, series: Series, far: Far, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [NOW + 10 * 365 * 86_400]
    pruned: list[float] = []
    monkeypatch.setattr(series, "prune", pruned.append)
    ingest = Ingest(database, series, {ExecutionReport: far.effect}, far.acknowledge, lambda: now[0])
    await ingest.store([(ONE, report(1))])
    now[0] = NOW
    await ingest.store([(ONE, report(2))])
    assert pruned == [NOW + 10 * 365 * 86_400, NOW]


CHILD = """
import asyncio, os, signal, sys
from pathlib import Path
sys.path[:0] = [{tests!r}]
from sqlalchemy import event
from controller.database.connection import Database
from controller.telemetry.ingest import Ingest
from controller.telemetry.series import Series
from test_ingest import add_row, health, report, ONE
from wire.messages import ExecutionReport

data, point = Path(sys.argv[1]), sys.argv[2]
database, series = Database(data / "state.db"), Series(data / "series.db")

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def effect(connection, device, message, received):
    add_row(connection, device, message)
    if point == "in the transaction":
        die()

async def acknowledge(device, stream, sequence):
    if point == "before the acknowledgement":
        die()
    print("ack", sequence, flush=True)

write = series.write
def write_and_die(*args):
    write(*args)
    if point == "between the two databases":
        die()
series.write = write_and_die
ingest = Ingest(database, series, {{ExecutionReport: effect}}, acknowledge, lambda: 1_800_000_000.0)
asyncio.run(ingest.store([(ONE, report(1)), (ONE, health(2)), (ONE, report(3))]))
"""


@pytest.mark.parametrize(
    "point", ["in the transaction", "between the two databases", "before the acknowledgement", "never"]
)
def test_killed_anywhere_the_device_sends_again_and_all_is_there_once(
    tmp_path: Path, database: Database, point: str
) -> None:
    program = CHILD.format(tests=str(Path(__file__).parent))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}

    def run(where: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", program, str(tmp_path), where]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)

    killed = run(point)
    assert killed.returncode == (0 if point == "never" else -signal.SIGKILL), killed.stderr
    again = run("never")  # the device was not answered: it sends the same again
    assert again.stdout == "ack 3\n", again.stderr
    assert effects(database) == [(ONE, 1), (ONE, 3)]
    series = Series(tmp_path / "series.db")
    (found,) = series.query(ONE, "memory", NOW, NOW + 100, 60)
    series.close()
    assert [point.count for point in found["points"]] == [1], "the roll-up counts a window once, too"
