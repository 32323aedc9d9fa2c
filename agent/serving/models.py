"""The loaded builds: beside or active, switched at once, unloaded when their last request is answered.

Invariant: at most one active build a model; a switch loses no request, since those that wait at the old build are
answered by it. Changes happen one after the other. A change that cannot be written to disk does not happen, and what is
served stays. Loading runs in a worker thread. Does not decide what should be active: the agent or the repository does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

import structlog

from agent.errors import AgentError
from agent.serving.active import ActiveFile, Place
from agent.serving.admission import Bounds
from agent.serving.batching import Rules
from agent.serving.build import Build, Opened, open_build, read_build
from agent.serving.dispatch import Dispatcher, Job, now
from agent.serving.golden import NOT_COMPARABLE, Comparison, compare, percentile
from agent.serving.infer import Parsed, Signature
from agent.serving.refusal import RefusedError
from agent.serving.tally import Tally
from agent.serving_protocol import LoadedBuild, ProbeResult
from wire.tunnel import ServedModel

log = structlog.get_logger()

_T = TypeVar("_T")

MAX_BUILDS: Final = 64
PROBE_RUNS: Final = 5
PROBE_SECONDS: Final = 30.0
DRAIN_SECONDS: Final = 30.0


class Loaded:
    """One build in memory, with its queue and its engine thread."""

    def __init__(self, opened: Opened, tally: Tally) -> None:
        build = opened.build
        self.build = build
        self.signature: Signature = opened.signature
        self.golden = opened.golden
        self.load_ms = opened.load_ms
        self.max_batch = opened.max_batch
        self.tally = tally
        self.active = False
        self.dispatcher = Dispatcher(
            opened.runtime, Rules(opened.max_batch, build.max_delay), Bounds(), tally, build.model
        )

    def submit(self, parsed: Parsed, deadline: float) -> Job:
        """Queue ``parsed`` until ``deadline`` (an instant of ``dispatch.now``). Raises RefusedError."""
        return self.dispatcher.submit(parsed.inputs, parsed.items, parsed.bytes, parsed.key, deadline)

    def describe(self) -> LoadedBuild:
        """Return what the agent is told about this build."""
        recent = self.dispatcher.recent.percentiles(now())
        return LoadedBuild(
            model=self.build.model,
            version=self.build.version,
            build=self.build.build,
            state="active" if self.active else "loaded",
            load_ms=round(self.load_ms, 3),
            requests=self.dispatcher.requests,
            errors=self.dispatcher.errors,
            probes=self.dispatcher.probes,
            queued=self.dispatcher.queued,
            p50_ms=recent.p50_ms,
            p95_ms=recent.p95_ms,
            p99_ms=recent.p99_ms,
        )


class Models:
    """All models of one serving process. Used in the event loop only.

    memory: where active builds are remembered, None for a process that is told everything at its start.
    on_change: called after each change of what is served.
    """

    def __init__(self, memory: ActiveFile | None = None, on_change: Callable[[], None] = lambda: None) -> None:
        self.on_change = on_change
        self.tallies: dict[str, Tally] = {}
        self.draining = False
        self._memory = memory
        self._builds: dict[str, dict[str, Loaded]] = {}
        self._active: dict[str, Loaded] = {}
        self._places: dict[str, Place] = {}
        self._directories: dict[str, str] = {}
        self._changes = asyncio.Lock()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="load")

    def active(self, model: str) -> Loaded | None:
        """Return the build that answers for ``model``."""
        return self._active.get(model)

    def only(self) -> Loaded | None:
        """Return the active build of the only model; None when there are more, or none."""
        return next(iter(self._active.values())) if len(self._active) == 1 else None

    def names(self) -> list[str]:
        """Return the models that are served, in order of their names."""
        return sorted(self._active)

    def describe(self) -> list[LoadedBuild]:
        """Return every build in memory, by model."""
        return [loaded.describe() for builds in self._builds.values() for loaded in builds.values()]

    def loaded(self) -> list[Loaded]:
        """Return every build in memory, by model."""
        return [loaded for builds in self._builds.values() for loaded in builds.values()]

    def served(self) -> list[ServedModel]:
        """Return what the gateway is told: the active builds."""
        instant = now()
        return [
            ServedModel(
                name=name,
                version=loaded.build.version,
                build=loaded.build.build,
                ready=not self.draining,
                queued=loaded.dispatcher.queued,
                p50_ms=loaded.dispatcher.recent.percentiles(instant).p50_ms,
            )
            for name, loaded in self._active.items()
        ]

    async def load(self, model: str, build: str, directory: str) -> LoadedBuild:
        """Load ``build`` from ``directory`` beside what is active. Loaded twice is loaded once.

        Raises DeviceError, ServingError or RefusedError (409: another model's build, or too many builds).
        """
        async with self._changes:
            loaded = self._builds.get(model, {}).get(build)
            if loaded is None:
                described = await self._in_worker(lambda: read_build(Path(directory), build))
                if described.model != model:
                    raise RefusedError(
                        409, f"build {build} is one of {described.model!r}, not of {model!r}", "conflict"
                    )
                loaded = await self._open(described)
                self._directories[build] = directory
            return loaded.describe()

    async def activate(self, model: str, build: str) -> LoadedBuild:
        """Send requests for ``model`` to ``build`` from now on. Raises RefusedError (404) or DeviceError."""
        async with self._changes:
            loaded = self._find(model, build)
            if not loaded.active:
                await self._remember({**self._places, model: Place(build, self._directories[build])})
                self._switch(loaded)
            return loaded.describe()

    async def serve(self, build: Build) -> LoadedBuild:
        """Load ``build``, switch to it, drain and unload what was active before. Raises DeviceError or ServingError."""
        async with self._changes:
            loaded = await self._open(build)
            before = self._active.get(build.model)
            self._switch(loaded)
            if before is not None:
                await self._drop(before)
            return loaded.describe()

    async def unload(self, model: str, build: str) -> None:
        """Drain ``build`` and give its memory back; unloaded already is well. Raises RefusedError (409: active)."""
        async with self._changes:
            loaded = self._builds.get(model, {}).get(build)
            if loaded is None:
                return
            if loaded.active:
                raise RefusedError(
                    409, f"build {build} is active; activate another one or remove {model!r}", "conflict"
                )
            await self._drop(loaded)

    async def remove(self, model: str) -> None:
        """Stop serving ``model`` and unload all of its builds. Raises DeviceError."""
        async with self._changes:
            await self._remember({name: place for name, place in self._places.items() if name != model})
            if self._active.pop(model, None) is not None:
                self.on_change()
            for loaded in list(self._builds.get(model, {}).values()):
                loaded.active = False
                await self._drop(loaded)
            self.tallies.pop(model, None)

    async def probe(self, model: str, build: str) -> ProbeResult:
        """Run the golden inputs of ``build`` a few times through its queue. Raises RefusedError."""
        loaded = self._find(model, build)
        if loaded.golden is None:
            raise RefusedError(409, f"build {build} has no golden inputs", "conflict")
        inputs = loaded.golden.inputs
        items = len(next(iter(inputs.values()))) if loaded.signature.batched else 1
        size = sum(array.nbytes for array in inputs.values())
        times: list[float] = []
        worst: Comparison | None = None
        for _ in range(PROBE_RUNS):
            begun = time.perf_counter()
            job = loaded.dispatcher.submit(inputs, items, size, object(), now() + PROBE_SECONDS, probe=True)
            try:
                found = compare(loaded.golden.outputs, await job.future, loaded.build.tolerance)
            except RefusedError as error:
                if error.status == 503:
                    raise
                found = Comparison(False, str(error), NOT_COMPARABLE)
            finally:
                job.release()
            times.append(1000 * (time.perf_counter() - begun))
            if worst is None or not found.passed or found.difference > worst.difference:
                worst = found
            if not found.passed:
                break
        assert worst is not None
        return ProbeResult(
            passed=worst.passed,
            reason=worst.reason,
            difference=worst.difference,
            runs=len(times),
            p50_ms=round(percentile(times, 0.5), 3),
            p95_ms=round(percentile(times, 0.95), 3),
        )

    async def restore(self) -> None:
        """Load and activate what was active when the process ended; what fails is logged and left to the agent."""
        memory = self._memory
        if memory is None:
            return
        async with self._changes:
            self._places = await self._in_worker(memory.read)
            for model, place in list(self._places.items()):
                try:
                    await self._restore_one(memory, model, place)
                except AgentError as error:
                    log.warning("cannot serve a model again", model=model, build=place.build, reason=str(error))

    async def drain(self) -> None:
        """Answer what waits, then end: no request is taken any more."""
        self.draining = True
        self.on_change()
        await asyncio.gather(*(loaded.dispatcher.drain() for loaded in self.loaded()))

    async def close(self) -> None:
        """End every engine thread."""
        for loaded in self.loaded():
            await loaded.dispatcher.close()
        self._worker.shutdown(wait=False, cancel_futures=True)

    async def _restore_one(self, memory: ActiveFile, model: str, place: Place) -> None:
        if not await self._in_worker(lambda: memory.begin(place.build)):
            log.error("build left out: the process died each time it was loaded", model=model, build=place.build)
            return
        try:
            build = await self._in_worker(lambda: read_build(Path(place.directory), place.build))
            loaded = await self._open(build)
        finally:
            await self._in_worker(memory.done)
        self._directories[place.build] = place.directory
        self._switch(loaded)

    async def _open(self, build: Build) -> Loaded:
        if len(self.loaded()) >= MAX_BUILDS:
            raise RefusedError(409, f"{MAX_BUILDS} builds are loaded already; unload some first", "conflict")
        opened = await self._in_worker(lambda: open_build(build))
        loaded = Loaded(opened, self.tallies.setdefault(build.model, Tally()))
        self._builds.setdefault(build.model, {})[build.build] = loaded
        log.info(
            "build loaded",
            model=build.model,
            version=build.version,
            build=build.build,
            load_ms=round(opened.load_ms, 1),
            max_batch=opened.max_batch,
        )
        return loaded

    def _switch(self, loaded: Loaded) -> None:
        before = self._active.get(loaded.build.model)
        if before is not None:
            before.active = False
        loaded.active = True
        self._active[loaded.build.model] = loaded
        log.info("build active", model=loaded.build.model, version=loaded.build.version, build=loaded.build.build)
        self.on_change()

    async def _drop(self, loaded: Loaded) -> None:
        try:
            await asyncio.wait_for(loaded.dispatcher.drain(), DRAIN_SECONDS)
        except TimeoutError:
            log.warning("build unloaded before its requests ended", model=loaded.build.model, build=loaded.build.build)
        builds = self._builds[loaded.build.model]
        del builds[loaded.build.build]
        if not builds:
            del self._builds[loaded.build.model]
        self._directories.pop(loaded.build.build, None)
        await loaded.dispatcher.close()

    async def _remember(self, places: dict[str, Place]) -> None:
        if self._memory is not None and places != self._places:
            memory = self._memory
            await self._in_worker(lambda: memory.write(places))
        self._places = places

    def _find(self, model: str, build: str) -> Loaded:
        loaded = self._builds.get(model, {}).get(build)
        if loaded is None:
            raise RefusedError(404, f"build {build} of {model!r} is not loaded", "unknown_build")
        return loaded

    async def _in_worker(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._worker, work)
