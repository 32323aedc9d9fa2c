"""Runs one step of a build in a process of its own, so that a hostile or broken model kills only that process.

Invariant: the child has a bound on memory, on processor time, on wall time and on what it may answer, and none of this
process's environment beyond what Python needs; when the caller is cancelled the child is killed. Does not know what the
child does: a module's `main` answers a JSON request from standard input with JSON on standard output.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

MAX_ANSWER: Final = 4 * 1024**2
MAX_LOG: Final = 64 * 1024
PACKAGES: Final = str(Path(__file__).resolve().parents[2])


class StepError(Exception):
    """A step of a build failed. ``permanent``: it will fail again, because of the model or the data themselves."""

    def __init__(self, message: str, *, permanent: bool) -> None:
        super().__init__(message)
        self.permanent = permanent


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a child may use. seconds: of wall time, and of processor time with some room. memory_bytes: addressable."""

    seconds: float = 600.0
    memory_bytes: int = 4 * 1024**3


class Answer(msgspec.Struct, frozen=True):
    """What a child says: ``result`` on success, or a ``refusal`` that tells what is wrong with the model or data."""

    result: dict[str, Any] = {}
    refusal: str = ""


async def run_child(module: str, request: dict[str, Any], bounds: Bounds) -> dict[str, Any]:
    """Return what ``python -m module`` answers to ``request``.

    Raises StepError: permanent when the child refused its input; not permanent when it died or passed a bound, for the
    same may succeed on a less busy machine.
    """
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "PYTHONPATH": PACKAGES,
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", module),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(bounds.seconds):
            output, log = await _converse(process, msgspec.json.encode({"bounds": bounds, "request": request}))
    except TimeoutError as error:
        raise StepError(f"{module} took longer than {bounds.seconds:.0f} s and was ended", permanent=False) from error
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    tail = log.decode(errors="replace").strip()[-2000:]
    if process.returncode != 0:
        raise StepError(f"{module} {_end(process.returncode or 0)}: {tail or 'it said nothing'}", permanent=False)
    try:
        answer = msgspec.json.decode(output, type=Answer)
    except msgspec.MsgspecError as error:
        raise StepError(f"{module} gave no proper answer ({len(output)} bytes): {tail}", permanent=False) from error
    if answer.refusal:
        raise StepError(answer.refusal, permanent=True)
    return answer.result


async def _converse(process: asyncio.subprocess.Process, request: bytes) -> tuple[bytes, bytes]:
    """Write ``request`` and read both outputs at the same time, each up to its bound; what is over it is dropped."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    reading = asyncio.gather(_read(process.stdout, MAX_ANSWER), _read(process.stderr, MAX_LOG))
    try:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it died early: its exit status tells
            process.stdin.write(request)
            await process.stdin.drain()
            process.stdin.close()
        output, log = await reading
        await process.wait()
    finally:
        reading.cancel()
    return output, log


async def _read(stream: asyncio.StreamReader, limit: int) -> bytes:
    kept = bytearray()
    while chunk := await stream.read(65_536):
        kept += chunk
        if len(kept) > limit:
            del kept[: len(kept) - limit]  # the end of a log says why
    return bytes(kept)


def _end(code: int) -> str:
    """Return how a process ended, in words."""
    if code >= 0:
        return f"failed with status {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


def serve_request(answer: Callable[[dict[str, Any]], dict[str, Any]], refusal: type[Exception]) -> None:
    """Run inside the child: limit this process, read the request, write what ``answer`` returns.

    An exception of type ``refusal`` becomes the answer's refusal; MemoryError becomes one too, for the bound on memory
    is the same on the next try. Everything else ends the process with a traceback on standard error.
    """
    request = msgspec.json.decode(sys.stdin.buffer.read(MAX_ANSWER))
    bounds = msgspec.convert(request["bounds"], Bounds)
    resource.setrlimit(resource.RLIMIT_AS, (bounds.memory_bytes, bounds.memory_bytes))
    processor = int(bounds.seconds) + 5  # stays in force even when the parent is killed before it can end the child
    resource.setrlimit(resource.RLIMIT_CPU, (processor, processor))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):  # on a machine with less memory than the bound, this process is the one to go
        Path("/proc/self/oom_score_adj").write_text("1000")
    output = os.dup(1)
    os.dup2(2, 1)  # whatever a native library prints belongs to the log, not to the answer
    try:
        said = Answer(result=answer(request["request"]))
    except refusal as error:
        said = Answer(refusal=str(error)[:2000])
    except MemoryError:
        gibibytes = bounds.memory_bytes / 1024**3
        said = Answer(refusal=f"the model or its data need more than the {gibibytes:.1f} GiB that a build step may use")
    with os.fdopen(output, "wb") as stream:
        stream.write(msgspec.json.encode(said))
