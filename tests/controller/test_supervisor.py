from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from controller.supervisor import LOG_BYTES, LONGEST_DELAY, Child, Supervisor, delay_before, trim


def child(tmp_path: Path, code: str, name: str = "child") -> Child:
    return Child(name=name, command=[sys.executable, "-c", code], log=tmp_path / f"{name}.log")


async def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_a_killed_child_is_started_again_and_the_output_is_kept(tmp_path: Path) -> None:
    stop, ended = asyncio.Event(), []
    supervisor = Supervisor(stop, lambda one, status: ended.append((one.name, status)))
    one = child(tmp_path, "import time; print('here', flush=True); time.sleep(60)")
    supervisor.start(one)
    await until(lambda: one.log.exists() and one.log.read_text().count("here") == 1)
    first = one.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await until(lambda: one.log.read_text().count("here") == 2)
    assert one.pid not in (None, first)
    assert ended == [("child", -signal.SIGKILL)]
    await supervisor.end()
    assert not alive(first)


async def test_stopping_ends_every_child_and_one_that_ignores_it_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.supervisor.STOP_SECONDS", 0.5)
    stop = asyncio.Event()
    supervisor = Supervisor(stop)
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    children = [
        child(tmp_path, deaf, "deaf"),
        child(tmp_path, "import time; print('up', flush=True); time.sleep(60)", "polite"),
    ]
    for one in children:
        supervisor.start(one)
    await until(lambda: all(one.log.exists() and "up" in one.log.read_text() for one in children))
    pids = [one.pid for one in children]
    stop.set()
    await asyncio.wait_for(supervisor.run(), 10)
    assert not any(alive(pid) for pid in pids if pid is not None)


async def test_a_start_that_fails_at_once_is_told(tmp_path: Path) -> None:
    stop, told = asyncio.Event(), asyncio.Event()
    supervisor = Supervisor(stop, lambda one, status: told.set())
    one = child(tmp_path, "import sys; print('port taken', file=sys.stderr); sys.exit(5)")
    supervisor.start(one)
    await asyncio.wait_for(told.wait(), 10)
    assert one.first_exit == 5
    assert "port taken" in one.log.read_text()
    await supervisor.end()


async def test_a_child_that_cannot_be_started_is_tried_again(tmp_path: Path) -> None:
    told: list[int] = []
    supervisor = Supervisor(asyncio.Event(), lambda one, status: told.append(status))
    program = tmp_path / "program"
    one = Child(name="child", command=[str(program)], log=tmp_path / "log")
    supervisor.start(one)
    await until(lambda: told)
    assert told[0] == 127
    fresh = tmp_path / "fresh"
    fresh.write_text("#!/bin/sh\necho up; exec sleep 60\n")
    fresh.chmod(0o755)
    fresh.rename(program)
    await until(lambda: one.log.exists() and "up" in one.log.read_text())
    await supervisor.end()


async def test_the_log_of_a_child_that_runs_for_long_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.supervisor.LOOK_SECONDS", 0.02)
    monkeypatch.setattr("controller.supervisor.LOG_BYTES", 4096)
    supervisor = Supervisor(asyncio.Event())
    code = "import time\nfor n in range(10**6): print('line', n, flush=True); time.sleep(0.0005)"
    one = child(tmp_path, code)
    supervisor.start(one)
    await until(lambda: one.log.exists() and one.log.read_bytes().startswith(b"line ") and _first(one.log) > 1000)
    assert one.log.stat().st_size < 100_000
    assert b"\0" not in one.log.read_bytes(), "the child writes at the new end"
    assert one.restarts == 0
    await supervisor.end()


def _first(log: Path) -> int:
    words = log.read_bytes().split(b"\n")[0].split()
    return int(words[1]) if len(words) == 2 else 0


def test_delays_grow_and_are_bounded() -> None:
    rng = random.Random(1)
    delays = [max(delay_before(n, rng) for _ in range(50)) for n in range(1, 12)]
    assert delays[0] < delays[3] < delays[5]
    assert max(delays) <= LONGEST_DELAY


def test_a_log_keeps_its_end(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"old line\n" * (LOG_BYTES // 9 + 2) + b"the last line\n")
    trim(log)
    kept = log.read_bytes()
    assert len(kept) <= LOG_BYTES // 2
    assert kept.startswith(b"old line\n")
    assert kept.endswith(b"the last line\n")
