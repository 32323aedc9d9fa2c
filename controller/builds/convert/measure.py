"""Measures builds of one model beside each other: the benchmark's child process.

Invariant: all builds are measured in the same process, in interleaved rounds of random order, one thread, without
spinning, on real rows (never zeros); memory is measured for one build in a process of its own. Does not judge.
"""

from __future__ import annotations

import gc
import random
import resource
import time
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from controller.builds.child import serve_request
from controller.builds.convert.data import Array, InputRefusedError, Rows, TensorSpec, count, read_data, take
from controller.builds.convert.engine import open_session, run, tensors_of

MODULE: Final = "controller.builds.convert.measure"
ROUND_SECONDS: Final = 0.004  # long beside the clock's resolution, short beside other processes' bursts
MAX_RUNS: Final = 200  # of one build in one round
WARM_SECONDS: Final = 0.2
HELDOUT_BATCH: Final = 64
INT8_SHARE: Final = 0.05  # of the outputs' range: other processors round INT8 sums differently
FP32_SHARE: Final = 1e-3


class Build(msgspec.Struct, frozen=True, kw_only=True):
    """precision: names the build; model: path; golden: where its golden rows and outputs are written."""

    precision: str
    model: str
    golden: str


class OutputsRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The first of ``builds`` is the baseline."""

    builds: list[Build]
    data: str


class SpeedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """rounds: at least; seconds: after the least number of rounds, stop when these are over."""

    builds: list[Build]
    data: str
    rounds: int
    seconds: float
    seed: int


class MemoryRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Load and run one model. golden: its golden file, as ``outputs`` wrote it."""

    model: str
    golden: str


class Outputs(msgspec.Struct, frozen=True, kw_only=True):
    """Of one build: see `controller/builds/figures.py`."""

    finite: bool
    samples: int
    right: int | None
    lost: int
    gained: int
    difference: float
    tolerance: float


