"""What a device pays: memory, start, idle CPU of the agent and of serving: `python -m benchmarks.footprint`.

Starts `muster local` with one agent, lets it enrol and serve the sample, sends it requests, waits until it is idle, and
reads /proc. Memory is PSS: pages shared with other processes are counted in parts. The start is measured by ending the
agent and serving, and starting the agent again.
"""

from __future__ import annotations

import datetime
import re
import signal
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks.table import Figure, json_option, show, spread
from tests.journeys.local_fleet import LocalFleet, start, wait_for

AGENT_MIB, SERVING_MIB, START_S, IDLE_PERCENT = 55.0, 80.0, 2.0, 0.5
MIB = 1024**2
WARM_UP = 2000
STARTS = 5


def main() -> None:
    """Measure and print."""
    parser = json_option(__doc__)
    parser.add_argument("--idle-seconds", type=float, default=30.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="muster-footprint-") as directory:
        fleet = start(Path(directory), 1)
        try:
            with fleet.gateway() as gateway:
                for _ in range(WARM_UP):
                    gateway.post("/v2/models/digits/infer", content=fleet.request_body()).raise_for_status()
            agent, serving = fleet.agent("device-1"), fleet.serving("device-1")
            idle = {
                name: idle_percent(process, arguments.idle_seconds)
                for name, process in (("agent", agent), ("serving", serving))
            }
            memory = {
                name: process.memory_full_info().pss / MIB for name, process in (("agent", agent), ("serving", serving))
            }
            starts = [start_seconds(fleet) for _ in range(STARTS)]
        finally:
            fleet.stop()
    figures = [
        Figure(
            "agent, PSS after enrolment",
            f"{memory['agent']:.1f} MiB",
            f"≤ {AGENT_MIB:.0f} MiB",
            memory["agent"] <= AGENT_MIB,
        ),
        Figure(
            f"serving with digits, PSS after {WARM_UP} requests",
            f"{memory['serving']:.1f} MiB",
            f"≤ {SERVING_MIB:.0f} MiB",
            memory["serving"] <= SERVING_MIB,
        ),
        Figure(
            "agent start to ready (connected, serving the model)",
            spread(starts, "s", 2),
            f"< {START_S:.0f} s",
            sorted(starts)[STARTS // 2] < START_S,
        ),
        *(
            Figure(f"{name}, idle", f"{share:.2f} % of a core", f"≤ {IDLE_PERCENT} %", share <= IDLE_PERCENT)
            for name, share in idle.items()
        ),
    ]
    show("Footprint on a device", figures, arguments.json)


def idle_percent(process: psutil.Process, seconds: float) -> float:
    """Return the CPU share of ``process`` over ``seconds``, in percent of one core."""
    before = sum(process.cpu_times()[:2])
    time.sleep(seconds)
    return 100 * (sum(process.cpu_times()[:2]) - before) / seconds


def start_seconds(fleet: LocalFleet) -> float:
    """End the agent (its supervisor starts it again) with its serving, and time until the model is served again."""
    agent, serving = fleet.agent("device-1"), fleet.serving("device-1")
    agent.send_signal(signal.SIGTERM)
    wait_for(lambda: not agent.is_running() and not serving.is_running(), "the agent and its serving have ended")
    fresh = wait_for(lambda: fleet.processes("-m agent run", "/device-1"), "the agent is started again")[0]
    began = fresh.create_time()
    return wait_for(lambda: ready_at(fleet, began), "the agent is ready") - began


def ready_at(fleet: LocalFleet, began: float) -> float:
    """Return when an agent that began at ``began`` said that it is connected and serves; 0 while it has not.

    Read from its log, because asking it (`muster-agent status`) takes longer than what is measured.
    """
    log = (fleet.data / "devices/device-1/agent.log").read_text()
    told = re.findall(r"timestamp='(\S+)' level='info' event='agent is ready'", log)
    found = datetime.datetime.fromisoformat(told[-1]).timestamp() if told else 0.0
    return found if found > began else 0.0


if __name__ == "__main__":
    main()
