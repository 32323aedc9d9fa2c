"""What a rollout would do, and how its gate stands, in plain values for people.

Invariant: asks the functions that the loop asks, so that what is shown is what happens. Changes nothing.
"""

from __future__ import annotations

from typing import Any, Final

from controller.rollouts.candidates import Fit, Unfit, candidates, in_order, stage_size
from controller.rollouts.gate import Seen
from controller.rollouts.model import Fleet, Rollout
from controller.rollouts.plan import look

MAX_SHOWN: Final = 1000  # devices in one answer


def dry_run(rollout: Rollout, fleet: Fleet, now: float) -> dict[str, Any]:
    """Return who would get what in which stage, and who not and why; at most ``MAX_SHOWN`` devices of each."""
    found = candidates(rollout, fleet)
    fits = in_order((entry for entry in found if isinstance(entry, Fit)), now)
    left_out = [entry for entry in found if isinstance(entry, Unfit)]
    stages: list[dict[str, Any]] = []
    start = 0
    for number, rule in enumerate(rollout.policy.stages):
        size = stage_size(rule, len(fits), len(fits) - start) if start < len(fits) else 0
        stages.append({"number": number, "devices": size})
        start += size
    numbers = [stage["number"] for stage in stages for _ in range(stage["devices"])]
    gets = [
        {
            "device": fit.device.id,
            "name": fit.device.name,
            "stage": number,
            "online": fit.device.online,
            "builds": {c: {"build": choice.build, "why": list(choice.reasons)} for c, choice in fit.builds.items()},
        }
        for fit, number in zip(fits[:MAX_SHOWN], numbers, strict=False)
    ]
    return {
        "stages": stages,
        "gets": gets,
        "gets_total": start,
        "left_out": [
            {"device": entry.device.id, "name": entry.device.name, "why": list(entry.reasons)}
            for entry in left_out[:MAX_SHOWN]
        ],
        "left_out_total": len(left_out),
        "not_in_any_stage": len(fits) - start,
        "warnings": _warnings(rollout, fleet, len(fits), start),
    }


def gate_now(rollout: Rollout, fleet: Fleet, now: float) -> dict[str, Any] | None:
    """Return how the devices of the newest stage stand and what its gate says; None before the first stage."""
    looked = look(rollout, fleet, now)
    if looked is None:
        return None
    seen, verdict, reasons = looked
    counts = {word.value: count for word in Seen if (count := seen.count(word))}
    return {"stage": rollout.stages[-1].number, "verdict": verdict, "reasons": list(reasons), "devices": counts}


def _warnings(rollout: Rollout, fleet: Fleet, fits: int, reached: int) -> list[str]:
    found = []
    known = {name for device in fleet.devices.values() for name in (device.id, device.name)}
    if strangers := [name for name in rollout.selector.devices if name not in known]:
        found.append(f"no device has the id or name {', '.join(strangers[:5])}{' …' * (len(strangers) > 5)}")
    if not fits:
        found.append("no device would get anything")
    elif reached < fits:
        found.append(f'{fits - reached} devices are in no stage: end the stages with "rest" to reach them')
    if len(rollout.policy.stages) > fits > 0:
        found.append(f"{len(rollout.policy.stages)} stages for {fits} devices: the last ones stay empty")
    return found
