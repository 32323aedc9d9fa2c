"""Artifacts, models, builds and jobs over HTTP, on a real database."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import time
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from controller.audit.store import page
from controller.builds import store
from controller.builds.sign import builder_key
from controller.database.tables import build_jobs
from wire.manifest import Figures, File, Limits, Manifest, Target, Tensor

if TYPE_CHECKING:
    import httpx

    from tests.controller.builds.conftest import Site

CONTENT = random.Random(3).randbytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
ADDRESS = f"/api/v1/artifacts/{SHA256}"
TARGET = {"profile": "generic-x86_64", "arch": "x86_64", "optimization": "balanced"}


def actions(site: Site) -> list[str]:
    with site.database.read() as connection:
        return [row.action for row in page(connection, "acme", None, 100)][::-1]


async def test_an_artifact_is_stored_once_and_read_whole_or_in_ranges(site: Site) -> None:
    async with site.client() as client:
        assert (await client.head(ADDRESS)).status_code == 404
        first = await client.put(ADDRESS, content=CONTENT)
        assert (first.status_code, first.json()) == (201, {"sha256": SHA256, "size": len(CONTENT)})
        assert (await client.put(ADDRESS, content=CONTENT)).status_code == 200
        whole = await client.get(ADDRESS)
        assert whole.content == CONTENT
        etag = whole.headers["etag"]
        assert etag == f'"{SHA256}"'
        head = await client.head(ADDRESS)
        assert (head.status_code, head.headers["content-length"], head.content) == (200, str(len(CONTENT)), b"")
        part = await client.get(ADDRESS, headers={"Range": "bytes=100000-", "If-Range": etag})
        assert (part.status_code, part.content) == (206, CONTENT[100_000:])
        assert part.headers["content-range"] == f"bytes 100000-{len(CONTENT) - 1}/{len(CONTENT)}"
        middle = await client.get(ADDRESS, headers={"Range": "bytes=5-9"})
        assert (middle.status_code, middle.content) == (206, CONTENT[5:10])
        other = await client.get(ADDRESS, headers={"Range": "bytes=5-9", "If-Range": '"another"'})
        assert (other.status_code, len(other.content)) == (200, len(CONTENT))
        assert (await client.get(ADDRESS, headers={"Range": f"bytes={len(CONTENT)}-"})).status_code == 416
    assert actions(site) == ["artifacts.create"]


async def test_an_artifact_is_seen_by_the_tenant_that_uploaded_it(site: Site) -> None:
    await site.upload(CONTENT)
    async with site.client("other") as client:
        assert (await client.get(ADDRESS)).status_code == 404
        assert (await client.head(ADDRESS)).status_code == 404
        assert (await client.put(ADDRESS, content=CONTENT)).status_code == 201
        assert (await client.get(ADDRESS)).content == CONTENT


@pytest.mark.parametrize(
    ("address", "content", "status", "code"),
    [
        (f"/api/v1/artifacts/{'0' * 64}", b"bytes", 400, "hash_mismatch"),
        (f"/api/v1/artifacts/{'0' * 64}", bytes(4 * 1024**2 + 1), 413, "too_large"),
        ("/api/v1/artifacts/short", b"bytes", 400, "bad_request"),
        (f"/api/v1/artifacts/{'A' * 64}", b"bytes", 400, "bad_request"),
        (f"/api/v1/artifacts/{hashlib.sha256(b'').hexdigest()}", b"", 400, "empty"),
    ],
)
async def test_bad_uploads(site: Site, address: str, content: bytes, status: int, code: str) -> None:
    async with site.client() as client:
        answer = await client.put(address, content=content)
        assert (answer.status_code, answer.json()["code"]) == (status, code)
        assert (await client.get(address)).status_code in (400, 404)


async def test_an_upload_that_does_not_tell_its_size_is_stopped_as_well(site: Site) -> None:
    async def parts() -> Any:
        for _ in range(5):
            yield bytes(1024**2)

    async with site.client() as client:
        answer = await client.put(f"/api/v1/artifacts/{'0' * 64}", content=parts())
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")


async def test_who_cannot_hash_sends_bytes_and_is_told_their_name(site: Site) -> None:
    async with site.client() as client:
        answer = await client.post("/api/v1/artifacts", content=CONTENT)
        assert (answer.status_code, answer.json()) == (201, {"sha256": SHA256, "size": len(CONTENT)})
        assert (await client.get(ADDRESS)).content == CONTENT
        for content, status, code in ((b"", 400, "empty"), (bytes(4 * 1024**2 + 1), 413, "too_large")):
            refused = await client.post("/api/v1/artifacts", content=content)
            assert (refused.status_code, refused.json()["code"]) == (status, code)
    async with site.client("viewer") as client:
        assert (await client.post("/api/v1/artifacts", content=b"x")).status_code == 403


async def test_a_full_disk_answers_503_and_says_what_to_do(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    async with site.client() as client:
        answer = await client.put(ADDRESS, content=CONTENT)
        assert (answer.status_code, answer.json()["code"]) == (503, "disk_full")
        assert "make room" in answer.json()["error"]
        monkeypatch.undo()
        assert (await client.head(ADDRESS)).status_code == 404
        assert (await client.put(ADDRESS, content=CONTENT)).status_code == 201


@pytest.mark.parametrize(
    ("role", "method", "address", "status"),
    [
        ("viewer", "PUT", ADDRESS, 403),
        ("viewer", "POST", "/api/v1/models/digits/versions", 403),
        ("gateway", "GET", ADDRESS, 403),
        ("operator", "POST", "/api/v1/build-jobs/lease", 403),
        ("builder", "POST", "/api/v1/models/digits/versions", 403),
        ("builder", "POST", "/api/v1/build-jobs/lease", 200),
        ("viewer", "GET", "/api/v1/builds", 200),
        ("viewer", "GET", "/api/v1/models", 200),
    ],
)
async def test_roles(site: Site, role: str, method: str, address: str, status: int) -> None:
    async with site.client(role) as client:
        body = {"source_sha256": SHA256, "data_sha256": SHA256, "targets": [TARGET]}
        answer = await client.request(method, address, json=body if method == "POST" else None)
    assert answer.status_code == status, answer.text


async def version(site: Site, client: httpx.AsyncClient, *targets: dict[str, Any]) -> dict[str, Any]:
    body = {
        "source_sha256": await site.upload(b"model"),
        "data_sha256": await site.upload(b"data"),
        "targets": list(targets or [TARGET]),
    }
    answer = await client.post("/api/v1/models/digits/versions", json=body)
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_versions_count_up_and_each_target_is_a_job(site: Site) -> None:
    async with site.client() as client:
        first = await version(site, client)
        second = await version(site, client, TARGET, {"profile": "raspberry-pi-5", "arch": ["aarch64", "armv7l"]})
        assert (first["version"], second["version"], len(second["jobs"])) == (1, 2, 2)
        listed = (await client.get("/api/v1/models")).json()["models"]
        assert [(row["name"], row["versions"]) for row in listed] == [("digits", 2)]
        shown = (await client.get("/api/v1/models/digits")).json()
        assert [row["version"] for row in shown["versions"]] == [2, 1]
        assert sorted(shown["versions"][0]["jobs"]) == sorted(second["jobs"])
        jobs = [(await client.get(f"/api/v1/build-jobs/{job}")).json() for job in second["jobs"]]
        assert jobs[0]["state"] == "waiting"
        assert [job["target"] for job in jobs] == [
            {"profile": "generic-x86_64", "arch": ["x86_64"], "optimization": "balanced"},
            {"profile": "raspberry-pi-5", "arch": ["aarch64", "armv7l"], "optimization": "balanced"},
        ]
    async with site.client("other") as client:
        assert (await client.get("/api/v1/models/digits")).status_code == 404
        assert (await client.get(f"/api/v1/build-jobs/{first['jobs'][0]}")).status_code == 404
        assert (await client.get("/api/v1/models")).json() == {"models": []}


@pytest.mark.parametrize(
    ("name", "changes", "status"),
    [
        ("digits", {"source_sha256": "0" * 64}, 409),
        ("digits", {"targets": []}, 400),
        ("digits", {"targets": [TARGET | {"optimization": "wild"}]}, 400),
        ("digits", {"targets": [TARGET | {"profile": "../x"}]}, 400),
        ("digits", {"more": 1}, 400),
        ("Digits", {}, 400),
        ("digits%0A", {}, 400),
    ],
)
async def test_bad_versions(site: Site, name: str, changes: dict[str, Any], status: int) -> None:
    body: dict[str, Any] = {"source_sha256": await site.upload(b"model"), "data_sha256": await site.upload(b"data")}
    async with site.client() as client:
        answer = await client.post(f"/api/v1/models/{name}/versions", json=body | {"targets": [TARGET]} | changes)
        assert answer.status_code == status, answer.text
        assert (await client.get("/api/v1/models")).json() == {"models": []}


def figures() -> Figures:
    return Figures(
        accuracy=0.99,
        accuracy_low=0.98,
        accuracy_high=1.0,
        samples=450,
        p50_ms=0.02,
        p95_ms=0.03,
        p50_ms_batch8=0.05,
        peak_memory_bytes=10,
        size_bytes=20,
        measured_on="a test",
    )


async def sealed(site: Site, upload_files: bool = True, **changes: Any) -> tuple[str, bytes]:
    """A signed manifest for the job of `version`, and its build's id. Its files are uploaded."""
    files = []
    for role in ("model", "golden"):
        content = f"the {role}".encode()
        if upload_files:
            await site.upload(content, "builder")
        digest = hashlib.sha256(content).hexdigest()
        files.append(File(path=f"{role}.bin", size=len(content), sha256=digest, role=role))
    tensor = [Tensor(name="x", datatype="FP32", shape=[-1, 4])]
    manifest = Manifest(
        tenant="acme",
        model="digits",
        model_version=1,
        precision="int8",
        target=Target(profile="generic-x86_64", arch=["x86_64"], runtime="onnxruntime", min_runtime="1.18"),
        files=files,
        inputs=tensor,
        outputs=tensor,
        figures=figures(),
        limits=Limits(max_p95_ms=1, max_memory_bytes=1, tolerance=1),
        reasons=["it is good"],
        created=1.0,
    )
    made = site.key.seal(msgspec.structs.replace(manifest, **changes))
    return made.build, made.envelope


