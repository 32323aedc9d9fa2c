import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from onnx import TensorProto, helper

from agent.errors import DeviceError, UsageError
from agent.serving import repository as serving_repository
from agent.serving.models import Models
from agent.serving.repository import Repository, names_in, read_entry
from agent.serving.server import Server
from tests.agent.serving.builds import answer, as_json, make_model, request


@pytest.fixture
async def models() -> AsyncIterator[Models]:
    made = Models()
    yield made
    await made.close()


def client(models: Models, repository: Repository) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(Server(models, repository.routes))  # type: ignore[arg-type]
    return httpx.AsyncClient(transport=transport, base_url="http://device")


async def test_serves_the_highest_version_of_each(tmp_path: Path, models: Models) -> None:
    for version, seed in (("1", 1), ("10", 2), ("9", 3)):
        make_model(tmp_path / "tiny" / version / "model.onnx", seed)
    make_model(tmp_path / "Other.Model" / "1" / "model.onnx")
    for name in ("tiny/latest", "tiny/011", ".hidden/1", "empty"):
        (tmp_path / name).mkdir(parents=True)
    repository = Repository(tmp_path, models)
    await repository.begin()
    assert models.names() == ["Other.Model", "tiny"]
    async with client(models, repository) as http:
        reply = (await http.post("/v2/models/tiny/infer", content=as_json(request()))).json()
        assert reply["model_version"] == "10"
        assert reply["outputs"][0]["data"] == pytest.approx(answer(seed=2), abs=1e-5)


async def test_a_bad_model_is_listed_with_its_reason_while_others_serve(tmp_path: Path, models: Models) -> None:
    make_model(tmp_path / "good/1/model.onnx")
    (tmp_path / "bad/1").mkdir(parents=True)
    (tmp_path / "bad/1/model.onnx").write_bytes(b"no model")
    make_model(tmp_path / "misspelt/1/model.onnx")
    (tmp_path / "misspelt/config.toml").write_text("max_batch = 3")
    repository = Repository(tmp_path, models)
    await repository.begin()
    async with client(models, repository) as http:
        index = {entry["name"]: entry for entry in (await http.post("/v2/repository/index")).json()}
        assert {name: entry["state"] for name, entry in index.items()} == {
            "bad": "UNAVAILABLE",
            "good": "READY",
            "misspelt": "UNAVAILABLE",
        }
        assert "ONNX Runtime refuses" in index["bad"]["reason"]
        assert "max_batch" in index["misspelt"]["reason"]


def greedy(file: Path) -> None:
    """A model of a few hundred bytes that wants 8 GB."""
    shape = helper.make_tensor("shape", TensorProto.INT64, [1], [2_000_000_000])
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["huge"]),
        helper.make_node("ReduceSum", ["huge"], ["sum"], keepdims=0),
        helper.make_node("Add", ["x", "sum"], ["y"]),
    ]
    _save(file, nodes, [shape])


def endless(file: Path) -> None:
    """A model that counts to 2^62."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["going"], ["go"]), helper.make_node("Add", ["held", "held"], ["next"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("held", TensorProto.FLOAT, [None, 4]),
        ],
        [
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, [None, 4]),
        ],
    )
    count = helper.make_tensor("count", TensorProto.INT64, [], [2**62])
    _save(file, [helper.make_node("Loop", ["count", "", "x"], ["y"], body=body)], [count])


def _save(file: Path, nodes: list[Any], constants: list[Any]) -> None:
    sides = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 4]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "hostile", [sides[0]], [sides[1]], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    file.parent.mkdir(parents=True)
    file.write_bytes(model.SerializeToString())


@pytest.mark.parametrize(("make", "reason"), [(greedy, "memory"), (endless, "no verdict within 3 s")])
async def test_a_hostile_file_takes_down_its_own_child_only(
    tmp_path: Path, models: Models, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None], reason: str
) -> None:
    monkeypatch.setattr(serving_repository, "TRIAL_SECONDS", 3.0)
    make_model(tmp_path / "good/1/model.onnx")
    make(tmp_path / "hostile/1/model.onnx")
    repository = Repository(tmp_path, models)
    await repository.begin()
    assert models.names() == ["good"]
    async with client(models, repository) as http:
        index = {entry["name"]: entry for entry in (await http.post("/v2/repository/index")).json()}
    assert reason in index["hostile"]["reason"].lower()


async def test_load_switches_to_a_new_version_and_keeps_the_old_when_it_is_bad(tmp_path: Path, models: Models) -> None:
    make_model(tmp_path / "tiny/1/model.onnx", 1)
    repository = Repository(tmp_path, models)
    await repository.begin()
    async with client(models, repository) as http:
        (tmp_path / "tiny/2").mkdir()
        (tmp_path / "tiny/2/model.onnx").write_bytes(b"no model")
        reply = await http.post("/v2/repository/models/tiny/load")
        assert reply.status_code == 422
        entry = (await http.post("/v2/repository/index")).json()[0]
        assert (entry["version"], entry["state"]) == ("1", "READY")
        assert "the last load failed" in entry["reason"]
        make_model(tmp_path / "tiny/2/model.onnx", 2)
        tasks = [asyncio.create_task(http.post("/infer", content=as_json(request()))) for _ in range(20)]
        assert (await http.post("/v2/repository/models/tiny/load")).status_code == 200
        assert {reply.status_code for reply in await asyncio.gather(*tasks)} == {200}
        assert (await http.post("/infer", content=as_json(request()))).json()["model_version"] == "2"
        assert len(models.describe()) == 1


async def test_unload_and_unknown_names(tmp_path: Path, models: Models) -> None:
    make_model(tmp_path / "tiny/1/model.onnx")
    repository = Repository(tmp_path, models)
    await repository.begin()
    async with client(models, repository) as http:
        assert (await http.post("/v2/repository/models/tiny/unload")).status_code == 200
        assert models.names() == []
        assert (await http.post("/v2/repository/index")).json()[0]["reason"] == "unloaded"
        assert (await http.post("/v2/repository/models/tiny/load")).status_code == 200
        for verb in ("load", "unload"):
            assert (await http.post(f"/v2/repository/models/none/{verb}")).status_code == 404


async def test_nothing_to_serve_says_what_to_do(tmp_path: Path, models: Models) -> None:
    with pytest.raises(DeviceError, match="give a directory of models"):
        await Repository(tmp_path / "missing", models).begin()
    with pytest.raises(DeviceError, match=r"put one at .*/NAME/1/model\.onnx"):
        await Repository(tmp_path, models).begin()
    (tmp_path / "bad/1").mkdir(parents=True)
    (tmp_path / "bad/1/model.onnx").write_bytes(b"no model")
    with pytest.raises(DeviceError, match="can be served: bad: ONNX Runtime refuses"):
        await Repository(tmp_path, models).begin()


def test_config_is_read_and_checked(tmp_path: Path) -> None:
    make_model(tmp_path / "tiny/1/model.onnx")
    config = tmp_path / "tiny/config.toml"
    assert read_entry(tmp_path, "tiny", 1).max_batch is None
    config.write_text("max_batch_size = 4\nmax_queue_delay_ms = 2.5\nthreads = 2\n")
    build = read_entry(tmp_path, "tiny", 1)
    assert (build.max_batch, build.max_delay, build.threads) == (4, 0.0025, 2)
    for text in ("max_batch_size = 0", "threads = 'two'", "= 3", "unknown = 1"):
        config.write_text(text)
        with pytest.raises(UsageError, match=r"config\.toml"):
            read_entry(tmp_path, "tiny", 1)
    assert names_in(tmp_path) == ["tiny"]