class Times(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds of one build at one batch size."""

    p50_ms: float
    p95_ms: float
    runs: int
    rounds: list[float]


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes: of the process before the model is loaded, and the most it ever had."""

    bare: int
    peak: int


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Do what ``request`` asks (one key names the operation). Raises InputRefusedError."""
    if "outputs" in request:
        return {"builds": msgspec.to_builtins(outputs(msgspec.convert(request["outputs"], OutputsRequest)))}
    if "speed" in request:
        return {"times": msgspec.to_builtins(speed(msgspec.convert(request["speed"], SpeedRequest)))}
    return msgspec.to_builtins(memory(msgspec.convert(request["memory"], MemoryRequest)))  # type: ignore[no-any-return]


def outputs(request: OutputsRequest) -> list[Outputs]:
    """Write each build's golden file; return what its outputs are worth against the baseline's."""
    found: list[Outputs] = []
    baseline: tuple[list[Array], Array | None] | None = None
    for build in request.builds:
        session = open_session(Path(build.model).read_bytes())
        specs, results = tensors_of(session)
        data = read_data(Path(request.data), specs)
        batch = _batch(specs)
        golden = take(data.golden, 0, batch or count(data.golden))
        answers = run(session, golden)
        arrays: dict[str, Any] = {f"input_{name}": array for name, array in golden.items()}
        arrays |= {f"output_{spec.name}": array for spec, array in zip(results, answers, strict=True)}
        np.savez(build.golden, **arrays)
        finite, right, scores_range = _finite(answers), None, 0.0
        size = batch or HELDOUT_BATCH
        rows = count(data.heldout) // size * size if batch else count(data.heldout)
        for start in range(0, rows, size):
            parts = run(session, take(data.heldout, start, min(start + size, rows)))
            finite = finite and _finite(parts)
            if data.labels is not None:
                hits = parts[0].argmax(axis=1) == data.labels[start : start + len(parts[0])]
                right = hits if right is None else np.concatenate((right, hits))
        if baseline is None:
            baseline = (answers, right)
        spread = [_spread(array) for array in answers]
        difference = max(
            (_distance(mine, base) / (_spread(base) or 1.0) for mine, base in zip(answers, baseline[0], strict=True)),
            default=0.0,
        )
        scores_range = max(spread) if finite else 0.0
        share = FP32_SHARE if build.precision == "fp32" else INT8_SHARE
        found.append(
            Outputs(
                finite=finite,
                samples=0 if right is None else len(right),
                right=None if right is None else int(right.sum()),
                lost=0 if right is None or baseline[1] is None else int((baseline[1] & ~right).sum()),
                gained=0 if right is None or baseline[1] is None else int((right & ~baseline[1]).sum()),
                difference=difference if np.isfinite(difference) else -1.0,
                tolerance=max(share * scores_range, 1e-6),
            )
        )
    return found


def speed(request: SpeedRequest) -> dict[str, list[Times | None]]:
    """Return the times of each build: one row, eight rows (None if that is not possible), the golden rows at once."""
    rng = random.Random(request.seed)
    sessions = [open_session(Path(build.model).read_bytes()) for build in request.builds]
    specs, _ = tensors_of(sessions[0])
    data = read_data(Path(request.data), specs)
    source = data.heldout or data.golden
    batch = _batch(specs)
    cases: dict[str, list[Rows] | None] = {
        "batch1": _requests(source, batch or 1),
        "batch8": None if batch or count(source) < 8 else _requests(source, 8),
        "golden": [take(data.golden, 0, batch or count(data.golden))],
    }
    times: dict[str, list[Times | None]] = {}
    for name, requests in cases.items():
        if requests is None:
            times[name] = [None] * len(sessions)
        else:
            times[name] = list(_interleaved(sessions, requests, rng, request.rounds, request.seconds))
    return times


def _interleaved(
    sessions: list[Any], requests: list[Rows], rng: random.Random, least_rounds: int, seconds: float
) -> list[Times]:
    runs = [_warm(session, requests) for session in sessions]
    samples: list[list[Array]] = [[] for _ in sessions]
    deadline = time.perf_counter() + seconds
    gc.collect()
    gc.disable()
    try:
        for done in range(least_rounds * 10):
            if done >= least_rounds and time.perf_counter() > deadline:
                break
            order = list(range(len(sessions)))
            rng.shuffle(order)
            first = rng.randrange(len(requests))
            for index in order:
                samples[index].append(_round(sessions[index], requests, first, runs[index]))
    finally:
        gc.enable()
    found = []
    for each in samples:
        every = np.concatenate(each)
        p50, p95 = (float(value) for value in np.percentile(every, [50, 95]))
        found.append(Times(p50_ms=p50, p95_ms=p95, runs=len(every), rounds=[float(np.median(part)) for part in each]))
    return found


def _round(session: Any, requests: list[Rows], first: int, runs: int) -> Array:
    """Return the milliseconds of each of ``runs`` runs, after one, not counted, that finds the caches cold."""
    found = np.empty(runs, np.float64)
    session.run(None, requests[first - 1])
    for at in range(runs):
        rows = requests[(first + at) % len(requests)]
        started = time.perf_counter_ns()
        session.run(None, rows)
        found[at] = (time.perf_counter_ns() - started) / 1e6
    return found


def _warm(session: Any, requests: list[Rows]) -> int:
    """Run ``session`` for a while; return how many runs fill a round."""
    fastest, end, at = float("inf"), time.perf_counter() + WARM_SECONDS, 0
    while at < 3 or (time.perf_counter() < end and at < 5000):
        started = time.perf_counter()
        session.run(None, requests[at % len(requests)])
        fastest = min(fastest, time.perf_counter() - started)
        at += 1
    return max(3, min(MAX_RUNS, round(ROUND_SECONDS / fastest)))


def memory(request: MemoryRequest) -> Memory:
    """Return what loading the model and running it at one and eight rows costs."""
    with np.load(request.golden, allow_pickle=False) as archive:
        golden = {name.removeprefix("input_"): archive[name] for name in archive.files if name.startswith("input_")}
    path = Path(request.model)
    bare = _peak()
    session = open_session(path.read_bytes())
    batch = _batch(tensors_of(session)[0])
    for size in (batch,) if batch else (1, min(8, count(golden))):
        for _ in range(3):
            run(session, take(golden, 0, size))
    return Memory(bare=bare, peak=_peak())


def _peak() -> int:
    """Return the most memory this process ever held, in bytes.

    Linux hands ru_maxrss on from the process that started this one, however large that was: VmHWM is this one's own.
    """
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _requests(source: Rows, size: int) -> list[Rows]:
    wanted = [take(source, start, start + size) for start in range(0, count(source) - size + 1, size)]
    return wanted[:64]


def _batch(specs: tuple[TensorSpec, ...]) -> int:
    return max(0, specs[0].shape[0])


def _finite(arrays: list[Array]) -> bool:
    return all(bool(np.isfinite(array).all()) for array in arrays)


def _spread(array: Array) -> float:
    return float(array.max()) - float(array.min()) if array.size else 0.0


def _distance(one: Array, other: Array) -> float:
    if one.shape != other.shape or not one.size:
        return 0.0 if one.shape == other.shape else float("inf")
    return float(np.abs(one.astype(np.float64) - other.astype(np.float64)).max())


if __name__ == "__main__":
    serve_request(answer, InputRefusedError)
