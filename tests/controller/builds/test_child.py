"""A child process that misbehaves takes nothing along."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from controller.builds import child
from controller.builds.child import Bounds, StepError, run_child

MODULE = """
import os, sys, time
from controller.builds.child import serve_request

class Refusal(Exception):
    pass

def answer(request):
    what = request["do"]
    if what == "refuse":
        raise Refusal("no good")
    if what == "sleep":
        open(request["pid"], "w").write(str(os.getpid()))
        time.sleep(60)
    if what == "spin":
        while True:
            pass
    if what == "memory":
        return {"bytes": len(bytearray(8 * 1024**3))}
    if what == "crash":
        os.abort()
    if what == "raise":
        raise ZeroDivisionError("odd")
    if what == "print":
        os.write(1, b"a native library talks")
        print("so does Python")
    if what == "flood":
        sys.stderr.write("x" * 5_000_000)
        raise ZeroDivisionError("the end of the log")
    if what == "victim":
        return {"score": int(open("/proc/self/oom_score_adj").read())}
    if what == "environment":
        return {"names": sorted(os.environ)}
    return {"echo": request}

serve_request(answer, Refusal)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "misbehaving.py").write_text(MODULE)
    monkeypatch.setattr(child, "PACKAGES", f"{child.PACKAGES}{os.pathsep}{tmp_path}")
    return "misbehaving"


async def do(module: str, what: str, bounds: Bounds | None = None, **more: Any) -> dict[str, Any]:
    return await run_child(module, {"do": what} | more, bounds or Bounds(20, 1024**3))


async def test_it_answers_and_what_it_prints_is_not_its_answer(module: str) -> None:
    assert await do(module, "echo", number=7) == {"echo": {"do": "echo", "number": 7}}
    assert await do(module, "print") == {"echo": {"do": "print"}}


@pytest.mark.parametrize(
    ("what", "permanent", "words"),
    [
        ("refuse", True, "no good"),
        ("memory", True, "more than the 1.0 GiB"),
        ("crash", False, "SIGABRT"),
        ("raise", False, "ZeroDivisionError: odd"),
        ("flood", False, "the end of the log"),
    ],
)
async def test_each_way_to_fail(module: str, what: str, permanent: bool, words: str) -> None:
    with pytest.raises(StepError, match=words) as failed:
        await do(module, what)
    assert failed.value.permanent is permanent
    assert len(str(failed.value)) < 3000


async def test_a_child_that_takes_too_long_is_ended(module: str, tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(StepError, match="longer than 1 s") as failed:
        await do(module, "spin", Bounds(0.6, 1024**3))
    assert time.monotonic() - began < 5
    assert not failed.value.permanent


async def test_when_the_caller_is_cancelled_the_child_is_gone(module: str, tmp_path: Path) -> None:
    file = tmp_path / "pid"
    task = asyncio.create_task(do(module, "sleep", pid=str(file)))
    async with asyncio.timeout(10):
        while not (file.exists() and file.read_text()):
            await asyncio.sleep(0.01)
    pid = int(file.read_text())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_when_memory_runs_out_it_is_the_one_to_go(module: str) -> None:
    assert await do(module, "victim") == {"score": 1000}


async def test_it_sees_nothing_of_this_environment(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUSTER_TOKEN", "secret")
    names = (await do(module, "environment"))["names"]
    assert set(names) <= {"PATH", "PYTHONPATH", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "LC_CTYPE"}, sys.executable