def candidate(verdict: str, precision: str, manifest_sha256: str | None = None) -> dict[str, Any]:
    return {
        "precision": precision,
        "verdict": verdict,
        "target": {"profile": "generic-x86_64", "arch": ["x86_64"], "runtime": "onnxruntime", "min_runtime": "1.18"},
        "figures": msgspec.to_builtins(figures()),
        "reasons": ["because"],
        "manifest_sha256": manifest_sha256,
    }


async def test_a_result_becomes_builds_and_the_same_again_changes_nothing(site: Site) -> None:
    async with site.client() as client:
        await version(site, client)
    build, envelope = await sealed(site)
    sha256 = await site.upload(envelope, "builder")
    await site.vouch(build, envelope)
    async with site.client("builder") as client:
        job = (await client.post("/api/v1/build-jobs/lease")).json()["job"]
        assert (job["model"], job["version"], job["attempt"], job["tenant"]) == ("digits", 1, 1, "acme")
        assert job["source_sha256"] == hashlib.sha256(b"model").hexdigest()
        assert (await client.post("/api/v1/build-jobs/lease")).json() == {"job": None}
        told = await client.post(
            f"/api/v1/build-jobs/{job['id']}/progress", json={"attempt": 1, "progress": "measuring"}
        )
        assert told.status_code == 200
        body = {"attempt": 1, "candidates": [candidate("refused", "fp32"), candidate("published", "int8", sha256)]}
        answer = await client.post(f"/api/v1/build-jobs/{job['id']}/result", json=body)
        assert answer.status_code == 200, answer.text
        again = await client.post(f"/api/v1/build-jobs/{job['id']}/result", json=body)
        assert (again.status_code, again.json()) == (200, answer.json())
        late = await client.post(f"/api/v1/build-jobs/{job['id']}/result", json={"attempt": 1, "error": "late"})
        assert late.status_code == 409, "a job that is done stays done"
    async with site.client("viewer") as client:
        rows = (await client.get("/api/v1/builds", params={"model": "digits"})).json()["builds"]
        assert {(row["precision"], row["verdict"]) for row in rows} == {("fp32", "refused"), ("int8", "published")}
        shown = (await client.get(f"/api/v1/builds/{build}")).json()
        assert shown["reasons"] == ["it is good"], "of the signed manifest, not of what was posted beside it"
        assert (shown["manifest_sha256"], shown["manifest_size"]) == (sha256, len(envelope))
        assert (await client.get("/api/v1/builds", params={"verdict": "published"})).json()["builds"] == [shown]
        assert (await client.get("/api/v1/builds", params={"version": 2})).json()["builds"] == []
        state = (await client.get(f"/api/v1/build-jobs/{job['id']}")).json()
        assert (state["state"], state["error"]) == ("done", "")
    async with site.client("other") as client:
        assert (await client.get(f"/api/v1/builds/{build}")).status_code == 404
    assert actions(site)[-1] == "build_jobs.finish"
    assert actions(site).count("build_jobs.finish") == 1


