from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent import durable
from agent.errors import DeviceError
from agent.link.outbox import Outbox
from wire import codec, topics
from wire.messages import ExecutionReport, Fault, Health, Window


def execution(state: str = "DOWNLOADING", **more: Any) -> dict[str, Any]:
    fields = {"at": 1.0, "execution": "e1", "component": "model:digits", "generation": 1, "origin": "OFFERED"}
    return fields | {"state": state} | more


def health(name: str = "cpu") -> dict[str, Any]:
    window = Window(name=name, labels={}, start=0.0, seconds=10.0, count=1, total=1.0)
    return {"windows": [window]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "outbox.db"


@pytest.fixture
def outbox(path: Path) -> Iterator[Outbox]:
    box = Outbox(path)
    yield box
    box.close()


def sent(outbox: Outbox, after: int = 0, limit: int = 100, *, anew: bool = False) -> list[dict[str, Any]]:
    return [json.loads(row.payload) for row in outbox.waiting(after, limit, anew=anew)]


def chain(rows: list[dict[str, Any]]) -> list[tuple[int, int]]:
    return [(row["sequence"], row["previous"]) for row in rows]


def test_messages_come_in_order_and_each_names_the_one_before(outbox: Outbox) -> None:
    for state in ("OFFERED", "PRECHECK", "DOWNLOADING"):
        outbox.put(ExecutionReport, execution(state), state)
    rows = sent(outbox)
    assert [row["state"] for row in rows] == ["OFFERED", "PRECHECK", "DOWNLOADING"]
    assert chain(rows) == [(1, 0), (2, 1), (3, 2)]
    assert {row["stream"] for row in rows} == {outbox.stream}
    assert chain(sent(outbox, after=2)) == [(3, 2)]
    assert len(outbox.waiting(0, 2)) == 2
    decoded = codec.decode(ExecutionReport, outbox.waiting(0, 1)[0].payload)
    assert decoded.execution == "e1"
    assert outbox.waiting(0, 1)[0].channel is topics.EXECUTION


def test_a_put_waits_for_the_disk(outbox: Outbox) -> None:
    assert outbox._connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL


def test_a_key_counts_once_also_after_its_acknowledgement_and_a_restart(outbox: Outbox, path: Path) -> None:
    outbox.put(ExecutionReport, execution(), "same")
    outbox.put(ExecutionReport, execution(), "same")
    assert outbox.pending() == 1
    assert not outbox.acked("same")
    assert outbox.acknowledge(outbox.stream, 1)
    again = Outbox(path)  # the first one was never closed: as after kill -9
    again.put(ExecutionReport, execution(), "same")
    assert again.pending() == 0
    assert again.acked("same")
    assert not again.acked("other")
    again.close()


def test_what_was_put_survives_a_kill(outbox: Outbox, path: Path) -> None:
    outbox.put(ExecutionReport, execution(fault=Fault(phase="x", code="y", message="z")), "a")
    outbox.put(Health, health(), "b")
    again = Outbox(path)
    assert again.stream == outbox.stream
    assert chain(sent(again)) == [(1, 0), (2, 1)]
    again.close()


def test_acknowledgements_move_only_forward(outbox: Outbox) -> None:
    for number in range(5):
        outbox.put(ExecutionReport, execution(), str(number))
    assert outbox.acknowledge(outbox.stream, 3)
    assert not outbox.acknowledge(outbox.stream, 3)
    assert not outbox.acknowledge(outbox.stream, 1)
    assert not outbox.acknowledge("f" * 32, 5)
    assert chain(sent(outbox)) == [(4, 3), (5, 4)]
    assert chain(sent(outbox, anew=True)) == [(4, 0), (5, 4)]
    assert outbox.sent_and_waiting(4) == 1


def test_sequences_are_never_used_again(outbox: Outbox, path: Path) -> None:
    outbox.put(ExecutionReport, execution(), "a")
    outbox.acknowledge(outbox.stream, 1)
    again = Outbox(path)
    again.put(ExecutionReport, execution(), "b")
    assert chain(sent(again)) == [(2, 1)]
    again.close()


def test_an_acknowledgement_of_the_future_means_an_older_state_of_the_disk(outbox: Outbox) -> None:
    for key in "abc":
        outbox.put(ExecutionReport, execution(key), key)
    outbox.acknowledge(outbox.stream, 1)
    before = outbox.stream
    assert outbox.acknowledge(before, 40)
    assert outbox.stream != before
    assert chain(sent(outbox)) == [(1, 0), (2, 1)]
    assert [row["state"] for row in sent(outbox)] == ["b", "c"]
    assert outbox.acked("a")
    assert not outbox.acked("b")
    outbox.acknowledge(outbox.stream, 1)
    assert outbox.acked("b")
    assert not outbox.acked("c")


def test_the_oldest_health_goes_first_and_executions_never(path: Path) -> None:
    outbox = Outbox(path, health_rows=3)
    outbox.put(ExecutionReport, execution("first"), "e")
    for number in range(6):
        outbox.put(Health, health(f"w{number}"), f"h{number}")
    outbox.put(ExecutionReport, execution("last"), "f")
    rows = sent(outbox)
    assert [r["windows"][0]["name"] for r in rows if "windows" in r] == ["w3", "w4", "w5"]
    assert [r["state"] for r in rows if "state" in r] == ["first", "last"]
    assert chain(rows) == [(1, 0), (5, 1), (6, 5), (7, 6), (8, 7)]  # the gap names the one before it
    outbox.close()


def test_health_is_bounded_in_bytes_too(path: Path) -> None:
    outbox = Outbox(path, health_bytes=2000)
    for number in range(50):
        outbox.put(Health, health(), str(number))
    assert 1 <= outbox.pending() < 15
    outbox.close()


def test_keys_are_bounded_after_their_acknowledgement(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.link.outbox.KEPT_KEYS", 5)
    outbox = Outbox(path)
    outbox.put(ExecutionReport, execution(), "report")
    for number in range(20):
        outbox.put(Health, health(), str(number))
    outbox.acknowledge(outbox.stream, 21)
    assert [number for number in range(20) if outbox.acked(str(number))] == [15, 16, 17, 18, 19]
    assert outbox.acked("report")  # health does not push it out
    outbox.close()


@pytest.mark.parametrize("damage", [b"this is no database" * 400, b""])
def test_a_broken_file_is_set_aside(outbox: Outbox, path: Path, damage: bytes) -> None:
    outbox.put(ExecutionReport, execution(), "a")
    before = outbox.stream
    outbox.close()
    path.write_bytes(damage)
    again = Outbox(path)
    assert again.stream != before
    again.put(ExecutionReport, execution(), "a")
    assert chain(sent(again)) == [(1, 0)]
    assert [p.read_bytes() for p in path.parent.glob("outbox.db.broken-*")] == ([damage] if damage else [])
    again.close()


def test_a_damaged_page_is_found_and_few_broken_files_stay(path: Path) -> None:
    for _ in range(4):
        outbox = Outbox(path)
        for number in range(200):
            outbox.put(Health, health(), str(number))
        outbox.close()
        data = bytearray(path.read_bytes())
        data[8192:12288] = b"\xff" * 4096
        path.write_bytes(bytes(data))
    Outbox(path).close()
    assert len(list(path.parent.glob("outbox.db.broken-*"))) == 2


def test_long_texts_are_cut_so_that_a_report_always_fits(outbox: Outbox) -> None:
    fault = Fault(phase="p", code="c", message="m", log_tail="l")
    fields = execution(detail="\u0000" * 9000, fault={**json.loads(codec.msgspec.json.encode(fault))})
    fields["fault"]["log_tail"] = "\u0001" * 20_000 + "THE END"
    fields["fault"]["message"] = "\u0002" * 9000
    outbox.put(ExecutionReport, fields, "a")
    [row] = outbox.waiting(0, 10)
    assert len(row.payload) <= topics.EXECUTION.limit
    assert codec.decode(ExecutionReport, row.payload).fault.log_tail.endswith("THE END")  # type: ignore[union-attr]


def test_a_message_that_no_one_could_read_is_refused(outbox: Outbox) -> None:
    with pytest.raises(DeviceError) as info:
        outbox.put(ExecutionReport, execution(generation=0), "a")
    assert info.value.code == "bad_message"
    too_many = {"windows": [health("x" * 100)["windows"][0]] * 513}
    with pytest.raises(DeviceError):
        outbox.put(Health, too_many, "b")
    assert outbox.pending() == 0


def test_sessions_are_numbered_over_restarts(outbox: Outbox, path: Path) -> None:
    assert [outbox.begin_session(), outbox.begin_session()] == [1, 2]
    again = Outbox(path)
    assert again.begin_session() == 3
    again.close()


def test_a_power_cut_before_the_commit_leaves_nothing_half(outbox: Outbox) -> None:
    def cut(point: str) -> None:
        if point == "outbox.put:before":
            raise durable.PowerCut

    durable.set_hook(cut)
    try:
        with pytest.raises(durable.PowerCut):
            outbox.put(ExecutionReport, execution(), "a")
    finally:
        durable.set_hook(None)
    assert outbox.pending() == 0
    outbox.put(ExecutionReport, execution(), "a")
    assert chain(sent(outbox)) == [(1, 0)]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.one_of(st.tuples(st.just("put"), st.integers(0, 12)), st.tuples(st.just("ack"), st.integers(0, 9)))
    )
)
def test_every_key_is_stored_once_by_a_controller_that_follows_the_contract(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]
) -> None:
    outbox = Outbox(tmp_path_factory.mktemp("box") / "outbox.db", health_rows=4)
    stored: list[str] = []
    position = 0
    for step, number in steps:
        if step == "put":
            outbox.put(ExecutionReport, execution(detail=f"k{number}"), f"k{number}")
            outbox.put(Health, health(), f"h{len(stored)}-{number}")
            continue
        for row in sent(outbox, limit=number):  # wire 4.2: duplicate, gap or fresh
            if row["sequence"] <= position:
                continue
            assert row["previous"] <= position
            position = row["sequence"]
            if "detail" in row:
                stored.append(row["detail"])
        outbox.acknowledge(outbox.stream, max(position - number % 3, 0))
    assert len(stored) == len(set(stored))
    assert all(outbox.acked(key) <= (key in stored) for key in (f"k{n}" for n in range(13)))
    outbox.close()
