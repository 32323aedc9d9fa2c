"""Which published build a device gets.

Invariant: a build is chosen only when its processor, its runtime with the version and its profile all fit what the
device says of itself; every build that was passed over is named with the reason. Does not weigh accuracy against
speed: the builder published one build a target, and measured it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from controller.rollouts.model import BuildView, Platform

GENERIC: Final = ("any", "generic")
MAX_REASONS: Final = 16
_NUMBERS: Final = re.compile(r"\d+")
# One processor has many names; the left one is what `uname -m` says on Linux.
_ARCH_NAMES: Final = {"arm64": "aarch64", "amd64": "x86_64", "x64": "x86_64", "armv8l": "aarch64"}


@dataclass(frozen=True, slots=True)
class Choice:
    """This build, because."""

    build: str
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NoBuild:
    """No published build fits, because."""

    reasons: tuple[str, ...]


def resolve(builds: Sequence[BuildView], platform: Platform) -> Choice | NoBuild:
    """Return the build for ``platform``: made for its profile before a generic one, then the newest."""
    if not builds:
        return NoBuild(("this model version has no published build",))
    fitting: list[tuple[bool, float, str, BuildView]] = []
    refused: list[str] = []
    for build in builds:
        obstacle = _obstacle(build, platform)
        if obstacle is None:
            fitting.append((build.profile == platform.profile, build.created, build.id, build))
        else:
            refused.append(f"{build.id} ({build.profile}, {build.precision}): {obstacle}")
    if not fitting:
        return NoBuild(tuple(sorted(refused)[:MAX_REASONS]))
    exact, _, _, best = max(fitting, key=lambda entry: entry[:3])
    versions = dict(platform.runtimes)
    reasons = [
        f"made for profile {best.profile}" if exact else f"made for any device like {best.profile}",
        f"processor {platform.arch}",
        f"runtime {best.runtime} {versions[best.runtime]} ≥ {best.min_runtime}",
        f"precision {best.precision}",
    ]
    if len(fitting) > 1:
        reasons.append(f"preferred to {len(fitting) - 1} other fitting build(s): nearest profile, then newest")
    return Choice(best.id, tuple(reasons))


def _obstacle(build: BuildView, platform: Platform) -> str | None:
    if build.profile != platform.profile and not _generic(build.profile):
        return f"made for profile {build.profile}, the device is {platform.profile}"
    if build.arch and _arch(platform.arch) not in {_arch(name) for name in build.arch}:
        return f"made for {'/'.join(build.arch)}, the device is {platform.arch or 'of unknown processor'}"
    version = dict(platform.runtimes).get(build.runtime)
    if version is None:
        return f"needs {build.runtime}, which the device does not have"
    if _version(version) < _version(build.min_runtime):
        return f"needs {build.runtime} {build.min_runtime}, the device has {version}"
    return None


def _generic(profile: str) -> bool:
    return any(profile == name or profile.startswith((f"{name}-", f"{name}_")) for name in GENERIC)


def _arch(name: str) -> str:
    return _ARCH_NAMES.get(name.lower(), name.lower())


def _version(text: str) -> tuple[int, ...]:
    numbers = [int(part[:9]) for part in _NUMBERS.findall(text)[:4]]
    while numbers and numbers[-1] == 0:  # 1.0 and 1.0.0 are the same
        numbers.pop()
    return tuple(numbers)
