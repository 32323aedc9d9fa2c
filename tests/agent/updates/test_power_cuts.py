"""Power cuts at every point where something becomes durable, during whole updates.

SAFETY, after every cut: the committed build is whole and was proven; requests go to a whole build, which is the
committed one or the one on trial; nothing was committed but after a probation whose report was acknowledged.
LIVENESS: once the power stays, every execution ends, is reported to have ended exactly once, and nothing is left over.

A cut is a ``PowerCut`` out of ``agent.durable``; from then on every durable step of that agent raises it, and all of
its files are opened anew. The controller and the serving process are others' machines and keep their memory. What was
not synced is lost (`lossy_disk.py`), and the tail of an unfinished download may come back as garbage.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent import durable
from tests.agent.lossy_disk import LossyDisk
from wire.assignment import Item
from wire.execution import TERMINAL

COMPONENT = "model:digits"
Plan = int | tuple[str, int]  # this many points on, or at this occurrence of this name
KINDS = ("good", "probe", "errors", "trial", "remove", "load")


class Power:
    """The hook: cuts after a number of points, or at one occurrence of a name, and stays off until ``restored``."""

    def __init__(self) -> None:
        self.plan: Plan = 0
        self.off = False
        self.cuts: Counter[str] = Counter()
        self.seen: Counter[str] = Counter()

    def __call__(self, name: str) -> None:
        if self.off:
            raise durable.PowerCut(name)
        self.seen[name] += 1
        if self.plan in (self.seen.total(), (name, self.seen[name])):
            self.off = True
            self.cuts[name] += 1
            raise durable.PowerCut(name)

    def restored(self, plan: Plan) -> None:
        """Power is back; it goes again as ``plan`` says, never for 0."""
        self.off, self.plan = False, plan
        self.seen.clear()


class World:
    """One device through many updates."""

    def __init__(self, device: Any, controller: Any, serving: Any, trial_result: Any, disk: LossyDisk) -> None:
        self.disk = disk
        self.device, self.controller, self.serving, self.trial_result = device, controller, serving, trial_result
        self.power = Power()
        self.rng = random.Random(7)
        self.number = 0
        self.candidate: str | None = None
        self.has_known_good = False
        self.proven: set[str] = set()

    async def update(self, kind: str, plans: Iterator[Plan]) -> str:
        """Bring one update about, with a cut after each plan; return how it ended."""
        self.number += 1
        build = None if kind == "remove" else self.controller.publish(1000 + self.number)
        self.serving.traffic = kind == "errors"
        if build is not None and kind in ("probe", "errors", "load"):
            self.serving.bad[build] = kind
        if build is not None and kind == "trial":
            self.serving.trials[build] = self.trial_result(passed=False, reason="bad")
        self.candidate = build
        item = self.controller.item(build, self.number)
        ended = ""
        while not ended:
            self.power.restored(next(plans, 0))
            durable.set_hook(self.power)
            ended = await self.until_cut(item)
            durable.set_hook(None)
            if self.power.off:
                self.lose_what_was_not_synced()
            self.check_safety()
        self.has_known_good = self.device.slots.committed(COMPONENT) is not None
        self.check_end(item)
        return ended

    async def until_cut(self, item: Item) -> str:
        """Run the agent until the execution has ended or the power is cut. Returns how it ended, or nothing."""
        updates, task = None, None
        ends = {state.value for state in TERMINAL}

        def end() -> str:
            return next((state for state in self.controller.states(item.execution) if state in ends), "")

        try:
            updates = self.device.open()
            task = asyncio.create_task(updates.run())
            updates.offer(self.controller.assignment(self.number, item))
            async with asyncio.timeout(20):
                while not task.done() and not self.power.off and not end():
                    await asyncio.sleep(0.001)
        except durable.PowerCut:
            pass
        finally:
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
                if not task.cancelled() and (error := task.exception()) is not None:
                    only_cuts(error)
            if updates is not None:
                updates.close()
        return "" if self.power.off else end()

    def check_safety(self) -> None:
        slots, serving = self.device.slots, self.serving
        committed, current = slots.committed(COMPONENT), slots.current(COMPONENT)
        self.proven |= self.newly_proven()  # the journal forgets old executions, the test does not
        if committed is not None:
            slots.verify(COMPONENT, committed)
            assert committed in self.proven, f"{committed} was committed without proof"
        if current is not None:
            slots.verify(COMPONENT, current)
            assert current in (committed, self.candidate)
        if self.has_known_good and self.candidate is not None:
            assert committed is not None
            assert current is not None
            assert serving.active.get("digits") is not None, "nothing is served"
        active = serving.active.get("digits")
        if active is not None:
            slots.verify(COMPONENT, active)
            assert active in (committed, self.candidate)

    def newly_proven(self) -> set[str]:
        """The builds that the journal saw go from a probation, with an acknowledged report, to COMMITTING."""
        path = self.device.root / "updates.db"
        if not path.exists():
            return set()
        found = set()
        with sqlite3.connect(path) as c:
            items = {}
            if c.execute("PRAGMA user_version").fetchone()[0]:
                items = {
                    row[0]: msgspec.json.decode(row[1], type=Item)
                    for row in c.execute("SELECT execution, item FROM executions")
                }
                states = c.execute("SELECT execution, n, state FROM transitions ORDER BY execution, n").fetchall()
                for before, after in pairwise(states):
                    if after[2] == "COMMITTING":
                        assert before[0] == after[0]
                        assert before[2] == "PROBATION"
                        build = items[after[0]].build
                        if build is not None:
                            assert f"{before[0]}/{before[1]}" in self.controller.reports, "not acknowledged"
                            found.add(build)
        c.close()
        return found

    def lose_what_was_not_synced(self) -> None:
        self.disk.cut()
        for part in (self.device.root / "blobs/parts").glob("*.part"):  # promised to nobody: may hold anything
            with part.open("ab") as file:
                file.write(self.rng.choice([b"", b"\0" * 5000, self.rng.randbytes(5000)]))

    def check_end(self, item: Item) -> None:
        ends = [s for s in self.controller.states(item.execution) if s in {state.value for state in TERMINAL}]
        assert len(ends) == 1, f"{item.execution} ended as {ends}"
        numbers = sorted(
            int(key.split("/")[1]) for key in self.controller.reports if key.startswith(item.execution + "/")
        )
        assert numbers == list(range(1, len(numbers) + 1)), "a transition was not reported"
        slots = self.device.slots
        committed = slots.committed(COMPONENT)
        assert slots.current(COMPONENT) == committed
        assert self.serving.active.get("digits") == committed
        home = self.device.root / "builds/model/digits"
        if home.exists() and ends[0] in ("SUCCEEDED", "FAILED"):
            left = {p.name for p in home.iterdir() if not p.is_symlink()}
            assert left <= {committed, slots.previous(COMPONENT)}, f"left over: {left}"
            assert list((self.device.root / "blobs/parts").iterdir()) == []


def only_cuts(error: BaseException) -> None:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            only_cuts(inner)
    elif not isinstance(error, durable.PowerCut):
        raise error


@pytest.fixture
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory in memory where there is one: cuts are simulated, so nothing has to reach a real disk."""
    memory = Path("/dev/shm")
    root = Path(tempfile.mkdtemp(prefix="muster-cuts-", dir=memory if memory.is_dir() else None))
    yield root
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def world(
    device: Any, controller: Any, serving: Any, trial_result: Any, quick_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> World:
    device.root = quick_disk / "device"
    return World(device, controller, serving, trial_result, LossyDisk(device.root, monkeypatch))


@pytest.mark.parametrize("kind", ["good", "probe", "remove"])
async def test_one_cut_at_each_point_of_an_update(world: World, kind: str) -> None:
    await world.update("good", iter(()))
    await world.update("good", iter(()))
    await world.update(kind, iter(()))
    trace = [(name, n) for name, count in world.power.seen.items() for n in range(1, count + 1)]
    if kind != "good":  # what they share with it was cut there
        trace = [point for point in trace if point[0].startswith(("journal", "slots")) and "reported" not in point[0]]
    for point in trace:
        if kind == "remove" and not world.has_known_good:
            await world.update("good", iter(()))
        ended = await world.update(kind, iter((point,)))
        assert ended == ("FAILED" if kind == "probe" else "SUCCEEDED"), f"one cut at {point} changed how it ended"
    missed = {name for name, _ in trace} - set(world.power.cuts)
    assert missed <= {"blobs.mkdir:before", "blobs.mkdir:after"}  # whether there is one depends on the hashes
    if kind == "good":
        assert len(trace) > 110
        assert world.power.cuts.total() >= len(trace) - 6


async def test_many_cuts_at_random(world: World) -> None:
    rng = random.Random(20)
    ended: Counter[str] = Counter()
    await world.update("good", iter(()))
    while world.power.cuts.total() < 120:
        kind = rng.choice(KINDS)
        if kind == "remove" and not world.has_known_good:
            kind = "good"
        ended[f"{kind} {await world.update(kind, (rng.randint(1, 60) for _ in range(rng.randint(1, 12))))}"] += 1
    assert any(how.endswith("SUCCEEDED") for how in ended)
    assert any(how.endswith("FAILED") for how in ended)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_thousand_cuts_at_random(world: World) -> None:
    rng = random.Random(21)
    await world.update("good", iter(()))
    while world.power.cuts.total() < 1200:
        kind = rng.choice(KINDS)
        if kind == "remove" and not world.has_known_good:
            kind = "good"
        await world.update(kind, (rng.randint(1, 60) for _ in range(rng.randint(1, 12))))
    assert world.power.cuts.total() >= 1200


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(KINDS), gaps=st.lists(st.integers(1, 130), max_size=5))
def test_safety_and_liveness_under_any_cuts(world: World, kind: str, gaps: list[int]) -> None:
    async def run() -> None:
        if not world.has_known_good:
            await world.update("good", iter(()))
        await world.update(kind, iter(gaps))

    asyncio.run(run())
