"""The documents an operator writes for a rollout: the policy and the selector.

Invariant: what ``parse_policy`` and ``parse_selector`` return is complete and within bounds; what they refuse, they
refuse with the field's name. A policy is frozen when its rollout is created: a running rollout never sees an edit.
Decides nothing about a fleet (`plan.py`, `gate.py`).
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
from msgspec import Meta

from controller.errors import InvalidError
from wire.assignment import Policy as DevicePolicy
from wire.messages import Name

MAX_STAGES: Final = 32
DAY: Final = 86_400.0
Percent = Annotated[float, Meta(ge=0, le=100)]
Seconds = Annotated[float, Meta(ge=0, le=30 * DAY)]
DeviceSeconds = Annotated[float, Meta(gt=0, le=30 * DAY)]
Label = Annotated[str, Meta(min_length=1, max_length=128)]


class Share(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many devices one stage takes: exactly one of the three.

    percent: of all devices that the rollout can reach at all (not of those left), rounded up, at least one. rest:
    everybody left, those that come while the stage runs included; the same as the word "rest" in place of the object.
    """

    count: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    percent: Annotated[float, Meta(gt=0, le=100)] | None = None
    rest: bool = False


class GateRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a stage is good enough. Shares are of devices, not of executions.

    max_failed_percent: of the devices that have finished; early, this counts only once ``min_executed`` have. A stage
    in which nobody is awaited any more is judged by what there is. max_failed: an absolute bound, at any time.
    quorum_percent: share of the devices reached that must have finished before the next stage may begin; the others
    are watched on in the next stage. on_failure: what a broken gate does.
    """

    max_failed_percent: Percent = 10.0
    max_failed: Annotated[int, Meta(ge=0)] | None = None
    min_executed: Annotated[int, Meta(ge=1)] = 5
    quorum_percent: Annotated[float, Meta(gt=0, le=100)] = 100.0
    on_failure: Literal["rollback", "pause", "abort"] = "rollback"


class Offline(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """skip_after: seconds after which a stage no longer waits for a device that is away; it catches up on return."""

    skip_after: Seconds = 120.0


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one rollout goes. Every field has a default, so ``{}`` is a valid document. Durations in seconds.

    stages: in order; "rest" takes everybody left. Stages that cover less than the fleet leave the others as they are.
    soak: how long a finished stage is watched before the next. deadline: of one device, from when its stage gave it
    the release; one that was reached and has not finished by then counts as failed. It is also how long a stage looks
    for somebody who can be reached, and for newcomers. max_in_flight: reachable devices that work at the same time.
    continuous: devices that fit the selector later get the release too: in the last stage while the rollout runs,
    directly once it has succeeded. The last five are what each device keeps to (wire 7.3): they travel in its
    assignment.
    """

    stages: Annotated[list[Share | Literal["rest"]], Meta(min_length=1, max_length=MAX_STAGES)] = msgspec.field(
        default_factory=lambda: ["rest"]
    )
    gate: GateRule = GateRule()
    soak: Seconds = 0.0
    deadline: Annotated[float, Meta(gt=0, le=30 * DAY)] = 2 * 3600.0
    offline: Offline = Offline()
    max_in_flight: Annotated[int, Meta(ge=1, le=1_000_000)] = 500
    continuous: bool = True
    download_deadline: DeviceSeconds = 86_400.0
    install_deadline: DeviceSeconds = 900.0
    probation: Seconds = 10.0
    probation_deadline: DeviceSeconds = 600.0
    offline_ok: bool = False

    @property
    def device(self) -> DevicePolicy:
        """What is copied into assignments."""
        return DevicePolicy(
            download_deadline=self.download_deadline,
            install_deadline=self.install_deadline,
            probation=self.probation,
            probation_deadline=self.probation_deadline,
            offline_ok=self.offline_ok,
        )


class Selector(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which devices: every condition that is given must hold; ``{}`` means the whole tenant.

    devices: ids or names. tags: of which the device must carry all. profiles: of which it must have one.
    """

    devices: Annotated[list[Name], Meta(max_length=10_000)] = []
    tags: Annotated[list[Label], Meta(max_length=64)] = []
    profiles: Annotated[list[Label], Meta(max_length=64)] = []


T = TypeVar("T", Policy, Selector)


def parse_policy(document: Any) -> Policy:
    """Return the policy in ``document`` (decoded JSON or YAML). Raises InvalidError that names the field."""
    policy = _convert(document, Policy, "policy")
    for place, stage in enumerate(policy.stages):
        if (
            isinstance(stage, Share)
            and [stage.count is not None, stage.percent is not None, stage.rest].count(True) != 1
        ):
            raise InvalidError(f"policy: $.stages[{place}]: give one of count, percent and rest", "bad_policy")
        if takes_rest(stage) and place != len(policy.stages) - 1:
            raise InvalidError(f'policy: $.stages[{place}]: "rest" leaves nothing for later stages', "bad_policy")
    if policy.probation > policy.probation_deadline:
        raise InvalidError("policy: $.probation: longer than $.probation_deadline", "bad_policy")
    return policy


def takes_rest(stage: Share | Literal["rest"]) -> bool:
    """Whether ``stage`` takes everybody left."""
    return stage.rest if isinstance(stage, Share) else True


def parse_selector(document: Any) -> Selector:
    """Return the selector in ``document``. Raises InvalidError that names the field."""
    return _convert(document, Selector, "selector")


def policy_schema() -> dict[str, Any]:
    """Return the JSON Schema of the policy document."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | msgspec.json.schema(Policy)


def _convert(document: Any, kind: type[T], what: str) -> T:
    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        words = str(error) if "$" in str(error) else f"{error} - at `$`"
        raise InvalidError(f"{what}: {words}", f"bad_{what}") from error
