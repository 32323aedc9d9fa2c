"""What the signed repository costs a device: bytes, CPU and memory of a refresh: `python -m benchmarks.trust`.

Builds repositories of 200 and 20,000 targets in several layouts, serves them over loopback, and runs the very child
that the agent runs, once with an empty directory (cold) and once without news (warm). CPU is user and system time with
the start of Python and all imports; memory is the child's own high-water mark (VmHWM). What the agent keeps is measured
by difference: RSS of a process with the agent's modules before and after a refresh.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from tuf.api.metadata import TargetFile

from agent.trust.protocol import Answer, Refreshed, Request
from benchmarks.table import Figure, json_option, show, spread
from tests.agent.trust.signed_repository import SignedRepository

PROFILES = ("nuc11", "nuc13", "jetson-nano", "jetson-orin", "pi3", "pi4", "pi5", "pi-zero-2-w", "x86-generic")
FEW, MANY = 200, 20_000
MIB = 1024**2
COLD_BYTES, PEAK_MIB, RESIDENT_MIB = 100_000, 64, 1.0
CHILD = """
import resource, sys
from agent.trust import child
status = child.main()
used = resource.getrusage(resource.RUSAGE_SELF)
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM:"))
print(used.ru_utime + used.ru_stime, peak, file=sys.stderr)
sys.exit(status)
"""
RESIDENT = """
import asyncio, pathlib, sys
def rss(): return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmRSS:"))
import json, agent.app
before = rss()
{more}
print(rss() - before)
"""
OURS = """
from agent.trust.repository import Repository
directory, url, root = json.load(sys.stdin)
asyncio.run(Repository(pathlib.Path(directory), url, root.encode()).refresh())
"""
LIBRARY = """
import time
from agent.trust import protocol, updater
directory, url, root = json.load(sys.stdin)
updater.answer(protocol.Request(directory=directory, url=url, root=root.encode()), time.time())
"""


@dataclass(frozen=True)
class Run:
    """One child: bytes of metadata, CPU seconds, wall seconds, peak memory in MiB."""

    received: int
    cpu: float
    wall: float
    peak: float


def main() -> None:
    """Measure and print."""
    parser = json_option(__doc__)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    figures: list[Figure] = []
    for targets, layout, bins in (
        (FEW, "flat", 0),
        (FEW, "a role a profile", 0),
        (MANY, "flat", 0),
        (MANY, "a role a profile", 0),
        (MANY, "a role a profile, 16 hash bins each", 4),
        (MANY, "a role a profile, 256 hash bins each", 8),
    ):
        figures += measure(targets, layout, bins, arguments.runs)
    figures += resident()
    show("The signed repository on a device", figures, arguments.json)


def measure(targets: int, layout: str, bins: int, runs: int) -> list[Figure]:
    """Return the rows of one repository."""
    repository, path = fill(targets, flat=layout == "flat", bins=bins)
    try:
        cold, warm = [], []
        for _ in range(runs):
            with tempfile.TemporaryDirectory(prefix="muster-trust-") as directory:
                cold.append(run(repository, Path(directory), path))
                warm.append(run(repository, Path(directory), path))
    finally:
        repository.close()
    promised = "16 hash bins" in layout or targets == FEW
    name = f"{targets} targets, {layout}"
    return [
        Figure(
            f"{name}: metadata fetched, cold / warm",
            f"{cold[0].received:,} / {warm[0].received:,} bytes",
            f"≤ {COLD_BYTES:,}" if promised else "",
            cold[0].received <= COLD_BYTES if promised else None,
        ),
        Figure(f"{name}: CPU cold", spread([1000 * run.cpu for run in cold], "ms", 0)),
        Figure(f"{name}: CPU warm", spread([1000 * run.cpu for run in warm], "ms", 0)),
        Figure(f"{name}: time cold", spread([1000 * run.wall for run in cold], "ms", 0)),
        Figure(
            f"{name}: child's peak memory",
            spread([run.peak for run in cold], "MiB"),
            f"≤ {PEAK_MIB} MiB" if promised else "",
            max(run.peak for run in cold) <= PEAK_MIB if promised else None,
        ),
    ]


def fill(targets: int, *, flat: bool, bins: int) -> tuple[SignedRepository, str]:
    """Return a served repository with ``targets`` targets, and the path of one of them."""
    repository = SignedRepository(float(int(time.time())))
    paths = []
    for number in range(targets):
        build = hashlib.sha256(b"%d" % number).hexdigest()[:32]
        paths.append(f"builds/{PROFILES[number % len(PROFILES)]}/model-{number // 40}/b-{build}.json")
    if flat:
        vouch(repository, "targets", paths)
        repository.release("targets")
        return repository, paths[0]
    signed: list[str] = []
    for profile in PROFILES:
        mine = [path for path in paths if path.startswith(f"builds/{profile}/")]
        repository.delegate("targets", profile, [f"builds/{profile}/*/*"], terminating=True)
        if bins:
            names = repository.delegate_bins(profile, bins, f"{profile}-bin")
            delegations = repository.targets(profile).delegations
            assert delegations is not None
            for path in mine:
                vouch(repository, next(iter(delegations.get_roles_for_target(path)))[0], [path])
            signed += names
        else:
            vouch(repository, profile, mine)
        signed.append(profile)
    repository.release(*signed, "targets")
    return repository, paths[0]


def vouch(repository: SignedRepository, role: str, paths: Sequence[str]) -> None:
    """Name ``paths`` in ``role``, each with a digest and what a build's signer says about it."""
    custom = {"model": "digits", "model_version": 3, "precision": "int8", "runtime": "onnxruntime"}
    for path in paths:
        target = TargetFile(3000, {"sha256": hashlib.sha256(path.encode()).hexdigest()}, path, {"custom": custom})
        repository.targets(role).targets[path] = target


def run(repository: SignedRepository, directory: Path, path: str) -> Run:
    """Run one child to its end."""
    request = Request(directory=str(directory), url=repository.url, root=repository.first_root, paths=[path])
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", CHILD], input=msgspec.json.encode(request), capture_output=True, check=True
    )
    wall = time.monotonic() - began
    told: Answer = msgspec.json.decode(done.stdout, type=Answer)
    assert isinstance(told, Refreshed), told
    assert told.found[path]
    cpu, peak = done.stderr.split()
    return Run(told.received, float(cpu), wall, int(peak) / 1024)


def resident() -> list[Figure]:
    """Return what stays in the agent, and what would stay if it read metadata itself."""
    repository = SignedRepository(float(int(time.time())))
    try:
        with tempfile.TemporaryDirectory(prefix="muster-trust-") as directory:
            given = json.dumps([f"{directory}/trust", repository.url, repository.first_root.decode()])
            ours, library = (growth(more, given) for more in (OURS, LIBRARY))
    finally:
        repository.close()
    return [
        Figure(
            "what the agent keeps in memory after a refresh (RSS)",
            f"{ours:.2f} MiB",
            f"≤ {RESIDENT_MIB:g} MiB",
            ours <= RESIDENT_MIB,
        ),
        Figure("what it would keep if it read the metadata itself (RSS)", f"{library:.2f} MiB"),
    ]


def growth(more: str, given: str) -> float:
    """Return by how many MiB a process grows that has the agent's modules and then does ``more``."""
    code = RESIDENT.format(more=more)
    done = subprocess.run([sys.executable, "-c", code], input=given, capture_output=True, text=True, check=True)
    return int(done.stdout) / 1024


if __name__ == "__main__":
    main()
