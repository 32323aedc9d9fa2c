"""Does this build fit this device? Decided before a byte of its files is fetched.

Invariant: a pure function of the manifest and of what the device is and has now. Says no with every reason at once.
Does not measure anything: the trial on the device does that (`effects.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from wire.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What the device is. ``arch``: as `uname -m` says; ``runtimes``: name to version. ``memory_bytes``: 0: unknown."""

    arch: str
    runtimes: Mapping[str, str]
    memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Room:
    """``needed``: bytes still to be stored; ``free``: bytes on the disk; ``reserve``: bytes that must stay free."""

    needed: int
    free: int
    reserve: int


@dataclass(frozen=True, slots=True)
class Fits:
    """The build may be fetched."""


@dataclass(frozen=True, slots=True)
class Unfit:
    """The build must not be fetched. ``lasting``: waiting or freeing disk space does not help."""

    code: str
    reasons: tuple[str, ...]
    lasting: bool


def check(manifest: Manifest, model: str, device: Capabilities, room: Room) -> Fits | Unfit:
    """Decide whether the build may be brought about as ``model`` on ``device``."""
    found: list[tuple[str, str]] = []
    if manifest.model != model:
        found.append(("other_model", f"the manifest describes {manifest.model!r}, the item asks for {model!r}"))
    target = manifest.target
    if target.arch and device.arch not in target.arch:
        found.append(("wrong_arch", f"made for {', '.join(target.arch)}; this device is {device.arch}"))
    version = device.runtimes.get(target.runtime)
    if version is None:
        have = ", ".join(sorted(device.runtimes)) or "none"
        found.append(("no_runtime", f"needs the runtime {target.runtime}; this device has {have}"))
    elif _version(version) < _version(target.min_runtime):
        found.append(
            ("old_runtime", f"needs {target.runtime} {target.min_runtime} or later; this device has {version}")
        )
    if 0 < device.memory_bytes < manifest.figures.peak_memory_bytes:
        need = manifest.figures.peak_memory_bytes
        found.append(("little_memory", f"needs {need} bytes of memory; this device has {device.memory_bytes}"))
    if found:
        return Unfit(found[0][0], tuple(reason for _, reason in found), lasting=True)
    missing = room.needed + room.reserve - room.free
    if missing > 0:
        reason = f"needs {room.needed} bytes and {room.reserve} in reserve; {room.free} are free: free {missing} bytes"
        return Unfit("disk_full", (reason,), lasting=False)
    return Fits()


def _version(text: str) -> tuple[int, ...]:
    """Return the leading numbers of a version: "1.23.0+gpu" is (1, 23, 0). What is not a number ends it."""
    numbers: list[int] = []
    for part in text.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
        if digits != part:
            break
    while numbers and numbers[-1] == 0:  # 1.23 and 1.23.0 are the same version
        numbers.pop()
    return tuple(numbers)
