"""Who would get a release, which build, in which order, and who not and why.

Invariant: the answer depends on the fleet alone, so that a dry run and the stages agree. A device gets all components
of a release or none. Begins nothing (`plan.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from controller.rollouts.model import CONCLUDED, DeviceView, Fleet, Platform, Rollout, RolloutState, Wanted, selects
from controller.rollouts.policy import Share
from controller.rollouts.resolve import Choice, NoBuild, resolve

_RECENT: Final = (3600.0, 86_400.0)


@dataclass(frozen=True, slots=True)
class Fit:
    """A device that would get the release: the build of each component."""

    device: DeviceView
    builds: Mapping[str, Choice]


@dataclass(frozen=True, slots=True)
class Unfit:
    """A device that the selector names and that gets nothing now. newer: because a newer rollout has it."""

    device: DeviceView
    reasons: tuple[str, ...]
    newer: bool = False


def candidates(rollout: Rollout, fleet: Fleet, among: Iterable[DeviceView] | None = None) -> list[Fit | Unfit]:
    """Return for each device that the selector names what it would get or why not: recently seen ones first.

    The order depends on the fleet alone, so that a dry run and the stages agree.
    """
    memo: dict[Platform, dict[str, Choice | NoBuild]] = {}
    found: list[Fit | Unfit] = []
    for device in fleet.devices.values() if among is None else among:
        if not selects(rollout.selector, device):
            continue
        newer = [c for c in rollout.components if _is_newer(rollout, fleet, device, c)]
        if newer:
            found.append(Unfit(device, tuple(f"{c} belongs to a newer rollout" for c in newer), newer=True))
            continue
        if device.platform not in memo:
            memo[device.platform] = {
                c: resolve(fleet.builds.get(rollout.version_of(c), ()), device.platform) for c in rollout.components
            }
        answers = memo[device.platform]
        builds = {c: answer for c, answer in answers.items() if isinstance(answer, Choice)}
        if len(builds) == len(answers):
            found.append(Fit(device, builds))
        else:
            gaps = (f"{c}: {r}" for c, a in answers.items() if isinstance(a, NoBuild) for r in a.reasons)
            found.append(Unfit(device, tuple(gaps)))
    return found


def claims(rollout: Rollout, others: Iterable[Rollout], fleet: Fleet) -> frozenset[tuple[str, str]]:
    """Return what newer rollouts on their way will give to devices themselves, so that ``rollout`` leaves it alone."""
    found: set[tuple[str, str]] = set()
    for other in others:
        shared = set(other.components) & set(rollout.components)
        under_way = other.state not in CONCLUDED | {RolloutState.ROLLING_BACK}
        if shared and under_way and other.order > rollout.order and other.wanted in (Wanted.RUN, Wanted.PAUSE):
            fits = (entry for entry in candidates(other, fleet) if isinstance(entry, Fit))
            found.update((fit.device.id, component) for fit in fits for component in shared)
    return frozenset(found)


def in_order(fits: Iterable[Fit], now: float) -> list[Fit]:
    """Return ``fits`` as stages take them: those there now, then those seen lately, then by id."""
    return sorted(fits, key=lambda fit: (_rank(fit.device, now), fit.device.id))


def stage_size(rule: Share | Literal["rest"], total: int, left: int) -> int:
    """Return how many of the ``left`` devices a stage takes, when the rollout can reach ``total`` in all."""
    if not isinstance(rule, Share) or rule.rest:
        return left
    if rule.count is not None:
        return min(rule.count, left)
    assert rule.percent is not None, "parse_policy asks for one of the three"
    return min(left, max(1, math.ceil(round(total * rule.percent / 100, 9))))  # 7.000000000000001 devices are 7


def _is_newer(rollout: Rollout, fleet: Fleet, device: DeviceView, component: str) -> bool:
    standing = device.standing.get(component)
    return (standing is not None and standing.owner > rollout.order) or (device.id, component) in fleet.claimed


def _rank(device: DeviceView, now: float) -> int:
    if device.online:
        return 0
    gone = now - device.last_seen if device.last_seen is not None else math.inf
    return 1 + sum(gone > limit for limit in _RECENT)
