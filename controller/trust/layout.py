"""The shape of a tenant's signed repository (wire 10): its roles, what each may vouch for, how long it holds.

Invariant: pure, and free of TUF's library. Each path of a build belongs to one profile's role, and that role is the
builder's alone; no role whose key lies on the controller can vouch for anything. Does not make metadata
(`metadata.py`) nor keys (`ceremony.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

ROOT: Final = "root"
TARGETS: Final = "targets"
SNAPSHOT: Final = "snapshot"
TIMESTAMP: Final = "timestamp"
TOP: Final = (ROOT, TARGETS, SNAPSHOT, TIMESTAMP)
ONLINE: Final = (SNAPSHOT, TIMESTAMP)  # signed by the controller itself
SOFTWARE: Final = "software"
TRIAL: Final = "trial"

DAY: Final = 86_400.0
LIFETIMES: Final = {ROOT: 365 * DAY, TARGETS: 90 * DAY, SNAPSHOT: 7 * DAY, TIMESTAMP: DAY, TRIAL: DAY}
DELEGATED_LIFETIME: Final = 30 * DAY
ROOT_KEYS: Final = 3
ROOT_THRESHOLD: Final = 2
MAX_FLAT: Final = 2000  # targets in one file; a device reads a role's file whole, about 300 bytes a target
BIN_BITS: Final = 4  # 16 bins: 1,250 targets each at 20,000; each bin costs 130 bytes in the snapshot, which all read

_NAME: Final = r"[a-z0-9][a-z0-9._-]{0,62}"
_BUILD_PATH: Final = re.compile(rf"builds/({_NAME})/({_NAME})/(b-[0-9a-f]{{32}})\.json")
_BIN: Final = re.compile(rf"({_NAME})-([0-9a-f]{{{BIN_BITS // 4}}})")


@dataclass(frozen=True, slots=True)
class Delegation:
    """What the top-level targets role hands to another. ``signers``: "builder" or "root" (the offline root keys)."""

    name: str
    paths: tuple[str, ...]
    signers: str
    threshold: int


def target_path(profile: str, model: str, build: str) -> str:
    """Return the path of a build (wire 10.2)."""
    return f"builds/{profile}/{model}/{build}.json"


def profile_of(path: str) -> str | None:
    """Return the profile whose role vouches for ``path``, None for what is no build's path."""
    match = _BUILD_PATH.fullmatch(path)
    return None if match is None else match[1]


def delegations(profiles: Iterable[str]) -> list[Delegation]:
    """Return all delegations, in the order in which devices look: each ends the search for its paths."""
    families = [Delegation(name, (f"builds/{name}/*/*",), "builder", 1) for name in sorted(set(profiles))]
    software = Delegation(SOFTWARE, ("software/*/*",), "root", ROOT_THRESHOLD)
    return [*families, software, Delegation(TRIAL, ("trial/*/*/*",), "builder", 1)]


def bin_prefix(profile: str) -> str:
    """Return the name prefix of a profile's bins; a bin is named PREFIX-HEX, as TUF's succinct roles are."""
    return f"{profile}.bin"


def profile_of_bin(role: str) -> str | None:
    """Return the profile that the bin ``role`` belongs to, None for another role."""
    match = _BIN.fullmatch(role)
    return match[1].removesuffix(".bin") if match is not None and match[1].endswith(".bin") else None


def lifetime(role: str) -> float:
    """Return how many seconds new metadata of ``role`` holds."""
    return LIFETIMES.get(role, DELEGATED_LIFETIME)


def due(role: str, expires: float, now: float) -> bool:
    """Whether whoever holds the key of ``role`` should sign it again: half of its life is over."""
    return expires - now < lifetime(role) / 2
