"""A fleet on a virtual clock: whatever the devices do, nothing bad happens and every rollout ends.

The plan, the gate and the choice of builds are the real ones; the world around them is in memory. Devices take their
time, fail, hang, vanish and return, by a seed.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from controller.rollouts.candidates import claims, stage_size
from controller.rollouts.effects import next_stages
from controller.rollouts.model import (
    CONCLUDED,
    NEXT,
    BuildView,
    DeviceView,
    ExecutionView,
    Fleet,
    Platform,
    Rollout,
    RolloutState,
    StageState,
    Standing,
    Wanted,
)
from controller.rollouts.plan import advance
from controller.rollouts.policy import parse_policy, parse_selector
from controller.rollouts.steps import Assign, Conclude, FinishStage, JoinStage, Move, StartStage, Withdraw
from wire.execution import FAILURES, TERMINAL, ExecutionState

START = 1_000_000.0
PLATFORM = Platform("generic-x86_64", "x86_64", (("onnxruntime", "1.23"),))
BUILDS = {
    ("digits", version): (BuildView(f"b-{version}", "generic", (), "onnxruntime", "1.0", "int8", float(version)),)
    for version in (1, 2, 3)
}


@dataclass
class Faults:
    """Shares of devices (or of their attempts). slow: seconds that a device takes at most."""

    fail: float = 0.0
    hang: float = 0.0
    gone: float = 0.0  # offline for ever
    flaky: float = 0.0  # goes offline and comes back
    slow: float = 60.0


@dataclass
class World:
    """Everything around the plan."""

    rng: random.Random
    faults: Faults
    count: int
    now: float = START
    devices: dict[str, DeviceView] = field(default_factory=dict)
    rollouts: dict[str, Rollout] = field(default_factory=dict)
    executions: dict[str, ExecutionView] = field(default_factory=dict)
    home: dict[str, str] = field(default_factory=dict)  # execution -> rollout
    worked: dict[str, str | None] = field(default_factory=dict)
    events: list[tuple[float, int, Any]] = field(default_factory=list)
    ids: Iterator[int] = field(default_factory=itertools.count)
    gives: list[tuple[str, Assign]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for number in range(self.count):
            gone = self.rng.random() < self.faults.gone
            self.join(f"d-{number:05}", online=not gone)
            if not gone and self.rng.random() < self.faults.flaky:
                self.at(self.rng.uniform(0, 600), ("leave", f"d-{number:05}"))

    def join(self, name: str, online: bool = True) -> None:
        seen = self.now if online else self.now - 5000
        self.devices[name] = DeviceView(name, name, frozenset(), PLATFORM, online, seen, False, {})

    def at(self, seconds: float, event: Any) -> None:
        heapq.heappush(self.events, (self.now + seconds, next(self.ids), event))

    def start(self, version: int, policy: Any, selector: Any = None) -> str:
        name = f"r-{next(self.ids)}"
        self.rollouts[name] = Rollout(
            id=name,
            tenant="acme",
            created=self.now,
            models={"digits": version},
            selector=parse_selector(selector or {}),
            policy=parse_policy(policy),
            state=RolloutState.PENDING,
            wanted=Wanted.RUN,
            stages=(),
            executions=(),
        )
        return name

    def want(self, rollout: str, wanted: Wanted) -> None:
        self.rollouts[rollout] = replace(self.rollouts[rollout], wanted=wanted)

    def plan(self) -> None:
        for name in sorted(self.rollouts, key=lambda name: self.rollouts[name].order, reverse=True):
            for _ in range(100):
                rollout = self.rollouts[name]
                rollout = replace(rollout, executions=tuple(self.executions[e] for e in self.of(name)))
                fleet = Fleet(self.devices, BUILDS)
                fleet = replace(fleet, claimed=claims(rollout, self.rollouts.values(), fleet))
                steps = advance(rollout, fleet, self.now)
                if not steps:
                    break
                self.check(rollout, steps)
                self.carry_out(rollout, steps)
            else:
                pytest.fail("the plan never comes to rest")

    def of(self, rollout: str) -> list[str]:
        return [execution for execution, home in self.home.items() if home == rollout]

    def check(self, rollout: Rollout, steps: list[Any]) -> None:
        """SAFETY: what must hold for each answer of the plan, in whatever state the world is."""
        assigns = [step for step in steps if isinstance(step, Assign)]
        if assigns:
            assert rollout.state in (RolloutState.RUNNING, RolloutState.SUCCEEDED), "only a running rollout gives"
            assert rollout.wanted is Wanted.RUN
        begun = {device for stage in rollout.stages for device in stage.devices}
        given = {(execution.device, execution.component) for execution in rollout.executions}
        for step in assigns:
            assert (step.device, step.component) not in given, "a device gets a rollout's build once"
            standing = self.devices[step.device].standing.get(step.component)
            assert standing is None or standing.owner <= rollout.order, "what is newer is left alone"
            if rollout.state is RolloutState.RUNNING:
                assert step.device in begun, "nobody before the stage has begun"
        if rollout.state is RolloutState.RUNNING and assigns:
            at_work = {e.device for e in rollout.executions if not e.finished and self.devices[e.device].online}
            new = {step.device for step in assigns if self.devices[step.device].online and not step.in_place}
            stage = rollout.stages[-1]
            # who missed its time and came back catches up by itself: it may hang for ever and must block nobody
            watched = at_work & {*stage.devices, *stage.carried} - stage.overdue - stage.missed
            assert len(watched | new) <= max(rollout.policy.max_in_flight, len(watched))
        for step in steps:
            if isinstance(step, StartStage):
                assert all(stage.state is StageState.PASSED for stage in rollout.stages), "no stage before the gate"
                assert not begun & set(step.devices)
                rule = rollout.policy.stages[step.number]
                left = len(self.devices) - len(begun)
                assert len(step.devices) <= stage_size(rule, len(self.devices), left)
                lost = {e.device for e in rollout.executions if e.withdrawn}
                told = {e.device for e in rollout.executions if e.finished and not e.withdrawn}
                told |= {device for stage in rollout.stages for device in stage.overdue}
                assert told & begun or not begun - lost, "no further stage before a device has told how it went"
            elif isinstance(step, JoinStage):
                assert not begun & set(step.devices)
                stage = rollout.stages[step.number]
                reached = {e.device for e in rollout.executions if e.finished and not e.withdrawn}
                waits = {d for d in stage.devices if self.devices[d].online and d not in stage.missed}
                replaced = not reached & begun and not waits - {e.device for e in rollout.executions if e.withdrawn}
                assert replaced or rollout.policy.continuous, "nobody joins what is being proven"
            elif isinstance(step, FinishStage) and step.state is StageState.PASSED:
                self.check_gate(rollout)
            elif isinstance(step, Move | Conclude):
                assert step.state in NEXT[rollout.state]
                assert step.reasons

    def check_gate(self, rollout: Rollout) -> None:
        stage, gate = rollout.stages[-1], rollout.policy.gate
        ours = [e for e in rollout.executions if e.device in stage.devices and not e.reverting]
        failed = sum(e.failed for e in ours) + len({e.device for e in ours if not e.finished} & stage.overdue)
        succeeded = sum(e.succeeded for e in ours)
        carried = [e for e in rollout.executions if e.device in stage.carried]
        failed += sum(e.failed for e in carried)
        succeeded += sum(e.succeeded for e in carried)
        if failed + succeeded - stage.forgiven > 0:
            assert (failed - stage.forgiven) * 100 <= gate.max_failed_percent * (failed + succeeded - stage.forgiven)
        if gate.max_failed is not None:
            assert failed - stage.forgiven <= gate.max_failed

    def carry_out(self, rollout: Rollout, steps: list[Any]) -> None:
        state, wanted = rollout.state, rollout.wanted
        for step in steps:
            if isinstance(step, Move | Conclude):
                state = step.state
            elif isinstance(step, Assign):
                self.gives.append((rollout.id, step))
                former = self.item(step.device, step.component)
                if former is not None:
                    self.end(former, ExecutionState.SUPERSEDED)
                first = ExecutionState.SKIPPED if step.in_place else ExecutionState.IDLE
                self.give(rollout, step.device, step.component, step.build, first, reverting=False)
            elif isinstance(step, Withdraw):
                former = self.item(step.device, step.component)
                assert former is not None
                self.end(former, ExecutionState.CANCELED)
                build = self.worked.get(step.device)
                self.give(rollout, step.device, step.component, build, ExecutionState.IDLE, reverting=True)
        if state is RolloutState.PAUSED:
            wanted = Wanted.PAUSE
        elif state is RolloutState.ROLLING_BACK:
            wanted = Wanted.ROLLBACK
        stages = next_stages(rollout, steps, self.now)
        self.rollouts[rollout.id] = replace(rollout, state=state, wanted=wanted, stages=stages, executions=())

    def item(self, device: str, component: str) -> str | None:
        found = [e.id for e in self.executions.values() if e.device == device and e.component == component]
        return found[-1] if found else None

    def end(self, execution: str, state: ExecutionState) -> None:
        if not self.executions[execution].finished:
            self.executions[execution] = replace(self.executions[execution], state=state, updated=self.now)

    def give(
        self,
        rollout: Rollout,
        device: str,
        component: str,
        build: str | None,
        state: ExecutionState,
        *,
        reverting: bool,
    ) -> None:
        name = f"e-{next(self.ids):08}"
        self.executions[name] = ExecutionView(name, device, component, build, state, self.now, self.now, reverting)
        self.home[name] = rollout.id
        standing = Standing(build, rollout.order, state in TERMINAL)
        view = self.devices[device]
        self.devices[device] = replace(view, standing={**view.standing, component: standing})
        if state is ExecutionState.IDLE and view.online:
            self.work(name)

    def work(self, execution: str) -> None:
        if self.rng.random() >= self.faults.hang:
            self.at(self.rng.uniform(0.1, self.faults.slow), ("answer", execution))

    def happen(self, event: Any) -> None:
        kind, name = event
        if kind == "answer":
            execution = self.executions[name]
            view = self.devices[execution.device]
            if execution.finished or not view.online:
                return
            # the way back never fails here: what fails for ever is the device's affair, and is tested apart
            fails = not execution.reverting and self.rng.random() < self.faults.fail
            state = self.rng.choice(sorted(FAILURES)) if fails else ExecutionState.SUCCEEDED
            self.executions[name] = replace(execution, state=state, updated=self.now)
            if not fails:
                self.worked[execution.device] = execution.build
                standing = view.standing[execution.component]
                view = replace(view, standing={execution.component: replace(standing, in_place=True)})
            self.devices[execution.device] = replace(view, last_seen=self.now)
        elif kind == "leave":
            self.devices[name] = replace(self.devices[name], online=False, last_seen=self.now)
            self.at(self.rng.uniform(1, 1000), ("return", name))
        elif kind == "return":
            self.devices[name] = replace(self.devices[name], online=True, last_seen=self.now)
            for execution in self.executions.values():
                if execution.device == name and not execution.finished:
                    self.work(execution.id)
        elif kind == "join":
            self.join(name)
        else:
            kind(self)

    def run(self, seconds: float, tick: float = 20.0) -> None:
        """Let ``seconds`` pass; ends early when all rollouts have concluded and nothing will happen any more."""
        until = self.now + seconds
        ended: dict[str, ExecutionState] = {}
        while self.now < until:
            self.plan()
            for execution in self.executions.values():
                if execution.finished:
                    assert ended.setdefault(execution.id, execution.state) is execution.state, "what has ended stays"
            if not self.events and all(rollout.state in CONCLUDED for rollout in self.rollouts.values()):
                return
            step = self.now + tick
            while self.events and self.events[0][0] <= step:
                moment, _, event = heapq.heappop(self.events)
                self.now = max(self.now, moment)
                self.happen(event)
            self.now = max(self.now, step)
        self.plan()

    def state(self, rollout: str) -> RolloutState:
        return self.rollouts[rollout].state


POLICY = {"deadline": 600.0, "soak": 30.0, "offline": {"skip_after": 60.0}, "max_in_flight": 100}


def bound(policy: dict[str, Any], count: int) -> float:
    """The longest that ``count`` devices may take by their policy: every turn its deadline, the soaks, the way back.

    A stage may look for somebody who can be reached for a deadline, and so may those that join it then.
    """
    parsed = parse_policy(policy)
    turns = math.ceil(count / parsed.max_in_flight) + 1
    each = turns * (parsed.deadline + 20.0) + parsed.soak + 2 * 20.0
    return len(parsed.stages) * each + parsed.deadline + 2 * 20.0


faults = st.builds(
    Faults,
    fail=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    hang=st.sampled_from([0.0, 0.05, 1.0]),
    gone=st.sampled_from([0.0, 0.2, 1.0]),
    flaky=st.sampled_from([0.0, 0.5]),
    slow=st.sampled_from([5.0, 300.0]),
)
policies = st.fixed_dictionaries(
    {
        "stages": st.sampled_from(
            [
                ["rest"],
                [{"count": 1}, "rest"],
                [{"percent": 5}, {"percent": 30}, "rest"],
                [{"count": 2}, {"percent": 50}],
            ]
        ),
        "gate": st.fixed_dictionaries(
            {
                "max_failed_percent": st.sampled_from([0.0, 10.0, 100.0]),
                "min_executed": st.sampled_from([1, 5]),
                "quorum_percent": st.sampled_from([50.0, 100.0]),
                "on_failure": st.sampled_from(["rollback", "abort"]),
            }
        ),
        "soak": st.sampled_from([0.0, 60.0]),
        "deadline": st.just(600.0),
        "offline": st.just({"skip_after": 60.0}),
        "max_in_flight": st.sampled_from([3, 1000]),
        "continuous": st.booleans(),
    }
)


# Found once: devices that missed their time come back and hang, while others wait for their turn.
COMING_BACK = {
    "stages": ["rest"],
    "gate": {"max_failed_percent": 0.0, "min_executed": 5, "quorum_percent": 50.0, "on_failure": "rollback"},
    "soak": 0.0,
    "deadline": 600.0,
    "offline": {"skip_after": 60.0},
    "max_in_flight": 3,
    "continuous": False,
}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32), faults, policies, st.integers(1, 25))
@example(0, Faults(fail=0.0, hang=1.0, gone=0.0, flaky=0.5, slow=5.0), COMING_BACK, 10)
def test_every_rollout_ends_within_its_deadlines(seed: int, how: Faults, policy: dict[str, Any], count: int) -> None:
    """SAFETY is checked at every step of the plan (World.check); LIVENESS at the end."""
    world = World(random.Random(seed), how, count)
    rollout = world.start(1, policy)
    world.run(bound(policy, count))
    assert world.state(rollout) in CONCLUDED, f"{world.state(rollout)}: {world.rollouts[rollout].stages[-1:]}"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.integers(0, 2**32),
    faults,
    policies,
    st.lists(st.tuples(st.floats(1, 900), st.sampled_from([*Wanted, "join", "newer"])), max_size=6),
)
def test_whatever_operators_do_in_between(seed: int, how: Faults, policy: dict[str, Any], deeds: list[Any]) -> None:
    world = World(random.Random(seed), how, 12)
    world.start(1, policy)
    newcomers, versions = itertools.count(100), itertools.cycle((2, 3))

    def deed(what: Any) -> Any:
        def do(world: World) -> None:
            if what == "newer":
                world.start(next(versions), policy)
            elif what != "join":
                oldest = world.rollouts[min(world.rollouts, key=lambda name: world.rollouts[name].order)]
                if oldest.wanted in (Wanted.RUN, Wanted.PAUSE) and oldest.state not in CONCLUDED:
                    world.want(oldest.id, what)

        return ("join", f"d-{next(newcomers):05}") if what == "join" else (do, None)

    for seconds, what in deeds:
        world.at(seconds, deed(what))
    world.run(900.0)
    for name, rollout in world.rollouts.items():
        if rollout.wanted is Wanted.PAUSE and rollout.state not in CONCLUDED:
            world.want(name, Wanted.RUN)
    world.run(2 * bound(policy, 20))
    for rollout in world.rollouts.values():
        assert rollout.state in CONCLUDED, f"{rollout.id} {rollout.state}"


def test_a_thousand_devices_some_of_them_bad_or_gone() -> None:
    world = World(random.Random(1), Faults(fail=0.01, hang=0.005, gone=0.05, flaky=0.1), 1000)
    policy = POLICY | {"stages": [{"count": 5}, {"percent": 10}, "rest"]}
    rollout = world.start(1, policy | {"max_in_flight": 400})
    world.run(bound(policy, 1000))
    assert world.state(rollout) is RolloutState.SUCCEEDED
    assert sum(e.succeeded for e in world.executions.values()) > 900


def test_a_bad_release_stops_at_the_canary() -> None:
    world = World(random.Random(2), Faults(), 300)
    good = world.start(1, POLICY)
    world.run(bound(POLICY, 300))
    assert world.state(good) is RolloutState.SUCCEEDED
    world.faults = Faults(fail=1.0)
    before = len(world.gives)
    bad = world.start(2, POLICY | {"stages": [{"count": 3}, "rest"]})
    world.run(bound(POLICY, 300))
    assert world.state(bad) is RolloutState.ROLLED_BACK
    assert len(world.gives) - before == 3, "the second stage never began"
    assert {view.standing["model:digits"].build for view in world.devices.values()} == {"b-1"}


def test_one_stuck_rollout_does_not_block_a_newer_one_nor_another_group() -> None:
    world = World(random.Random(3), Faults(hang=1.0), 100)
    stuck = world.start(1, POLICY | {"gate": {"on_failure": "pause"}}, {"devices": [f"d-{n:05}" for n in range(50)]})
    world.run(700.0)
    assert world.state(stuck) is RolloutState.PAUSED
    world.faults = Faults()
    world.now += 1
    newer = world.start(2, POLICY)
    world.run(bound(POLICY, 100))
    assert world.state(newer) is RolloutState.SUCCEEDED
    assert {view.standing["model:digits"].build for view in world.devices.values()} == {"b-2"}


def test_who_is_offline_for_ever_never_stalls() -> None:
    world = World(random.Random(4), Faults(gone=0.5), 200)
    policy = POLICY | {"stages": [{"percent": 60}, "rest"], "soak": 0.0}
    rollout = world.start(1, policy)
    began = world.now
    world.run(bound(policy, 200))
    assert world.state(rollout) is RolloutState.SUCCEEDED
    concluded = max(stage.finished or 0.0 for stage in world.rollouts[rollout].stages)
    assert concluded - began < 400, "far from the deadlines: the reachable ones are fast"
