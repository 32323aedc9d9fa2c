import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import numpy as np
import pytest

from agent.errors import ServingError
from agent.serving.admission import Bounds
from agent.serving.batching import Rules
from agent.serving.dispatch import Dispatcher, Job, now
from agent.serving.refusal import RefusedError
from agent.serving.runtimes import Array, TensorSpec
from agent.serving.tally import Tally

RULES, BOUNDS = Rules(8), Bounds()


class Engine:
    """Doubles its input. Waits for ``gate`` before each run, and remembers how many rows each run had."""

    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.rows: list[int] = []
        self.closed = False
        self.fail: Callable[[Array], bool] = lambda _: False
        self.bug = False
        self.shape = slice(None)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self.entered.set()
        self.gate.wait(10)
        self.rows.append(len(inputs["x"]))
        if self.bug:
            raise RuntimeError("a bug")
        if self.fail(inputs["x"]):
            raise ServingError("bad row", "run_failed")
        return {"y": (inputs["x"] * 2)[self.shape]}  # type: ignore[operator]

    def close(self) -> None:
        self.closed = True


@asynccontextmanager
async def running(
    engine: Engine,
    rules: Rules = RULES,
    bounds: Bounds = BOUNDS,
) -> AsyncIterator[Dispatcher]:
    dispatcher = Dispatcher(engine, rules, bounds, Tally(), "test")
    try:
        yield dispatcher
    finally:
        engine.gate.set()
        await dispatcher.close()
        assert engine.closed


def submit(dispatcher: Dispatcher, value: float = 1.0, rows: int = 1, seconds: float = 10.0, **more: bool) -> Job:
    return dispatcher.submit({"x": np.full((rows,), value)}, rows, 8 * rows, ((),), now() + seconds, **more)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def test_each_request_gets_its_own_rows_of_one_batch() -> None:
    engine = Engine()
    engine.gate.clear()
    async with running(engine) as dispatcher:
        first = submit(dispatcher, 0.5)
        await until(engine.entered.is_set)
        jobs = [submit(dispatcher, float(n), rows=n) for n in (1, 2, 3)]
        assert dispatcher.queued == 3
        assert dispatcher.queued_items == 6
        engine.gate.set()
        assert (await first.future)["y"].tolist() == [1.0]
        for n, job in zip((1, 2, 3), jobs, strict=True):
            assert (await job.future)["y"].tolist() == [2.0 * n] * n
        assert engine.rows == [1, 6]
        assert dispatcher.requests == 4


async def test_a_deadline_is_answered_in_time_while_the_engine_is_busy() -> None:
    engine = Engine()
    engine.gate.clear()
    async with running(engine) as dispatcher:
        running_, begun = submit(dispatcher, seconds=0.05), now()
        await until(engine.entered.is_set)
        queued = submit(dispatcher, seconds=0.03)
        for job, due in ((queued, 0.03), (running_, 0.05)):
            with pytest.raises(RefusedError, match="no answer within") as caught:
                await job.future
            assert caught.value.status == 504
            assert due <= now() - begun < due + 0.05
        assert dispatcher.queued == 0
        engine.gate.set()
        assert (await submit(dispatcher).future)["y"].tolist() == [2.0]
        assert engine.rows == [1, 1]


async def test_a_request_nobody_waits_for_leaves_the_queue() -> None:
    engine = Engine()
    engine.gate.clear()
    async with running(engine) as dispatcher:
        first = submit(dispatcher)
        await until(engine.entered.is_set)
        second = submit(dispatcher)
        second.release()
        assert dispatcher.queued == 0
        third = submit(dispatcher)
        task = asyncio.create_task(wait(third))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert dispatcher.queued == 0
        engine.gate.set()
        await first.future
        await dispatcher.drain()
        assert engine.rows == [1]


async def wait(job: Job) -> None:
    try:
        await job.future
    finally:
        job.release()


async def test_one_bad_request_does_not_spoil_its_batch() -> None:
    engine = Engine()
    engine.fail = lambda x: bool((x < 0).any())
    engine.gate.clear()
    async with running(engine) as dispatcher:
        submit(dispatcher)
        good, bad = submit(dispatcher, 3.0), submit(dispatcher, -1.0)
        engine.gate.set()
        assert (await good.future)["y"].tolist() == [6.0]
        with pytest.raises(RefusedError, match="bad row") as caught:
            await bad.future
        assert caught.value.status == 500
        assert dispatcher.errors == 1


