"""One queue and one engine thread per loaded build: requests in, results back in the event loop.

Invariant: every admitted request gets exactly one answer: its outputs, the engine's error, or 504 within milliseconds
of its deadline, also while the engine is busy. Idle costs nothing: the thread sleeps in a queue, no timer stands.
All state is touched in the event loop only; the thread sees arrays and gives arrays. What runs when is decided in
`admission.py` and `batching.py`.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Hashable, Mapping
from queue import SimpleQueue
from typing import Final

import msgspec
import numpy as np
import structlog

from agent.errors import AgentError, ServingError
from agent.serving.admission import Asked, Bounds, Pace, QueueState, Rejected, admit
from agent.serving.batching import Expired, Queue, Rules, Run, Waiting, offer, tick, withdraw
from agent.serving.refusal import RefusedError
from agent.serving.runtimes import Array, Runtime
from agent.serving.tally import Recent, Tally

log = structlog.get_logger()

Outputs = dict[str, Array]
_STOP: Final = None
now = time.monotonic


class Work(msgspec.Struct, frozen=True):
    """What the engine thread gets: the inputs of each request of one batch, and their rows."""

    inputs: list[dict[str, Array]]
    items: list[int]


class Job:
    """One admitted request. Await ``future``; call ``release`` when done with it, in every case.

    Once answered: ``queued`` is how long it waited, ``computed`` how long its batch took, both in seconds.
    """

    __slots__ = ("_dispatcher", "arrived", "computed", "future", "id", "inputs", "probe", "queued", "timer")

    def __init__(
        self, dispatcher: Dispatcher, identity: int, inputs: dict[str, Array], arrived: float, probe: bool
    ) -> None:
        self._dispatcher = dispatcher
        self.id = identity
        self.inputs = inputs
        self.arrived = arrived
        self.probe = probe
        self.queued = self.computed = 0.0
        self.future: asyncio.Future[Outputs] = dispatcher.loop.create_future()
        self.timer: asyncio.TimerHandle | None = None

    def release(self) -> None:
        """Stop the deadline's timer, and leave the queue if the request still waits there (nobody wants it)."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if not self.future.done() or self.future.cancelled():
            self._dispatcher.abandon(self)

    def refuse(self, refusal: RefusedError) -> None:
        """End the request with ``refusal``, wherever it stands; nothing happens when it was answered before."""
        if not self.future.done():
            self.future.set_exception(refusal)
            self.future.exception()  # marks it as seen: its client may be gone
            self._dispatcher.forget(self)


