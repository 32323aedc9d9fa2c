import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agent import durable
from agent.errors import AgentError, DeviceError, ServingError
from agent.serving.active import ActiveFile, Place
from agent.serving.dispatch import now
from agent.serving.infer import read_request
from agent.serving.models import PROBE_RUNS, Models
from agent.serving.refusal import RefusedError
from tests.agent.serving.builds import answer, make_build, request


@asynccontextmanager
async def models_of(
    memory: ActiveFile | None = None, on_change: Callable[[], None] = lambda: None
) -> AsyncIterator[Models]:
    models = Models(memory, on_change)
    try:
        yield models
    finally:
        await models.close()


async def ask(models: Models, model: str = "tiny") -> list[float]:
    loaded = models.active(model)
    assert loaded is not None
    job = loaded.submit(read_request(request(), loaded.signature), now() + 10)
    return (await job.future)["scores"].reshape(-1).tolist()


async def test_load_beside_activate_switch_unload(tmp_path: Path) -> None:
    changes: list[int] = []
    async with models_of(on_change=lambda: changes.append(1)) as models:
        old = make_build(tmp_path / "old", seed=1, version=1)
        new = make_build(tmp_path / "new", seed=2, version=2)
        loaded = await models.load("tiny", old, str(tmp_path / "old"))
        assert (loaded.state, loaded.version) == ("loaded", "1")
        assert models.active("tiny") is None
        assert (await models.activate("tiny", old)).state == "active"
        assert await ask(models) == pytest.approx(answer(seed=1), abs=1e-5)
        await models.load("tiny", new, str(tmp_path / "new"))
        assert await ask(models) == pytest.approx(answer(seed=1), abs=1e-5)
        await models.activate("tiny", new)
        assert await ask(models) == pytest.approx(answer(seed=2), abs=1e-5)
        with pytest.raises(RefusedError, match="is active"):
            await models.unload("tiny", new)
        await models.unload("tiny", old)
        await models.unload("tiny", old)
        assert [build.build for build in models.describe()] == [new]
        assert [model.build for model in models.served()] == [new]
        assert len(changes) == 2


async def test_everything_may_be_asked_twice(tmp_path: Path) -> None:
    async with models_of() as models:
        build = make_build(tmp_path)
        first = await models.load("tiny", build, str(tmp_path))
        assert await models.load("tiny", build, str(tmp_path)) == first
        await models.activate("tiny", build)
        await models.activate("tiny", build)
        await models.remove("tiny")
        await models.remove("tiny")
        assert models.describe() == []


async def test_no_request_is_lost_at_a_switch(tmp_path: Path) -> None:
    async with models_of() as models:
        builds = [make_build(tmp_path / str(seed), seed=seed) for seed in (1, 2)]
        for seed, build in zip((1, 2), builds, strict=True):
            await models.load("tiny", build, str(tmp_path / str(seed)))
        await models.activate("tiny", builds[0])
        stop = asyncio.Event()
        answers: list[list[float]] = []

        async def client() -> None:
            while not stop.is_set():
                answers.append(await ask(models))

        clients = [asyncio.create_task(client()) for _ in range(8)]
        for turn in range(6):
            await models.activate("tiny", builds[turn % 2])
            await asyncio.sleep(0.01)
        await models.unload("tiny", builds[0])
        stop.set()
        await asyncio.gather(*clients)
        right = [pytest.approx(answer(seed=seed), abs=1e-5) for seed in (1, 2)]
        assert all(any(found == one for one in right) for found in answers)
        assert answers[-1] == right[1]


