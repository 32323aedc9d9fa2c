"""INT8 against FP32 of the digits sample: `python -m benchmarks.builds [--rounds 100] [--repeats 3] [--json FILE]`.

Trains two sizes of the network, makes the candidates in child processes, measures size, speed, memory and accuracy as
the builder does, and says what the gate says. Every repeat measures anew in fresh processes: the ranges in the table
are those of the repeats.
"""

from __future__ import annotations

import asyncio
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import onnxruntime
from rich.console import Console
from rich.table import Table

from benchmarks.table import json_option
from controller.builds import benchmark
from controller.builds.accept import LIMITS, Accepted, accept
from controller.builds.child import Bounds, run_child
from controller.builds.figures import Measured, slowdown, wilson
from controller.builds.recipe import Optimization, SourceFacts, recipe
from controller.local.sample import Sample, train

CONVERT = "controller.builds.convert.onnx"
NETWORKS = {"CNN 32/64/128": ((32, 64), 128), "CNN 16/32/64": ((16, 32), 64)}


async def build(sample: Sample, directory: Path, optimization: Optimization) -> tuple[list[benchmark.Candidate], float]:
    """Return the candidates of one trained network and the seconds that making them took."""
    began, bounds = time.monotonic(), Bounds()
    baseline = directory / "fp32.onnx"
    request = {"model": str(sample.model), "data": str(sample.data), "output": str(baseline)}
    checked = (await run_child(CONVERT, {"check": request}, bounds))["checked"]
    facts = SourceFacts(checked["calibration"], checked["heldout"], checked["labelled"])
    candidates = []
    for step in recipe(facts, optimization):
        model = directory / f"{step.precision}.onnx"
        if step.calibration is not None:
            request = {"model": str(baseline), "data": str(sample.data), "output": str(model)}
            await run_child(CONVERT, {"quantize": request | {"calibration": step.calibration.value}}, bounds)
        candidates.append(benchmark.Candidate(step.precision, model, directory / f"{step.precision}.npz"))
    return candidates, time.monotonic() - began


def spread(values: list[float]) -> dict[str, float]:
    """Return median, least and most of ``values``."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def summary(repeats: list[list[Measured]], index: int, optimization: Optimization) -> dict[str, Any]:
    """Return one candidate's figures over all repeats, as JSON. Times in microseconds."""
    baselines, mine = [repeat[0] for repeat in repeats], [repeat[index] for repeat in repeats]
    last = mine[-1]
    verdicts = [accept(base, one, LIMITS[optimization]) for base, one in zip(baselines, mine, strict=True)]
    found: dict[str, Any] = {
        "precision": last.precision,
        "size_bytes": last.size_bytes,
        "accuracy": last.accuracy,
        "accuracy_interval": wilson(last.right, last.samples) if last.right is not None else None,
        "samples": last.samples,
        "rows_lost": last.lost,
        "rows_gained": last.gained,
        "largest_difference_share": last.difference,
        "peak_memory_bytes": spread([float(one.peak_memory_bytes) for one in mine]),
        "memory_above_bare_bytes": spread([float(one.memory_bytes) for one in mine]),
        "accepted": [isinstance(verdict, Accepted) for verdict in verdicts],
        "reasons": verdicts[-1].reasons,
    }
    for name in ("batch1", "batch8"):
        pairs = [(getattr(base, name), getattr(one, name)) for base, one in zip(baselines, mine, strict=True)]
        ratios = [slowdown(one, base) for base, one in pairs]
        found[name] = {
            "p50_us": spread([1000 * one.p50_ms for _, one in pairs]),
            "p95_us": spread([1000 * one.p95_ms for _, one in pairs]),
            "time_over_fp32": spread([ratio.median for ratio in ratios]),
            "noise": max(ratio.noise for ratio in ratios),
            "runs": sum(one.runs for _, one in pairs),
        }
    return found


async def main() -> None:
    """Measure and show."""
    parser = json_option(__doc__)
    parser.add_argument("--optimization", choices=[kind.value for kind in Optimization], default="aggressive")
    parser.add_argument("--rounds", type=int, default=100, help="interleaved rounds a measurement, at least 20")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    optimization = Optimization(options.optimization)
    console = Console(width=170)
    results: dict[str, Any] = {
        "machine": benchmark.this_machine(),
        "python": platform.python_version(),
        "onnxruntime": onnxruntime.__version__,
        "rounds": options.rounds,
        "repeats": options.repeats,
        "optimization": optimization.value,
        "networks": {},
    }
    with tempfile.TemporaryDirectory() as scratch:
        for number, (network, (filters, hidden)) in enumerate(NETWORKS.items()):
            directory = Path(scratch) / str(number)
            with console.status(f"{network}: training, building, measuring"):
                sample = train(directory, lambda _text, _share: None, filters=filters, hidden=hidden)
                candidates, build_seconds = await build(sample, directory, optimization)
                repeats = [
                    await benchmark.measure(
                        candidates, sample.data, Bounds(), seed=repeat, rounds=max(20, options.rounds)
                    )
                    for repeat in range(options.repeats)
                ]
            rows = [summary(repeats, index, optimization) for index in range(len(candidates))]
            results["networks"][network] = {
                "train_seconds": sample.seconds,
                "convert_seconds": build_seconds,
                "candidates": rows,
            }
            console.print(shown(f"{network} (trained in {sample.seconds:.1f} s)", rows))
            for row in rows:
                console.print(f"[bold]{row['precision']}[/bold]: " + "; ".join(row["reasons"]))
            console.print()
    console.print(results["machine"], f"ONNX Runtime {results['onnxruntime']}, {options.repeats} repeats", sep=", ")
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


def shown(title: str, rows: list[dict[str, Any]]) -> Table:
    """Return the table of one network."""
    table = Table(title=title, title_justify="left")
    for column in (
        "build",
        "KiB",
        "rows",
        "p50 µs",
        "p95 µs",
        "time / FP32",
        "accuracy (95 %)",
        "MiB over bare",
        "accepted",
    ):
        table.add_column(column, justify="left" if column == "build" else "right", no_wrap=column != "accuracy (95 %)")
    for row in rows:
        low, high = row["accuracy_interval"]
        of_build = (
            f"{row['accuracy']:.2%} ({low:.1%} to {high:.1%})",
            f"{row['memory_above_bare_bytes']['median'] / 1024**2:.1f}",
            f"{sum(row['accepted'])} of {len(row['accepted'])}",
        )
        for name, count in (("batch1", "1"), ("batch8", "8")):
            times = row[name]
            first = name == "batch1"
            table.add_row(
                row["precision"] if first else "",
                f"{row['size_bytes'] / 1024:.0f}" if first else "",
                count,
                ranged(times["p50_us"], 1),
                ranged(times["p95_us"], 1),
                ranged(times["time_over_fp32"], 2),
                *(of_build if first else ("", "", "")),
            )
    return table


def ranged(values: dict[str, float], digits: int) -> str:
    """Return a median with the range of the repeats."""
    return f"{values['median']:.{digits}f} ({values['least']:.{digits}f} to {values['most']:.{digits}f})"


if __name__ == "__main__":
    asyncio.run(main())
