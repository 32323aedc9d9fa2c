"""How long one routing decision takes: `python -m benchmarks.routing_decision [--json FILE]`.

10,000 devices have a tunnel; all, 1 % or ten of them can answer for the model. The collector of garbage is on. Times
are wall-clock microseconds of one `rank` with its first `next_attempt`, on the machine that runs this.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from controller.routing.attempt import Try, next_attempt
from controller.routing.choose import Policy, Request, rank
from controller.routing.standings import LiveDevice, Standings
from wire.tunnel import ServedModel, Status

DEVICES = 10_000
TARGET_US = 25.0


def fleet(eligible: int, rng: random.Random) -> Standings:
    """Return 10,000 devices of which ``eligible`` serve the model "digits"; a tenth of them is suspect."""
    standings = Standings()
    for number in range(DEVICES):
        live = LiveDevice(f"d-{number:026d}", "default", 128, 0.0)
        live.outstanding = rng.randrange(6)
        live.suspect_until = 1e9 if rng.random() < 0.1 else 0.0
        name = "digits" if number < eligible else "other"
        model = ServedModel(
            name=name, version="1", build="b", ready=True, queued=rng.randrange(4), p50_ms=rng.uniform(1, 20)
        )
        standings.apply(live, Status(models=[model]))
    for _ in range(100):
        standings.record("default", "digits", rng.uniform(0.001, 0.05))
    return standings


def measure(eligible: int, decisions: int) -> dict[str, float]:
    """Return p50, p99 and the greatest time of one decision in microseconds, and decisions a second."""
    rng = random.Random(7)
    view, policy = fleet(eligible, rng), Policy()
    request = Request(tenant="default", model="digits", version=None, now=1.0)
    times = []
    begun = time.perf_counter()
    for _ in range(decisions):
        start = time.perf_counter_ns()
        step = next_attempt((), rank(request, view, policy, rng), 1.0, 11.0)
        times.append(time.perf_counter_ns() - start)
        assert isinstance(step, Try)
    seconds = time.perf_counter() - begun
    times.sort()
    return {
        "eligible": eligible,
        "p50_us": times[decisions // 2] / 1000,
        "p99_us": times[decisions * 99 // 100] / 1000,
        "max_us": times[-1] / 1000,
        "per_second": decisions / seconds,
    }


def main() -> None:
    """Measure, print, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--decisions", type=int, default=100_000)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    rows = [measure(eligible, options.decisions) for eligible in (DEVICES, DEVICES // 100, 10)]
    table = Table(title=f"One routing decision among {DEVICES:,} devices (target: p99 of at most {TARGET_US:.0f} µs)")
    for heading in ("eligible", "p50 µs", "p99 µs", "max µs", "decisions/s", "target"):
        table.add_column(heading, justify="right")
    for row in rows:
        verdict = "met" if row["p99_us"] <= TARGET_US else "missed"
        table.add_row(
            f"{row['eligible']:,}",
            f"{row['p50_us']:.1f}",
            f"{row['p99_us']:.1f}",
            f"{row['max_us']:.0f}",
            f"{row['per_second']:,.0f}",
            verdict,
        )
    Console().print(table)
    if options.json:
        options.json.write_text(
            json.dumps({"benchmark": "routing_decision", "devices": DEVICES, "rows": rows}, indent=2)
        )


if __name__ == "__main__":
    main()
