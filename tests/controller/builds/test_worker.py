"""A real builder against a real server: from an uploaded model to a signed build."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from controller.builds import benchmark, store, worker
from controller.builds.sign import builder_key
from controller.database.tables import build_jobs
from controller.errors import InvalidError, UnavailableError
from controller.local.sample import Sample
from controller.trust.repository import vouched
from wire.envelope import MANIFEST, decode_public_key, open_envelope
from wire.manifest import build_id, parse_manifest

if TYPE_CHECKING:
    from tests.controller.builds.conftest import Served


@pytest.fixture(autouse=True)
def _short_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "SECONDS", 0.0)


@asynccontextmanager
async def building(served: Served, token: str | None = None) -> AsyncIterator[asyncio.Event]:
    stop = asyncio.Event()
    task = asyncio.create_task(
        worker.run_builder(
            api_url=served.url,
            ca_file=served.ca_file,
            token=token or served.site.tokens["builder"],
            data=served.site.data,
            stop=stop,
        )
    )
    try:
        yield stop
    finally:
        stop.set()
        async with asyncio.timeout(10):
            await task


async def order(served: Served, source: bytes, data: bytes, **target: Any) -> str:
    body = {
        "source_sha256": await served.site.upload(source),
        "data_sha256": await served.site.upload(data),
        "targets": [{"profile": "generic-x86_64", "arch": "x86_64", "optimization": "balanced"} | target],
    }
    async with served.site.client() as client:
        answer = await client.post("/api/v1/models/digits/versions", json=body)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["jobs"][0])


async def job_when(
    served: Served, job: str, condition: Callable[[dict[str, Any]], bool], seconds: float = 60
) -> dict[str, Any]:
    async with asyncio.timeout(seconds), served.site.client() as client:
        while True:
            found: dict[str, Any] = (await client.get(f"/api/v1/build-jobs/{job}")).json()
            if condition(found):
                return found
            await asyncio.sleep(0.02)


async def test_a_model_becomes_a_signed_build_that_a_device_would_take(served: Served, sample: Sample) -> None:
    job = await order(served, sample.model.read_bytes(), sample.data.read_bytes())
    async with building(served):
        ended = await job_when(served, job, lambda row: row["state"] in ("done", "failed"))
    assert ended["state"] == "done", ended["error"]
    async with served.site.client("viewer") as client:
        rows = (await client.get("/api/v1/builds", params={"model": "digits", "version": 1})).json()["builds"]
        assert {row["precision"] for row in rows} == {"fp32", "int8"}
        published = next(row for row in rows if row["verdict"] == "published")
        envelope = (await client.get(f"/api/v1/artifacts/{published['manifest_sha256']}")).content
        assert len(envelope) == published["manifest_size"]
        key = builder_key(served.site.data)
        payload = open_envelope(envelope, MANIFEST, {key.id: decode_public_key(key.public)})
        manifest = parse_manifest(payload)
        assert published["id"] == build_id(payload)
        path = f"builds/generic-x86_64/digits/{published['id']}.json"
        with served.site.database.read() as connection:
            entry = vouched(connection, "acme", path)
        assert entry is not None
        assert (entry.hashes, entry.length) == ({"sha256": published["manifest_sha256"]}, len(envelope))
        assert entry.custom is not None
        assert (entry.custom["version"], entry.custom["precision"]) == (1, published["precision"])
        golden = next(file for file in manifest.files if file.role == "golden")
        content = (await client.get(f"/api/v1/artifacts/{golden.sha256}")).content
    assert (manifest.tenant, manifest.model, manifest.model_version) == ("acme", "digits", 1)
    assert manifest.inputs[0].name == "image"
    assert manifest.inputs[0].shape == [-1, 1, 8, 8]
    assert manifest.figures.accuracy is not None
    assert manifest.figures.accuracy >= 0.98
    assert published["reasons"] == manifest.reasons
    file = served.site.data / "golden.npz"
    file.write_bytes(content)
    with np.load(file, allow_pickle=False) as arrays:
        assert arrays["input_image"].shape == (16, 1, 8, 8)
        assert arrays["output_scores"].shape == (16, 10)
    assert not list((served.site.data / "builder" / "work").iterdir())


async def test_a_hostile_model_fails_its_job_for_good_and_the_builder_goes_on(served: Served, sample: Sample) -> None:
    bad = await order(served, b"this is no model", sample.data.read_bytes())
    good = await order(served, sample.model.read_bytes(), sample.data.read_bytes(), optimization="none")
    async with building(served):
        ended = await job_when(served, bad, lambda row: row["state"] == "failed")
        assert "not an ONNX model" in ended["error"]
        assert ended["attempt"] == 1
        assert (await job_when(served, good, lambda row: row["state"] == "done"))["attempt"] == 1
    async with served.site.client() as client:
        rows = (await client.get("/api/v1/builds", params={"job": good})).json()["builds"]
    assert [(row["precision"], row["verdict"]) for row in rows] == [("fp32", "published")]
    assert any("INT8 was not tried" in reason for reason in rows[0]["reasons"])


async def test_stopping_gives_the_job_back(served: Served, sample: Sample) -> None:
    job = await order(served, sample.model.read_bytes(), sample.data.read_bytes())
    async with building(served) as stop:
        await job_when(served, job, lambda row: row["progress"].startswith("measuring"))
        stop.set()
        began = time.monotonic()
    assert time.monotonic() - began < 5
    ended = await job_when(served, job, lambda row: row["state"] == "waiting")
    assert ended["error"] == "the builder was stopped"


async def test_stopping_as_often_as_one_likes_fails_no_job(served: Served, sample: Sample) -> None:
    job = await order(served, sample.model.read_bytes(), sample.data.read_bytes(), optimization="none")
    for attempt in range(1, store.MAX_ATTEMPTS + 2):
        async with building(served):
            await job_when(served, job, lambda row, n=attempt: (row["state"], row["attempt"]) == ("running", n))
        assert (await job_when(served, job, lambda row: row["state"] != "running"))["state"] == "waiting"
    async with building(served):
        assert (await job_when(served, job, lambda row: row["state"] == "done"))["error"] == ""


async def test_a_job_that_another_attempt_holds_is_dropped(
    served: Served, sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, dropped = asyncio.Event(), asyncio.Event()

    async def slow(*_: Any, **__: Any) -> None:
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            dropped.set()

    monkeypatch.setattr(worker, "make", slow)
    monkeypatch.setattr(worker, "SIGNS_OF_LIFE", 600)  # every tenth of a second
    job = await order(served, sample.model.read_bytes(), sample.data.read_bytes())
    async with building(served):
        async with asyncio.timeout(30):
            await begun.wait()
        with served.site.database.begin() as connection:
            connection.execute(build_jobs.update().values(attempt=2, lease_until=time.time() + 600))
        async with asyncio.timeout(10):
            await dropped.wait()
    with served.site.database.read() as connection:
        row = store.job(connection, "acme", job)
    assert row is not None
    assert (row.state, row.attempt, row.error) == ("running", 2, "")


async def test_it_waits_while_the_controller_is_away(served: Served, sample: Sample) -> None:
    job = await order(served, sample.model.read_bytes(), sample.data.read_bytes(), optimization="none")
    asked = asyncio.Event()

    class Busy:
        def read(self) -> None:
            asked.set()
            raise UnavailableError("the database is busy", "database_busy")

    state = served.site.app.state
    kept, state.database = state.database, Busy()
    async with building(served):
        async with asyncio.timeout(10):
            await asked.wait()
        state.database = kept
        assert (await job_when(served, job, lambda row: row["state"] == "done"))["state"] == "done"


async def test_it_speaks_tls_only_and_to_the_right_ca_only(served: Served, tmp_path: Path) -> None:
    stop = asyncio.Event()
    with pytest.raises(InvalidError, match="HTTPS only"):
        await worker.run_builder(
            api_url="http://127.0.0.1:1", ca_file=served.ca_file, token="t", data=tmp_path, stop=stop
        )
    with pytest.raises(InvalidError, match="CA file"):
        await worker.run_builder(api_url=served.url, ca_file=tmp_path / "none.pem", token="t", data=tmp_path, stop=stop)
