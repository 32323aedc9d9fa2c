"""The states in which the serving process takes part: try, switch, watch, go back.

Invariant: requests go to a build only after its trial passed on this very device, and the link ``current`` names it
before serving is told. Going back needs no network and no new bytes. A serving process that restarted, or lost a build,
is told again what it should run. Does not start or stop the serving process (`agent/supervision`).
"""

from __future__ import annotations

import asyncio
import functools
import time
from typing import Final

import structlog

from agent.builds.slots import Slots
from agent.errors import AgentError, TrustError
from agent.serving_protocol import LoadedBuild, ServingState
from agent.updates import probation
from agent.updates.journal import Execution, Journal
from agent.updates.machine import MAX_STARTS
from agent.updates.probation import Guilty, Proven, Watched
from agent.updates.seams import Acked, Result, Serving, Stop, Trial
from agent.updates.threads import in_thread
from wire.execution import ExecutionState
from wire.manifest import Manifest

S = ExecutionState
_TOUCHES_LIVE: Final = frozenset({S.ACTIVATING, S.PROBATION, S.COMMITTING, S.ROLLING_BACK, S.VERIFYING_ROLLBACK})
"""Not cut short by `restore`: the execution itself sees to what is active."""
_TRIAL_SECONDS: Final = 300.0  # the build's own fault; a state's deadline that ends sooner convicts nobody
_PROBE_FAILURES: Final = 2  # in a row


