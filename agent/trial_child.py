"""Tries a build or a model file in a child process with a memory limit and a deadline (`serving/trial.py`).

Invariant: whatever the model does to the child, the caller gets a result with a plain reason, and no child outlives the
deadline. Does not decide what a failed trial means for an update, or for a directory of models.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import sys
from pathlib import Path
from typing import Final

import msgspec

from agent.errors import DeviceError

MAX_OUTPUT: Final = 64 * 1024
LOG_TAIL: Final = 4096
_REASONS: Final = {
    signal.SIGSEGV: "the engine crashed (segmentation fault)",
    signal.SIGILL: "the engine uses an instruction that this processor does not have",
    signal.SIGBUS: "the engine crashed (bus error)",
    signal.SIGFPE: "the engine crashed (arithmetic error)",
    signal.SIGABRT: "the engine gave up (abort), most often for want of memory",
    signal.SIGKILL: "the child was killed, most often by the system for want of memory",
}


class TrialResult(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a trial. Milliseconds and bytes, 0 where it did not get that far; difference -1 likewise.

    log_tail: the end of what the child wrote to its error output.
    """

    passed: bool
    reason: str
    difference: float = -1.0
    p50_ms: float = 0.0
    p95_ms: float = 0.0
    load_ms: float = 0.0
    peak_memory_bytes: int = 0
    log_tail: str = ""


async def run_trial(directory: Path, memory_bytes: int, deadline: float) -> TrialResult:
    """Try the build in ``directory``, or the model file of that name, within ``deadline`` seconds.

    It may take ``memory_bytes`` at most, 0 for no limit.
    Raises DeviceError when no child can be started: that says nothing about the build.
    """
    command = [sys.executable, "-m", "agent.serving.trial", str(directory), "--deadline", str(math.ceil(deadline) + 1)]
    if memory_bytes > 0:
        command += ["--memory-bytes", str(memory_bytes)]
    try:
        child = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is the agent's business
            env=os.environ | {"MALLOC_ARENA_MAX": "2"},
        )
    except OSError as error:
        raise DeviceError(f"the trial of a build cannot be started: {error}; is memory short?", "no_trial") from error
    assert child.stdout is not None
    assert child.stderr is not None
    output = asyncio.create_task(_tail(child.stdout, MAX_OUTPUT))
    errors = asyncio.create_task(_tail(child.stderr, LOG_TAIL))
    try:
        async with asyncio.timeout(deadline):
            status = await child.wait()
    except TimeoutError:
        await _kill(child)
        return TrialResult(passed=False, reason=f"no verdict within {deadline:g} s", log_tail=_text(await errors))
    finally:
        await _kill(child)
        await asyncio.gather(output, errors)
    return _judge(status, output.result(), _text(errors.result()), deadline)


def _judge(status: int, output: bytes, log_tail: str, deadline: float) -> TrialResult:
    if status == 0:
        try:
            result = msgspec.json.decode(output.strip().rpartition(b"\n")[2], type=TrialResult)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return TrialResult(passed=False, reason="the trial ended without a verdict", log_tail=log_tail)
        return msgspec.structs.replace(result, log_tail=log_tail)
    if status == -signal.SIGALRM:
        reason = f"no verdict within {deadline:g} s"
    elif status < 0:
        try:
            number = signal.Signals(-status)
            reason = _REASONS.get(number, f"the child was ended by {number.name}")
        except ValueError:
            reason = f"the child was ended by signal {-status}"
    else:
        reason = f"the trial failed with exit code {status}"
    return TrialResult(passed=False, reason=reason, log_tail=log_tail)


async def _kill(child: asyncio.subprocess.Process) -> None:
    """End the child, if it has not ended, and whatever it has started: the pipes are closed then."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    await child.wait()


async def _tail(stream: asyncio.StreamReader, limit: int) -> bytes:
    """Read all of ``stream`` so that the child never waits, and return its last ``limit`` bytes."""
    kept = b""
    while data := await stream.read(16_384):
        kept = (kept + data)[-limit:]
    return kept


def _text(data: bytes) -> str:
    return data.decode(errors="replace")
