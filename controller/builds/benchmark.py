"""Measures the candidates of one job: outputs, speed and memory, each in fresh child processes.

Invariant: what is returned comes from one measurement of all candidates together, the baseline first. Imports no engine
(`convert/measure.py` runs in the child) and does not judge (`accept.py`).
"""

from __future__ import annotations

import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from controller.builds.child import Bounds, StepError, run_child
from controller.builds.figures import Latency, Measured, wilson
from wire.manifest import Figures

_CHILD: Final = "controller.builds.convert.measure"
ROUNDS: Final = 40
SECONDS: Final = 1.5  # for each batch size, once the rounds are done


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model file to measure. ``golden``: where the child writes its golden rows and outputs (npz)."""

    precision: str
    model: Path
    golden: Path


class _Outputs(msgspec.Struct, frozen=True):
    finite: bool
    samples: int
    right: int | None
    lost: int
    gained: int
    difference: float
    tolerance: float


class _Times(msgspec.Struct, frozen=True):
    p50_ms: float
    p95_ms: float
    runs: int
    rounds: tuple[float, ...]

    def latency(self) -> Latency:
        return Latency(self.p50_ms, self.p95_ms, self.runs, self.rounds)


class _Memory(msgspec.Struct, frozen=True):
    bare: int
    peak: int


async def measure(
    candidates: Sequence[Candidate], data: Path, bounds: Bounds, *, seed: int, rounds: int = ROUNDS
) -> list[Measured]:
    """Return the figures of ``candidates``, of which the first is the baseline, on the rows in ``data``.

    Writes each candidate's golden file. Raises StepError.
    """
    builds = [{"precision": c.precision, "model": str(c.model), "golden": str(c.golden)} for c in candidates]
    found = await run_child(_CHILD, {"outputs": {"builds": builds, "data": str(data)}}, bounds)
    outputs = _convert(found["builds"], list[_Outputs])
    timing = {"builds": builds, "data": str(data), "rounds": rounds, "seconds": SECONDS, "seed": seed}
    times = _convert((await run_child(_CHILD, {"speed": timing}, bounds))["times"], dict[str, list[_Times | None]])
    measured = []
    for index, candidate in enumerate(candidates):
        asked = {"memory": {"model": str(candidate.model), "golden": str(candidate.golden)}}
        memory = _convert(await run_child(_CHILD, asked, bounds), _Memory)
        one, eight, golden = (times[name][index] for name in ("batch1", "batch8", "golden"))
        if one is None or golden is None:
            raise StepError("the benchmark measured no time", permanent=False)
        result = outputs[index]
        measured.append(
            Measured(
                precision=candidate.precision,
                size_bytes=candidate.model.stat().st_size,
                finite=result.finite,
                samples=result.samples,
                right=result.right,
                lost=result.lost,
                gained=result.gained,
                difference=result.difference,
                tolerance=result.tolerance,
                batch1=one.latency(),
                batch8=eight.latency() if eight else None,
                golden_ms=golden.p95_ms,
                memory_bytes=memory.peak - memory.bare,
                peak_memory_bytes=memory.peak,
            )
        )
    return measured


def figures(measured: Measured, machine: str) -> Figures:
    """Return ``measured`` as a manifest states it (wire 6), with the accuracy's 95 % interval."""
    low: float | None = None
    high: float | None = None
    if measured.right is not None and measured.samples:
        low, high = wilson(measured.right, measured.samples)
    return Figures(
        accuracy=measured.accuracy,
        accuracy_low=low,
        accuracy_high=high,
        samples=measured.samples,
        p50_ms=measured.batch1.p50_ms,
        p95_ms=measured.batch1.p95_ms,
        p50_ms_batch8=measured.batch8.p50_ms if measured.batch8 else None,
        peak_memory_bytes=measured.peak_memory_bytes,
        size_bytes=measured.size_bytes,
        measured_on=machine,
    )


def this_machine() -> str:
    """Return words for the machine that measures: processor, architecture, whether it has int8 dot products."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    products = bool(flags and re.search(r"vnni|asimddp", flags[1]))
    return (
        f"{name[1].strip()[:120] if name else 'processor of unknown name'}, {platform.machine()}, "
        f"{'with' if products else 'without'} int8 dot products, 1 thread"
    )


def _convert(value: Any, kind: Any) -> Any:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise StepError(f"the benchmark's child answered something odd: {error}", permanent=False) from error
