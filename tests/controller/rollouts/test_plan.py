"""Single answers of the plan that need more than one component."""

from __future__ import annotations

import pytest

from controller.rollouts.model import (
    BuildView,
    DeviceView,
    ExecutionView,
    Fleet,
    Platform,
    Rollout,
    RolloutState,
    Stage,
    StageState,
    Wanted,
)
from controller.rollouts.plan import advance
from controller.rollouts.policy import parse_policy, parse_selector
from controller.rollouts.steps import FinishStage
from wire.execution import ExecutionState

NOW = 1_000_000.0
PLATFORM = Platform("generic-x86_64", "x86_64", (("onnxruntime", "1.23"),))


def device(name: str, online: bool) -> DeviceView:
    return DeviceView(name, name, frozenset(), PLATFORM, online, NOW if online else NOW - 5000, False, {})


@pytest.mark.parametrize("second", [ExecutionState.SUCCEEDED, ExecutionState.FAILED])
def test_half_a_release_proves_nothing(second: ExecutionState) -> None:
    """The canary ran one of two models; the devices of the next stage are all away."""
    states = {("one", "model:a"): ExecutionState.SUCCEEDED, ("one", "model:b"): second}
    states |= {("two", "model:a"): ExecutionState.IDLE, ("two", "model:b"): ExecutionState.IDLE}
    began = NOW - 1000
    rollout = Rollout(
        id="r-1",
        tenant="acme",
        created=began,
        models={"a": 1, "b": 1},
        selector=parse_selector({}),
        policy=parse_policy({"stages": [{"count": 1}, "rest"], "gate": {"max_failed_percent": 100}}),
        state=RolloutState.RUNNING,
        wanted=Wanted.RUN,
        stages=(
            Stage(0, ("one",), (), StageState.PASSED, began, began + 10),
            Stage(1, ("two",), (), StageState.RUNNING, began + 10),
        ),
        executions=tuple(
            ExecutionView(f"e-{name}-{component}", name, component, "b-1", state, began + 10, began + 10)
            for (name, component), state in states.items()
        ),
    )
    builds = (BuildView("b-1", "generic", (), "onnxruntime", "1.0", "int8", 1.0),)
    fleet = Fleet({"one": device("one", True), "two": device("two", False)}, {("a", 1): builds, ("b", 1): builds})
    finished = [step for step in advance(rollout, fleet, NOW) if isinstance(step, FinishStage)]
    assert bool(finished) == (second is ExecutionState.SUCCEEDED)