class Live:
    """``tick``: seconds between two looks at serving. ``why``: by component, what its current work still waits for."""

    def __init__(
        self, *, journal: Journal, slots: Slots, serving: Serving, trial: Trial, acked: Acked, tick: float = 1.0
    ) -> None:
        self._journal = journal
        self._slots = slots
        self._serving = serving
        self._trial = trial
        self._acked = acked
        self._tick = tick
        self._restoring = asyncio.Lock()
        self._log = structlog.get_logger()
        self.why: dict[str, str] = {}

    async def state(self) -> ServingState | None:
        """Return what serving says, None when it does not answer."""
        try:
            return await self._serving.state()
        except AgentError:
            return None

    async def wait_for_serving(self) -> ServingState:
        """Return what serving says, as soon as it answers."""
        while True:
            state = await self.state()
            if state is not None:
                return state
            await asyncio.sleep(self._tick)

    # The way forward

    async def warm(self, row: Execution) -> Result:
        """Try the build in a child with limits, then load it beside the active one."""
        build = row.item.build
        if build is None:
            return Result()
        try:
            manifest = await in_thread(functools.partial(self._slots.verify, row.component, build))
        except TrustError as error:  # this disk, not the build
            raise Stop(error.code, str(error)) from error
        figures = await self._try(row, manifest)
        self.why[row.component] = "serving does not answer"
        await self.wait_for_serving()
        loaded = await self._serving.load(row.model, build, self._slots.directory(row.component, build))
        return Result(figures={**figures, "load_ms": loaded.load_ms})

    async def _try(self, row: Execution, manifest: Manifest) -> dict[str, float]:
        assert row.item.build is not None
        directory = self._slots.directory(row.component, row.item.build)
        limits = manifest.limits
        for last in (False, True):
            found = await self._trial(directory, limits.max_memory_bytes, _TRIAL_SECONDS)
            if not found.passed:
                message = f"the trial on this device failed: {found.reason}"
                raise Stop("trial_failed", message, bad=True, log_tail=found.log_tail)
            if found.difference > limits.tolerance:
                reason = f"outputs differ by {found.difference:g} from the golden ones, {limits.tolerance:g} is allowed"
                raise Stop("wrong_outputs", reason, bad=True)
            if found.peak_memory_bytes > limits.max_memory_bytes:
                reason = f"{found.peak_memory_bytes} bytes of memory, {limits.max_memory_bytes} are allowed"
                raise Stop("too_much_memory", reason, bad=True)
            if found.p95_ms <= limits.max_p95_ms:
                break
            if last:  # once may be a busy moment of the device
                raise Stop("too_slow", f"p95 {found.p95_ms:.1f} ms, {limits.max_p95_ms:.1f} ms are allowed", bad=True)
        return {
            "trial_p95_ms": found.p95_ms,
            "trial_memory_bytes": float(found.peak_memory_bytes),
            "trial_difference": found.difference,
        }

    async def activate(self, row: Execution) -> Result:
        """Switch the link, then serving. The journal row that says so was written before."""
        self.why[row.component] = "what was served before is still being restored"
        async with self._restoring:  # one that begins from here on leaves this component alone
            pass
        self.why[row.component] = "serving does not answer"
        begun = time.monotonic()
        build = row.item.build
        if build is None:
            self._slots.deactivate(row.component)
            await self.wait_for_serving()
            await self._serving.remove(row.model)
            return Result()
        self._slots.activate(row.component, build)
        await self.wait_for_serving()
        await self._ensure(row.component, build)
        return Result(figures={"switch_ms": round(1000 * (time.monotonic() - begun), 3)})

    async def watch(self, row: Execution) -> Result:
        """Watch the build serve until it is proven or found guilty."""
        build = row.item.build
        if build is None:
            return Result()
        marker = self._journal.last(row.execution, S.PROBATION)
        key = marker.key if marker is not None else ""
        while True:  # once more whenever serving has lost the build
            row = self._journal.started(row)
            if row.starts > MAX_STARTS:
                reason = f"the build did not stay up: {row.starts - 1} starts without a whole probation"
                raise Stop("does_not_stay_up", reason, bad=True)
            self.why[row.component] = "serving does not answer"
            state = await self.wait_for_serving()
            try:
                first = await self._ensure(row.component, build)
            except AgentError as error:  # it may have died of this very build: that start is counted
                self._log.warning("serving does not take the build on probation", build=build, reason=str(error))
                await asyncio.sleep(self._tick)
                continue
            begun, pid, asked, probes, failures = time.monotonic(), state.pid, first.requests, 0, 0
            while True:
                state = await self.wait_for_serving()
                seen = _find(state, row.model, build)
                if seen is None or seen.state != "active" or state.pid != pid:
                    self._log.warning("serving lost a build in its probation", build=build, pid=state.pid)
                    break
                if seen.requests == asked:
                    passed, reason = await self._probe(row.model, build)
                    probes += passed
                    failures = 0 if passed else failures + 1
                    if failures >= _PROBE_FAILURES:
                        raise Stop("probe_failed", f"golden inputs failed while it served: {reason}", bad=True)
                asked = seen.requests
                seconds = time.monotonic() - begun
                requests, errors = seen.requests - first.requests, seen.errors - first.errors
                acknowledged = row.item.policy.offline_ok or self._acked(key)
                verdict = probation.judge(Watched(seconds, requests, errors, probes, acknowledged), row.item.policy)
                if isinstance(verdict, Guilty):
                    raise Stop(verdict.code, verdict.reason, bad=True)
                if isinstance(verdict, Proven):
                    figures = {"probation_seconds": seconds, "requests": requests, "errors": errors, "probes": probes}
                    return Result(figures={name: round(float(value), 3) for name, value in figures.items()})
                self.why[row.component] = verdict.reason
                left = row.item.policy.probation - seconds
                await asyncio.sleep(min(self._tick, left) if left > 0 else self._tick)

    # The way back

    async def roll_back(self, row: Execution) -> Result:
        """Let requests go to the last known good build again, or to none where there was none."""
        begun = time.monotonic()
        good = self._known_good(row.component)
        if good is None:
            self._slots.deactivate(row.component)
        elif self._slots.current(row.component) != good:
            self._slots.activate(row.component, good)
        self.why[row.component] = "serving does not answer"
        state = await self.wait_for_serving()
        if good is not None:
            await self._ensure(row.component, good)
        elif _active(state, row.model) is not None:
            await self._serving.remove(row.model)
        return Result(
            detail=f"back to {good}" if good else "removed: there was no build before it",
            figures={"rollback_ms": round(1000 * (time.monotonic() - begun), 3)},
        )

    async def verify_rollback(self, row: Execution) -> Result:
        """Make sure that the known good build really answers."""
        good = self._slots.committed(row.component)
        reason = "serving does not answer"
        for _ in range(3):
            self.why[row.component] = reason
            state = await self.wait_for_serving()
            active = _active(state, row.model)
            if good is None and active is None:
                return Result()
            if good is not None and active is not None and active.build == good:
                passed, reason = await self._probe(row.model, good)
                if passed:
                    return Result()
            else:
                reason = f"{active.build if active else 'nothing'} is active instead of {good or 'nothing'}"
                if good is not None:  # serving restarted meanwhile
                    await self._ensure(row.component, good)
                    continue
            await asyncio.sleep(self._tick)
        raise Stop("rollback_unverified", f"the build before does not answer as it should: {reason}")

    async def unload_others(self, row: Execution) -> None:
        """Give back the memory of every build of the model that requests do not go to."""
        state = await self.state()
        current = self._slots.current(row.component)
        for loaded in state.builds if state is not None else ():
            if loaded.model == row.model and loaded.state != "active" and loaded.build != current:
                await self._serving.unload(row.model, loaded.build)

    async def restore(self) -> list[str]:
        """Make serving run what is committed: after it, or the agent, has restarted.

        Returns the components that could not be restored, each logged with its reason. A component that an update is
        just switching is left to that update. Raises AgentError when serving does not answer at all.
        """
        async with self._restoring:
            busy = {row.component for row in self._journal.unfinished() if row.state in _TOUCHES_LIVE}
            failed: list[str] = []
            state = await self._serving.state()
            for component in self._slots.components():
                if component in busy:
                    continue
                model = component.partition(":")[2]
                try:
                    good = self._known_good(component)
                    if self._slots.current(component) != good:  # a lost journal: whatever was on trial is unproven
                        if good is None:
                            self._slots.deactivate(component)
                        else:
                            self._slots.activate(component, good)
                    active = _active(state, model)
                    if good is None:
                        if active is not None:
                            await self._serving.remove(model)
                    elif active is None or active.build != good:
                        await self._ensure(component, await self._sound(component, good))
                except AgentError as error:
                    failed.append(component)
                    self._log.error("cannot restore what was served", component=component, reason=str(error))
            return failed

    def _known_good(self, component: str) -> str | None:
        """Return the committed build; where its files are damaged, the one before it, which is then committed."""
        committed, previous = self._slots.committed(component), self._slots.previous(component)
        if committed is None or self._slots.installed(component, committed) is not None:
            return committed
        if previous is not None and self._slots.installed(component, previous) is not None:
            self._log.error("the known good build is damaged; going back to the one before", build=committed)
            self._slots.commit(component, previous)
            return previous
        return committed

    async def _sound(self, component: str, good: str) -> str:
        """Return ``good`` if its bytes are right, else the one before, which is then committed. Raises TrustError."""
        try:
            await in_thread(functools.partial(self._slots.verify, component, good))
        except TrustError as error:
            previous = self._slots.previous(component)
            if previous is None or previous == good:
                raise
            await in_thread(functools.partial(self._slots.verify, component, previous))
            self._log.error("the known good build has rotted; going back to the one before", reason=str(error))
            self._slots.commit(component, previous)
            self._slots.activate(component, previous)
            return previous
        return good

    async def _ensure(self, component: str, build: str) -> LoadedBuild:
        """Load ``build`` unless it is loaded, and let requests go to it. Returns its counters. Raises AgentError."""
        model = component.partition(":")[2]
        loaded = _find(await self._serving.state(), model, build)
        if loaded is None:
            await self._serving.load(model, build, self._slots.directory(component, build))
        if loaded is None or loaded.state != "active":
            loaded = await self._serving.activate(model, build)
        return loaded

    async def _probe(self, model: str, build: str) -> tuple[bool, str]:
        try:
            found = await self._serving.probe(model, build)
        except AgentError as error:
            return False, str(error)
        return found.passed, found.reason


def _find(state: ServingState, model: str, build: str) -> LoadedBuild | None:
    return next((loaded for loaded in state.builds if (loaded.model, loaded.build) == (model, build)), None)


def _active(state: ServingState, model: str) -> LoadedBuild | None:
    return next((loaded for loaded in state.builds if loaded.model == model and loaded.state == "active"), None)