class Dispatcher:
    """The queue and the thread of one loaded build. Made and used in the event loop only."""

    def __init__(self, runtime: Runtime, rules: Rules, bounds: Bounds, tally: Tally, name: str) -> None:
        self.loop = asyncio.get_running_loop()
        self.requests = self.errors = self.probes = 0
        self.recent = Recent()
        self._runtime = runtime
        self._rules = rules
        self._bounds = bounds
        self._tally = tally
        self._queue = Queue()
        self._pace = Pace()
        self._soon: asyncio.Handle | None = None
        self._jobs: dict[int, Job] = {}
        self._running: tuple[Job, ...] = ()
        self._running_items = 0
        self._running_since: float | None = None
        self._next = 0
        self._wake: asyncio.TimerHandle | None = None
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._work: SimpleQueue[Work | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._engine, name=f"engine {name}"[:15], daemon=True)
        self._thread.start()

    @property
    def queued(self) -> int:
        """How many requests wait."""
        return len(self._queue.waiting)

    @property
    def queued_items(self) -> int:
        """How many rows wait."""
        return self._queue.items

    def submit(
        self,
        inputs: dict[str, Array],
        items: int,
        size: int,
        key: Hashable,
        deadline: float,
        probe: bool = False,
    ) -> Job:
        """Queue one request and return its job. ``deadline``: an instant of ``now``. Raises RefusedError."""
        instant = now()
        state = QueueState(
            self._bounds,
            self._pace,
            self._rules.max_batch,
            len(self._queue.waiting),
            self._queue.items,
            self._queue.bytes,
            self._running_items,
            self._running_since,
            self._draining,
        )
        decision = admit(state, Asked(items, size, deadline), instant)
        if isinstance(decision, Rejected):
            code = "too_large" if decision.status == 413 else "overloaded" if decision.status == 429 else "draining"
            raise RefusedError(decision.status, decision.reason, code, decision.retry_after)
        self._next += 1
        job = Job(self, self._next, inputs, instant, probe)
        job.timer = self.loop.call_later(max(deadline - instant, 0.0), self._expire, job, deadline - instant)
        self._jobs[job.id] = job
        self._queue = offer(self._queue, Waiting(job.id, items, size, key, instant, deadline))
        self._idle.clear()
        if self._running_since is None and self._soon is None:
            # Not at once: what else arrives in this turn of the loop joins the batch.
            self._soon = self.loop.call_soon(self._on_soon)
        return job

    def abandon(self, job: Job) -> None:
        """Drop ``job``: nobody waits for it. A run that has begun goes on, its result is thrown away."""
        if job.id in self._jobs:
            self.forget(job)

    def forget(self, job: Job) -> None:
        """Take ``job`` out of the queue if it is there."""
        if self._jobs.pop(job.id, None) is not None and job not in self._running:
            self._queue = withdraw(self._queue, frozenset((job.id,)))
            self._settle()

    async def drain(self) -> None:
        """Refuse new requests, and return when those that wait are answered."""
        self._draining = True
        await self._idle.wait()

    async def close(self) -> None:
        """End the thread and give the engine's memory back. Requests that still wait are refused (503)."""
        self._draining = True
        for job in list(self._jobs.values()):
            job.refuse(RefusedError(503, "this build was unloaded", "draining", 1.0))
        for handle in (self._wake, self._soon):
            if handle is not None:
                handle.cancel()
        self._work.put(_STOP)
        await self.loop.run_in_executor(None, self._thread.join, 10.0)

    def _pump(self, instant: float) -> None:
        """Ask what to do now, and do it."""
        for handle in (self._wake, self._soon):
            if handle is not None:
                handle.cancel()
        self._wake = self._soon = None
        self._queue, actions = tick(self._queue, self._running_since is None, instant, self._rules)
        for action in actions:
            if isinstance(action, Run):
                self._begin(action, instant)
            elif isinstance(action, Expired):
                for waiting in action.requests:
                    job = self._jobs.get(waiting.id)
                    if job is not None:
                        self._expire(job, waiting.deadline - waiting.arrived)
            else:
                self._wake = self.loop.call_later(action.instant - instant, self._on_wake)
        self._settle()

    def _on_soon(self) -> None:
        self._soon = None
        self._pump(now())

    def _on_wake(self) -> None:
        self._wake = None
        self._pump(now())

    def _begin(self, action: Run, instant: float) -> None:
        jobs = [self._jobs[waiting.id] for waiting in action.batch]
        items = [waiting.items for waiting in action.batch]
        self._running = tuple(jobs)
        self._running_items = sum(items)
        self._running_since = instant
        self._work.put(Work([job.inputs for job in jobs], items))

    def _expire(self, job: Job, allowed: float) -> None:
        reason = f"no answer within the {1000 * allowed:.0f} ms that the request allows"
        job.refuse(RefusedError(504, reason, "deadline"))

    def _settle(self) -> None:
        if self._running_since is None and not self._queue.waiting:
            self._idle.set()

    def _finished(self, results: list[Outputs | AgentError], seconds: float) -> None:
        """Hand out the results of the batch that ran (in the event loop)."""
        jobs, items, since = self._running, self._running_items, self._running_since
        self._running, self._running_items, self._running_since = (), 0, None
        instant = now()
        self._pace = self._pace.observe(items, seconds)
        self._tally.batch.add(items)
        for job, result in zip(jobs, results, strict=True):
            self._jobs.pop(job.id, None)
            if job.probe:
                self.probes += 1
            else:
                self.requests += 1
                self.errors += isinstance(result, AgentError)
            if job.future.done():  # expired, or its client has gone
                continue
            if isinstance(result, AgentError):
                job.future.set_exception(RefusedError(500, str(result), result.code))
            else:
                job.queued, job.computed = (since or job.arrived) - job.arrived, seconds
                if not job.probe:
                    self.recent.add(instant - job.arrived, instant)
                job.future.set_result(result)
        self._pump(instant)

    def _engine(self) -> None:
        """The thread: take a batch, run it, give it back; ends at ``_STOP``."""
        while (work := self._work.get()) is not _STOP:
            begun = time.perf_counter()
            results = run_batch(self._runtime, work.inputs, work.items)
            seconds = time.perf_counter() - begun
            try:
                self.loop.call_soon_threadsafe(self._finished, results, seconds)
            except RuntimeError:  # the loop is closed: the process ends, nobody waits
                break
        self._runtime.close()


def run_batch(runtime: Runtime, inputs: list[dict[str, Array]], items: list[int]) -> list[Outputs | AgentError]:
    """Return what each request of a batch gets: its rows of the outputs, or the error.

    A batch that fails as a whole is run again one by one, so that one request cannot spoil its neighbours'.
    """
    if len(inputs) > 1:
        try:
            joined = {name: np.concatenate([one[name] for one in inputs]) for name in inputs[0]}
            return list(_split(runtime.run(joined), items))
        except AgentError as error:
            log.warning("batch failed, running its requests one by one", requests=len(items), reason=str(error))
    return [_run_one(runtime, one) for one in inputs]


def _run_one(runtime: Runtime, inputs: Mapping[str, Array]) -> Outputs | AgentError:
    try:
        return runtime.run(inputs)
    except AgentError as error:
        return error
    except Exception as error:  # an engine's own bug must not end its thread: the request gets it as its answer
        log.exception("engine failed")
        return ServingError(f"the engine failed: {type(error).__name__}: {error}", "run_failed")


def _split(outputs: Outputs, items: list[int]) -> list[Outputs]:
    total = sum(items)
    for name, array in outputs.items():
        if array.ndim == 0 or array.shape[0] != total:
            raise ServingError(f"output {name!r} has the shape {list(array.shape)} for {total} rows", "not_batchable")
    parts, start = [], 0
    for count in items:
        parts.append({name: array[start : start + count] for name, array in outputs.items()})
        start += count
    return parts
