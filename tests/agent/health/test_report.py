"""The reporter: one message a window, counts that happened in it, and nothing that stops it."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.errors import DeviceError, ServingError
from agent.health.report import MAX_BUILDS, SAMPLES, Counts, Reporter
from agent.health.sensors import Sensors
from agent.link.outbox import Outbox
from agent.serving_protocol import LoadedBuild, ServingState
from wire import codec
from wire.messages import Health, Sequenced, Window


def build(requests: int = 0, errors: int = 0, name: str = "b-1", **more: Any) -> LoadedBuild:
    return LoadedBuild(
        model="digits",
        version="1",
        build=name,
        state="active",
        load_ms=1.0,
        requests=requests,
        errors=errors,
        **more,
    )


def state(*builds: LoadedBuild, pid: int = 1, started: float = 5.0) -> ServingState:
    return ServingState(
        protocol=1,
        pid=pid,
        started=started,
        http_host="127.0.0.1",
        http_port=8000,
        tunnel="none",
        tunnel_error="",
        builds=list(builds),
    )


class Far:
    """What the reporter talks to: a serving process with a script, a clock, and a list for an outbox."""

    def __init__(self, *answers: ServingState | None) -> None:
        self.answers = list(answers)
        self.now = 1000.0
        self.messages: list[tuple[type[Sequenced], dict[str, Any], str]] = []
        self.failing = False

    async def serving(self) -> ServingState:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if answer is None:
            raise ServingError("serving does not answer", "serving_down")
        return answer

    def put(self, message_type: type[Sequenced], fields: dict[str, Any], key: str) -> None:
        if self.failing:
            raise DeviceError("disk full", "disk_full")
        self.messages.append((message_type, fields, key))

    def reporter(self, sensors: Sensors, interval: float = 10.0) -> Reporter:
        return Reporter(
            interval=interval,
            sensors=sensors,
            serving=self.serving,
            put=self.put,
            clock=lambda: self.now,
            monotonic=lambda: self.now,
        )

    def windows(self, index: int = -1) -> dict[tuple[str, ...], Window]:
        return {(w.name, *w.labels.values()): w for w in self.messages[index][1]["windows"]}


@pytest.fixture
def sensors(tmp_path: Path) -> Sensors:
    return Sensors(tmp_path)


async def test_a_report_holds_what_was_read_in_its_window(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/loadavg").write_text("0.5 0 0 1/1 1\n")
    (tmp_path / "sys/devices/platform/soc/soc:firmware").mkdir(parents=True)
    (tmp_path / "sys/devices/platform/soc/soc:firmware/get_throttled").write_text("1\n")
    far = Far(state(build(10, p95_ms=4.0)), state(build(13, 1, p95_ms=8.0, queued=2)))
    reporter = far.reporter(Sensors(tmp_path))
    await reporter.sample()
    await reporter.report()
    assert far.messages == []
    far.now += 5
    await reporter.sample()
    far.now += 5
    await reporter.report()
    (message_type, fields, _) = far.messages[0]
    assert message_type is Health
    codec.encode(msgspec.convert({"stream": "s" * 8, "sequence": 1, "previous": 0, **fields}, Health))
    found = far.windows()
    labels = ("b-1", "digits", "1")  # in the order of their names
    assert found[("load",)].count == 2
    assert found[("serving_up",)].total == 2
    assert found[("serving_requests", *labels)].total == 3
    assert found[("serving_errors", *labels)].total == 1
    assert found[("serving_queued", *labels)].maximum == 2
    assert found[("serving_p95_ms", *labels)].maximum == 8.0
    assert ("serving_p50_ms", *labels) not in found
    assert found[("throttling", "under_voltage")].total == 2
    assert found[("throttling", "throttled")].total == 0


async def test_without_serving_the_device_still_reports(sensors: Sensors) -> None:
    far = Far(None)
    reporter = far.reporter(sensors)
    await reporter.sample()
    far.now += 10
    await reporter.report()
    assert far.windows()[("serving_up",)].total == 0


async def test_a_full_disk_loses_a_report_and_not_the_reporter(sensors: Sensors) -> None:
    far = Far(None)
    reporter = far.reporter(sensors)
    far.failing = True
    await reporter.sample()
    far.now += 10
    await reporter.report()
    far.failing = False
    await reporter.sample()
    far.now += 10
    await reporter.report()
    assert len(far.messages) == 1


async def test_keys_differ_over_windows_and_lives(sensors: Sensors) -> None:
    far = Far(None)
    for reporter in (far.reporter(sensors), far.reporter(sensors)):
        for _ in range(2):
            await reporter.sample()
            far.now += 10
            await reporter.report()
    assert len({key for _, _, key in far.messages}) == 4


async def test_the_largest_report_passes_through_the_outbox(sensors: Sensors, tmp_path: Path) -> None:
    name = "b-" + "f" * 32
    many = [
        build(2**40, 2**40, f"{name[:-3]}{n:03}", p50_ms=1 / 3, p95_ms=2 / 3, p99_ms=1e6 / 3)
        for n in range(MAX_BUILDS + 10)
    ]
    far = Far(state(*many))
    reporter = far.reporter(sensors)
    for _ in range(3):
        await reporter.sample()
        far.now += 4
    await reporter.report()
    found = far.windows()
    assert sum(name[0] == "serving_requests" for name in found) == MAX_BUILDS
    assert ("health_dropped",) not in found
    outbox = Outbox(tmp_path / "outbox.db")
    outbox.put(*far.messages[0])
    assert outbox.pending() == 1
    outbox.close()


async def test_run_reports_until_it_is_cancelled(tmp_path: Path) -> None:
    came = asyncio.Event()
    loop = asyncio.get_running_loop()

    def put(message_type: type[Sequenced], fields: dict[str, Any], key: str) -> None:
        loop.call_soon_threadsafe(came.set)

    far = Far(state(build(), pid=os.getpid()))
    reporter = Reporter(
        interval=0.05,
        sensors=Sensors(Path("/"), tmp_path),
        serving=far.serving,
        put=put,
    )
    task = asyncio.create_task(reporter.run())
    await asyncio.wait_for(came.wait(), 10)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert task.cancelled()


async def test_the_dearest_reading_is_taken_once_a_window(sensors: Sensors) -> None:
    far = Far(state(build(), pid=os.getpid()))
    reporter = far.reporter(sensors)
    asked: list[bool] = []
    read = sensors.read

    def counted(*arguments: Any, pss: bool) -> Any:
        asked.append(pss)
        return read(*arguments, pss=pss)

    sensors.read = counted  # type: ignore[method-assign]
    for _ in range(2 * SAMPLES):
        await reporter.sample()
    assert asked == [True, *[False] * (SAMPLES - 1)] * 2


def added(counts: Counts, *arguments: Any, **more: Any) -> list[tuple[str, int, int]]:
    return [(row.build, requests, errors) for row, requests, errors in counts.added(state(*arguments, **more))]


def test_what_was_counted_before_the_agent_began_is_old() -> None:
    counts = Counts()
    assert added(counts, build(1000, 5)) == [("b-1", 0, 0)]
    assert added(counts, build(1007, 6)) == [("b-1", 7, 1)]


def test_a_new_build_and_a_new_process_count_from_zero() -> None:
    counts = Counts()
    added(counts, build(10))
    assert added(counts, build(12), build(3, 1, "b-2")) == [("b-1", 2, 0), ("b-2", 3, 1)]
    assert added(counts, build(20, 2), pid=2) == [("b-1", 20, 2)]
    assert added(counts, build(4, 0), pid=2) == [("b-1", 4, 0)]
    assert added(counts, pid=2) == []
    assert added(counts, build(9), pid=2) == [("b-1", 9, 0)]
