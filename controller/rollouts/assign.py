"""Makes the signed assignment of a device from what is desired of it (wire 7).

Invariant: complete (every component that was ever assigned stays listed, one that shall go with build None), numbered
one above the last, never empty, stored before anybody may send it. Does not decide what is desired.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from sqlalchemy import Connection

from controller.rollouts import desired_store
from wire.assignment import Assignment, Item, Policy
from wire.codec import encode
from wire.envelope import ASSIGNMENT, PrivateKey, seal

EPOCH: Final = 1
LIFETIME: Final = 30 * 86_400.0
RENEW_BEFORE: Final = 10 * 86_400.0


@dataclass(frozen=True, slots=True)
class Desired:
    """One row of what is desired of a device, with the manifest of its build."""

    component: str
    generation: int
    execution: str
    build: str | None
    manifest_sha256: str | None
    manifest_size: int | None
    policy: Mapping[str, Any]


def compile_assignment(device: str, items: Sequence[Desired], number: int, now: float) -> Assignment:
    """Return the assignment of ``device`` at position (1, ``number``); ``items`` must not be empty."""
    return Assignment(
        device=device,
        epoch=EPOCH,
        number=number,
        issued=now,
        expires=now + LIFETIME,
        items=[
            Item(
                component=item.component,
                generation=item.generation,
                execution=item.execution,
                build=item.build,
                manifest_sha256=item.manifest_sha256 if item.build is not None else None,
                manifest_size=item.manifest_size if item.build is not None else None,
                policy=msgspec.convert(item.policy, Policy),
            )
            for item in items
        ],
    )


def reissue(connection: Connection, devices: Iterable[str], key: PrivateKey, now: float) -> int:
    """Sign and store a new assignment for each of ``devices`` that has items; return how many. Sends nothing."""
    wanted = sorted(set(devices))
    desired = desired_store.desired_of(connection, wanted)
    numbers = desired_store.assignment_numbers(connection, wanted)
    rows: list[dict[str, Any]] = []
    for device, found in desired.items():
        number = numbers.get(device, 0) + 1
        items = [Desired(**row) for row in found]
        assignment = compile_assignment(device, items, number, now)
        rows.append(
            {
                "device": device,
                "epoch": EPOCH,
                "number": number,
                "envelope": seal(encode(assignment), ASSIGNMENT, key),
                "issued": now,
                "expires": assignment.expires,
                "published": None,
            }
        )
    desired_store.save_assignments(connection, rows)
    return len(rows)