@pytest.mark.parametrize(
    ("case", "status", "code"),
    [
        ("stranger", 400, "bad_manifest"),
        ("changed bytes", 400, "bad_manifest"),
        ("other model", 400, "other_job"),
        ("other tenant", 400, "other_job"),
        ("other version", 400, "other_job"),
        ("other profile", 400, "other_job"),
        ("file missing", 409, "no_file"),
        ("manifest missing", 409, "no_manifest"),
        ("not vouched for", 409, "not_vouched"),
        ("nothing published", 400, "bad_result"),
        ("two published", 400, "bad_result"),
    ],
)
async def test_results_that_are_not_believed(site: Site, case: str, status: int, code: str) -> None:
    async with site.client() as client:
        await version(site, client)
    target = Target(profile="other", arch=["x86_64"], runtime="onnxruntime", min_runtime="1.18")
    changes: dict[str, dict[str, Any]] = {
        "other model": {"model": "letters"},
        "other tenant": {"tenant": "other"},
        "other version": {"model_version": 2},
        "other profile": {"target": target},
    }
    if case == "stranger":
        site.key = builder_key(site.data / "stranger")
    _, envelope = await sealed(site, case != "file missing", **changes.get(case, {}))
    if case == "changed bytes":
        fields = msgspec.json.decode(envelope)
        fields["payload"] = fields["payload"].replace("A", "B", 1)
        envelope = msgspec.json.encode(fields)
    sha256 = hashlib.sha256(envelope).hexdigest()
    if case != "manifest missing":
        await site.upload(envelope, "builder")
    published = candidate("published", "int8", sha256)
    candidates = {"nothing published": [candidate("accepted", "fp32")], "two published": [published, published]}
    async with site.client("builder") as client:
        job = (await client.post("/api/v1/build-jobs/lease")).json()["job"]
        body = {"attempt": 1, "candidates": candidates.get(case, [published])}
        answer = await client.post(f"/api/v1/build-jobs/{job['id']}/result", json=body)
        assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
        state = (await client.get(f"/api/v1/build-jobs/{job['id']}")).json()
        assert state["state"] == "running", "nothing of it was taken"
        assert (await client.get("/api/v1/builds")).json() == {"builds": []}


