"""Control groups: the memory limit over this process, and whether the kernel enforces such limits at all.

Invariant: the limit is the smallest one from the process's own group up to the top; "no limit" is None. Reads both
versions of the interface, also side by side. Sets nothing.
"""

from __future__ import annotations

from typing import Final

from agent.hardware.reading import Root, whole_number

_MOUNT: Final = "/sys/fs/cgroup"
_UNLIMITED: Final = 1 << 60  # version 1 says "no limit" as the largest multiple of a page
_MAX_DEPTH: Final = 64


def memory_limit(root: Root) -> int | None:
    """Return the tightest memory limit over this process in bytes, or None."""
    limits: list[int] = []
    for line in (root.text("/proc/self/cgroup") or "").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            limits += _limits(root, _MOUNT, path, "memory.max")
        elif "memory" in controllers.split(","):
            limits += _limits(root, f"{_MOUNT}/memory", path, "memory.limit_in_bytes")
    return min(limits, default=None)


def limits_enforced(root: Root) -> bool | None:
    """Whether the kernel's memory controller is on; None when nothing tells."""
    controllers = root.text(f"{_MOUNT}/cgroup.controllers")
    if controllers is not None and controllers.strip():
        return "memory" in controllers.split()
    if root.exists(f"{_MOUNT}/memory/memory.limit_in_bytes"):
        return True
    for line in (root.text("/proc/cgroups") or "").splitlines():
        columns = line.split()
        if len(columns) == 4 and columns[0] == "memory":
            return {"0": False, "1": True}.get(columns[3])
    return None


def _limits(root: Root, mount: str, path: str, file: str) -> list[int]:
    # In a container the path may name groups that are not mounted here: then those above it still count.
    parts = [part for part in path.split("/") if part not in ("", ".", "..")][:_MAX_DEPTH]
    limits: list[int] = []
    for depth in range(len(parts) + 1):
        limit = whole_number(root.word("/".join([mount, *parts[:depth], file])))
        if limit is not None and 0 < limit < _UNLIMITED:
            limits.append(limit)
    return limits