async def test_probe_passes_and_fails_by_the_golden_outputs(tmp_path: Path) -> None:
    async with models_of() as models:
        good = make_build(tmp_path / "good")
        bad = make_build(tmp_path / "bad", wrong=0.5)
        for build, name in ((good, "good"), (bad, "bad")):
            await models.load("tiny", build, str(tmp_path / name))
        found = await models.probe("tiny", good)
        assert (found.passed, found.runs) == (True, PROBE_RUNS)
        assert 0 < found.p50_ms <= found.p95_ms
        found = await models.probe("tiny", bad)
        assert not found.passed
        assert found.difference == pytest.approx(0.5, abs=1e-3)
        counts = {build.build: (build.requests, build.probes) for build in models.describe()}
        assert counts == {good: (0, PROBE_RUNS), bad: (0, 1)}
        with pytest.raises(RefusedError, match="not loaded"):
            await models.probe("tiny", "b-none")


async def test_a_bad_build_leaves_what_is_served(tmp_path: Path) -> None:
    async with models_of() as models:
        build = make_build(tmp_path / "good")
        await models.load("tiny", build, str(tmp_path / "good"))
        await models.activate("tiny", build)
        broken = make_build(tmp_path / "broken", model_bytes=b"not a model")
        with pytest.raises(ServingError, match="ONNX Runtime refuses"):
            await models.load("tiny", broken, str(tmp_path / "broken"))
        other = make_build(tmp_path / "other", model="other")
        with pytest.raises(RefusedError, match="not of 'tiny'"):
            await models.load("tiny", other, str(tmp_path / "other"))
        with pytest.raises(DeviceError):
            await models.load("tiny", other, str(tmp_path / "nothing"))
        assert await ask(models) == pytest.approx(answer(), abs=1e-5)
        assert len(models.describe()) == 1


async def test_a_new_process_serves_what_was_active(tmp_path: Path) -> None:
    build = make_build(tmp_path / "build")
    async with models_of(ActiveFile(tmp_path / "data")) as models:
        await models.load("tiny", build, str(tmp_path / "build"))
        await models.activate("tiny", build)
    async with models_of(ActiveFile(tmp_path / "data")) as models:
        await models.restore()
        assert await ask(models) == pytest.approx(answer(), abs=1e-5)
        await models.remove("tiny")
    async with models_of(ActiveFile(tmp_path / "data")) as models:
        await models.restore()
        assert models.names() == []


async def test_restore_serves_the_rest_when_one_is_gone(tmp_path: Path) -> None:
    memory = ActiveFile(tmp_path / "data")
    build = make_build(tmp_path / "build")
    memory.write({"gone": Place("b-gone", str(tmp_path / "gone")), "tiny": Place(build, str(tmp_path / "build"))})
    async with models_of(memory) as models:
        await models.restore()
        assert models.names() == ["tiny"]
        assert not (tmp_path / "data/attempt.json").exists()


async def test_a_full_disk_keeps_nothing_from_being_served_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = ActiveFile(tmp_path / "data")
    build = make_build(tmp_path / "build")
    memory.write({"tiny": Place(build, str(tmp_path / "build"))})

    def full(*_: object, **__: object) -> None:
        raise DeviceError("the disk is full", "disk_full")

    monkeypatch.setattr(durable, "write_atomic", full)
    monkeypatch.setattr(durable, "remove", full)
    async with models_of(memory) as models:
        await models.restore()
        assert await ask(models) == pytest.approx(answer(), abs=1e-5)


async def test_a_switch_that_cannot_be_written_does_not_happen(tmp_path: Path) -> None:
    class FullDisk(ActiveFile):
        def write(self, active: dict[str, Place]) -> None:
            raise DeviceError("the disk is full", "disk_full")

    async with models_of(FullDisk(tmp_path)) as models:
        build = make_build(tmp_path / "build")
        await models.load("tiny", build, str(tmp_path / "build"))
        with pytest.raises(AgentError, match="disk is full"):
            await models.activate("tiny", build)
        assert models.active("tiny") is None
        assert models.describe()[0].state == "loaded"


async def test_drain_refuses_and_reports_not_ready(tmp_path: Path) -> None:
    async with models_of() as models:
        build = make_build(tmp_path)
        await models.load("tiny", build, str(tmp_path))
        await models.activate("tiny", build)
        await models.drain()
        assert [model.ready for model in models.served()] == [False]
        with pytest.raises(RefusedError):
            await ask(models)
