"""A first run on this device, in a process of its own: ``python -m agent.serving.trial DIR`` or ``MODEL_FILE``.

Invariant: prints one line of JSON and ends with 0 when a verdict was reached, good or bad; whatever takes the process
down (a crash of the engine, the memory limit, the deadline) takes only this process down. Serves nothing.

Passed means: loaded and run within the limits of the process, golden outputs within the tolerance. A file without a
manifest has no golden outputs: it is loaded, and run on made-up inputs where its shapes allow it. The latency and the
peak memory (of the whole process) are told, not judged: a busy moment of the device may deserve another trial.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import resource
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from agent.errors import AgentError, ServingError
from agent.serving.build import Build, Opened, open_build, read_build, synthetic
from agent.serving.golden import NOT_COMPARABLE, Comparison, compare, percentile

RUNS: Final = 20
_WARM_UP: Final = 2


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What the line says. Milliseconds and bytes; ``difference`` is -1 where outputs could not be compared."""

    passed: bool
    reason: str
    difference: float = NOT_COMPARABLE
    p50_ms: float = 0.0
    p95_ms: float = 0.0
    load_ms: float = 0.0
    peak_memory_bytes: int = 0


def try_build(directory: Path, runs: int) -> Verdict:
    """Return the verdict on the build in ``directory`` after ``runs`` golden runs."""
    try:
        opened = open_build(read_build(directory))
    except (AgentError, MemoryError) as error:
        return Verdict(passed=False, reason=str(error) or "not enough memory", peak_memory_bytes=peak_memory())
    times: list[float] = []
    worst = Comparison(True, "", 0.0)
    try:
        for count in range(_WARM_UP + runs):
            begun = time.perf_counter()
            found = _run(opened)
            if count >= _WARM_UP:
                times.append(1000 * (time.perf_counter() - begun))
            if not found.passed or found.difference >= worst.difference:
                worst = found
            if not found.passed:
                break
    except (AgentError, MemoryError) as error:
        worst = Comparison(False, str(error) or "not enough memory", NOT_COMPARABLE)
    p95 = percentile(times, 0.95) if times else 0.0
    return Verdict(
        passed=worst.passed,
        reason=worst.reason,
        difference=worst.difference,
        p50_ms=round(percentile(times, 0.5), 3) if times else 0.0,
        p95_ms=round(p95, 3),
        load_ms=round(opened.load_ms, 3),
        peak_memory_bytes=peak_memory(),
    )


def try_file(file: Path) -> Verdict:
    """Return whether the model ``file``, of which nothing else is known, can be loaded and run."""
    try:
        opened = open_build(Build(model="trial", version="0", build="trial", file=file, max_batch=1))
        _run_made_up(opened)
    except (AgentError, MemoryError) as error:
        return Verdict(passed=False, reason=str(error) or "not enough memory", peak_memory_bytes=peak_memory())
    return Verdict(passed=True, reason="", load_ms=round(opened.load_ms, 3), peak_memory_bytes=peak_memory())


def _run_made_up(opened: Opened) -> None:
    """Run once on made-up inputs. A model may refuse them; what it may not do is to eat the memory or never end."""
    sample = synthetic(opened.signature)
    if sample:
        with contextlib.suppress(ServingError):
            opened.runtime.run(sample)


def peak_memory() -> int:
    """Return the most memory that this process ever held, bytes.

    From the process's own memory map: getrusage would still count the parent's from before the exec.
    """
    return 1024 * _status("VmHWM")


def limit_memory(more: int) -> None:
    """Let this process take at most ``more`` bytes of address space on top of what Python and the engine hold."""
    limit = 1024 * _status("VmSize") + more
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with ``argv`` and return its exit code."""
    parser = argparse.ArgumentParser(prog="agent.serving.trial", description="Try a build on this device.")
    parser.add_argument("directory", type=Path, help="an installed build, or a model file")
    parser.add_argument("--memory-bytes", type=int, default=0, help="what the process may take at most")
    parser.add_argument("--runs", type=int, default=RUNS, help=f"golden runs ({RUNS})")
    parser.add_argument("--deadline", type=int, default=0, help="seconds after which the process ends by itself")
    arguments = parser.parse_args(argv)
    faulthandler.enable()
    if arguments.deadline > 0:
        signal.alarm(arguments.deadline)  # also when whoever started the trial is gone
    if arguments.memory_bytes > 0:
        limit_memory(arguments.memory_bytes)
    target: Path = arguments.directory
    verdict = try_file(target) if target.is_file() else try_build(target, max(arguments.runs, 1))
    print(msgspec.json.encode(verdict).decode(), flush=True)
    return 0


def _run(opened: Opened) -> Comparison:
    assert opened.golden is not None  # a manifest always names one
    return compare(opened.golden.outputs, opened.runtime.run(opened.golden.inputs), opened.build.tolerance)


def _status(field: str) -> int:
    """Return a line of /proc/self/status in KiB, 0 where the system does not tell."""
    with contextlib.suppress(OSError), Path("/proc/self/status").open() as file:
        for line in file:
            if line.startswith(f"{field}:"):
                return int(line.split()[1])
    return 0


if __name__ == "__main__":
    sys.exit(main())