async def test_three_failures_are_for_good_and_each_try_waits_longer(site: Site) -> None:
    async with site.client() as client:
        job = (await version(site, client))["jobs"][0]
    async with site.client("builder") as client:
        waited = []
        for attempt in (1, 2, 3):
            assert (await client.post("/api/v1/build-jobs/lease")).json()["job"]["attempt"] == attempt
            body = {"attempt": attempt, "error": f"try {attempt} failed"}
            answer = (await client.post(f"/api/v1/build-jobs/{job}/result", json=body)).json()
            assert answer["state"] == ("failed" if attempt == 3 else "waiting")
            assert (await client.post("/api/v1/build-jobs/lease")).json() == {"job": None}, "not at once"
            with site.database.begin() as connection:
                row = store.job(connection, "acme", job)
                assert row is not None
                waited.append((row.lease_until or time.time()) - time.time())
                connection.execute(build_jobs.update().where(build_jobs.c.state == "waiting").values(lease_until=0))
        assert waited[0] == pytest.approx(5, abs=1)
        assert waited[1] == pytest.approx(15, abs=1)
        state = (await client.get(f"/api/v1/build-jobs/{job}")).json()
        assert (state["state"], state["error"]) == ("failed", "try 3 failed")


async def test_a_permanent_failure_is_not_tried_again(site: Site) -> None:
    async with site.client() as client:
        job = (await version(site, client))["jobs"][0]
    async with site.client("builder") as client:
        await client.post("/api/v1/build-jobs/lease")
        body = {"attempt": 1, "error": "no ONNX model", "permanent": True}
        assert (await client.post(f"/api/v1/build-jobs/{job}/result", json=body)).json()["state"] == "failed"


async def test_a_silent_builder_loses_its_job_and_cannot_disturb_the_next_attempt(site: Site) -> None:
    async with site.client() as client:
        job = (await version(site, client))["jobs"][0]
    async with site.client("builder") as client:
        for attempt in (1, 2, 3):
            assert (await client.post("/api/v1/build-jobs/lease")).json()["job"]["attempt"] == attempt
            with site.database.begin() as connection:
                connection.execute(build_jobs.update().values(lease_until=time.time() - 1))
        for call, body in (("progress", {"progress": "still here"}), ("result", {"error": "late"})):
            late = await client.post(f"/api/v1/build-jobs/{job}/{call}", json={"attempt": 2} | body)
            assert (late.status_code, late.json()["code"]) == (409, "not_held")
        assert (await client.post("/api/v1/build-jobs/lease")).json() == {"job": None}
        state = (await client.get(f"/api/v1/build-jobs/{job}")).json()
        assert state["state"] == "failed"
        assert "went silent" in state["error"]
    assert actions(site)[-1] == "build_jobs.fail"


async def test_a_builder_of_another_tenant_gets_nothing(site: Site) -> None:
    async with site.client() as client:
        await version(site, client)
    with site.database.begin() as connection:
        assert store.lease(connection, "other", time.time(), 60) is None
        assert store.lease(connection, "acme", time.time(), 60) is not None


async def test_a_job_without_attempts_left_is_not_given_out_even_before_it_is_failed(site: Site) -> None:
    async with site.client() as client:
        await version(site, client)
    with site.database.begin() as connection:
        connection.execute(build_jobs.update().values(state="running", attempt=3, lease_until=time.time() - 1))
        assert store.lease(connection, "acme", time.time(), 60) is None