async def test_outputs_that_do_not_count_rows_are_run_one_by_one() -> None:
    engine = Engine()
    engine.shape = slice(0, 1)
    engine.gate.clear()
    async with running(engine) as dispatcher:
        submit(dispatcher)
        await until(engine.entered.is_set)
        jobs = [submit(dispatcher, 3.0), submit(dispatcher, 4.0)]
        engine.gate.set()
        assert [(await job.future)["y"].tolist() for job in jobs] == [[6.0], [8.0]]
        assert engine.rows == [1, 2, 1, 1]


async def test_a_bug_of_the_engine_is_an_answer_and_not_the_end() -> None:
    engine = Engine()
    engine.bug = True
    async with running(engine) as dispatcher:
        with pytest.raises(RefusedError, match="RuntimeError: a bug"):
            await submit(dispatcher).future
        engine.bug = False
        assert (await submit(dispatcher).future)["y"].tolist() == [2.0]


async def test_the_queue_is_bounded() -> None:
    engine = Engine()
    engine.gate.clear()
    async with running(engine, bounds=Bounds(requests=2)) as dispatcher:
        jobs = [submit(dispatcher)]
        await until(engine.entered.is_set)
        jobs += [submit(dispatcher), submit(dispatcher)]
        with pytest.raises(RefusedError, match="at most 2 may") as caught:
            submit(dispatcher)
        assert caught.value.status == 429
        engine.gate.set()
        await asyncio.gather(*(job.future for job in jobs))


async def test_drain_answers_what_waits_and_refuses_the_rest() -> None:
    engine = Engine()
    engine.gate.clear()
    async with running(engine) as dispatcher:
        jobs = [submit(dispatcher), submit(dispatcher)]
        drained = asyncio.create_task(dispatcher.drain())
        await asyncio.sleep(0)
        with pytest.raises(RefusedError) as caught:
            submit(dispatcher)
        assert caught.value.status == 503
        assert not drained.done()
        engine.gate.set()
        await drained
        assert all(job.future.done() for job in jobs)


async def test_close_refuses_what_waits() -> None:
    engine = Engine()
    engine.gate.clear()
    async with running(engine) as dispatcher:
        submit(dispatcher)
        await until(engine.entered.is_set)
        waiting = submit(dispatcher)
        threading.Timer(0.02, engine.gate.set).start()
        await dispatcher.close()
        with pytest.raises(RefusedError, match="unloaded"):
            await waiting.future
    assert engine.rows == [1]


async def test_a_delay_gathers_a_batch_on_a_free_engine() -> None:
    engine = Engine()
    async with running(engine, Rules(max_batch=2, max_delay=5.0)) as dispatcher:
        first = submit(dispatcher)
        await asyncio.sleep(0.01)
        assert engine.rows == []
        await asyncio.gather(first.future, submit(dispatcher).future)
        assert engine.rows == [2]


async def test_a_delay_ends_without_company() -> None:
    engine = Engine()
    async with running(engine, Rules(max_batch=2, max_delay=0.02)) as dispatcher:
        begun = now()
        await submit(dispatcher).future
        assert now() - begun >= 0.019


async def test_probes_are_counted_apart() -> None:
    engine = Engine()
    async with running(engine) as dispatcher:
        await submit(dispatcher, probe=True).future
        assert (dispatcher.requests, dispatcher.probes) == (0, 1)
        assert dispatcher.recent.percentiles(now()).p50_ms is None
        await submit(dispatcher).future
        assert dispatcher.recent.percentiles(now()).p50_ms is not None


async def test_what_arrives_together_runs_together_on_a_free_engine() -> None:
    engine = Engine()
    async with running(engine) as dispatcher:
        await asyncio.gather(*(submit(dispatcher).future for _ in range(5)))
        assert engine.rows == [5]


async def test_idle_costs_nothing() -> None:
    async with running(Engine()) as dispatcher:
        await submit(dispatcher).future
        before = time.process_time()
        await asyncio.sleep(0.09)
        assert time.process_time() - before < 0.02
