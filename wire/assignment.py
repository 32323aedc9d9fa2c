"""All that one device shall run (wire 7): signed, numbered, complete.

Invariant: ``judge`` accepts an assignment only for this device, unexpired, with a position (epoch, number) that does
not go back, and never an empty one. Does not verify signatures (`envelope.py`) nor whether the builds in it are
trusted (that is the manifest's signature).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from wire.codec import Message, decode
from wire.errors import MalformedError
from wire.manifest import Sha256
from wire.messages import Name

MAX_BYTES: Final = 200 * 1024


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """How one execution goes, frozen when the rollout began. Seconds.

    offline_ok: commit without the controller's acknowledgement when probation itself passed.
    """

    download_deadline: Annotated[float, Meta(gt=0)] = 86_400.0
    install_deadline: Annotated[float, Meta(gt=0)] = 900.0
    probation: Annotated[float, Meta(ge=0)] = 10.0
    probation_deadline: Annotated[float, Meta(gt=0)] = 600.0
    offline_ok: bool = False


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """One component. A newer ``generation`` supersedes only this item (wire 7.3).

    component: "model:NAME". build: see ``manifest.build_id``. manifest: the artifact that holds the signed manifest
    (an envelope) by its SHA-256 and size. ``build`` None asks for the component's removal.
    """

    component: Annotated[str, Meta(pattern=r"^model:[a-z0-9][a-z0-9._-]{0,62}\Z")]
    generation: Annotated[int, Meta(ge=1)]
    execution: Name
    build: Name | None
    manifest_sha256: Sha256 | None
    manifest_size: Annotated[int, Meta(ge=1, le=1024 * 1024)] | None
    policy: Policy = Policy()


class Assignment(Message, frozen=True, kw_only=True):
    """The complete list for one device at one position."""

    device: Name
    epoch: Annotated[int, Meta(ge=1)]
    number: Annotated[int, Meta(ge=1)]
    issued: float
    expires: float
    items: Annotated[list[Item], Meta(min_length=1, max_length=256)]


@dataclass(frozen=True, slots=True)
class Accepted:
    """The assignment may be worked on. ``repeated``: its position is the one already held."""

    repeated: bool


@dataclass(frozen=True, slots=True)
class Refused:
    """The assignment must be ignored, and why."""

    code: str
    reason: str


def parse_assignment(payload: bytes) -> Assignment:
    """Return the assignment in ``payload`` (the bytes inside the envelope). Raises MalformedError or VersionError."""
    assignment = decode(Assignment, payload, MAX_BYTES)
    components = [item.component for item in assignment.items]
    if len(set(components)) != len(components):
        raise MalformedError("assignment: a component is named twice")
    for item in assignment.items:
        if len({item.build is None, item.manifest_sha256 is None, item.manifest_size is None}) != 1:
            raise MalformedError(f"assignment: {item.component} has a build without its manifest, or the reverse")
    return assignment


def judge(assignment: Assignment, device: str, held: tuple[int, int], now: float) -> Accepted | Refused:
    """Decide whether ``device``, which holds ``held`` (epoch, number), may work on ``assignment`` (wire 7.2)."""
    position = (assignment.epoch, assignment.number)
    if assignment.device != device:
        return Refused("other_device", f"the assignment is for {assignment.device}, this device is {device}")
    if position < held:
        return Refused("going_back", f"position {position} is older than {held}, which this device already holds")
    if assignment.expires <= now:
        return Refused("expired", f"the assignment expired {now - assignment.expires:.0f} s ago")
    return Accepted(repeated=position == held)
