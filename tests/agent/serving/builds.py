"""Tiny models and installed builds for tests: seeded weights, real ONNX files, real manifests."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from wire.codec import encode
from wire.manifest import Figures, File, Limits, Manifest, Target, Tensor, build_id

FEATURES, CLASSES = 8, 3


def weights(seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(FEATURES, CLASSES)).astype(np.float32)


def make_model(file: Path, seed: int = 1, rows: int | str = "rows", work: int = 0) -> Path:
    """image [rows, 8] -> scores = image @ weights, and label = argmax. ``work``: size of extra matrix products."""
    nodes = [helper.make_node("MatMul", ["image", "weights"], ["scores"])]
    tensors = [numpy_helper.from_array(weights(seed), "weights")]
    if work:
        # a chain of products that ends in zeros, added to the scores: time without another answer
        big = np.random.default_rng(0).normal(size=(work, work)).astype(np.float32) / work
        tensors += [numpy_helper.from_array(big, "big"), numpy_helper.from_array(np.zeros((1,), np.float32), "zero")]
        nodes = [helper.make_node("MatMul", ["image", "weights"], ["plain"])]
        last = "big"
        for step in range(8):
            nodes.append(helper.make_node("MatMul", [last, "noisy" if step else "big"], [f"product{step}"]))
            last = f"product{step}"
        nodes.insert(0, helper.make_node("ReduceMean", ["image"], ["mean"], keepdims=0))
        nodes.insert(1, helper.make_node("Add", ["big", "mean"], ["noisy"]))
        nodes.append(helper.make_node("ReduceMean", [last], ["scalar"], keepdims=0))
        nodes.append(helper.make_node("Mul", ["scalar", "zero"], ["nothing"]))
        nodes.append(helper.make_node("Add", ["plain", "nothing"], ["scores"]))
    nodes.append(helper.make_node("ArgMax", ["scores"], ["label"], axis=1, keepdims=0))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [rows, FEATURES])],
        [
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, [rows, CLASSES]),
            helper.make_tensor_value_info("label", TensorProto.INT64, [rows]),
        ],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    file.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, file)
    return file


def make_build(
    directory: Path,
    *,
    model: str = "tiny",
    version: int = 1,
    seed: int = 1,
    wrong: float = 0.0,
    work: int = 0,
    rows: int | str = "rows",
    max_p95_ms: float = 1000.0,
    max_memory_bytes: int = 1024**3,
    model_bytes: bytes | None = None,
) -> str:
    """Install a build in ``directory`` and return its id. ``wrong`` is added to the golden outputs."""
    directory.mkdir(parents=True, exist_ok=True)
    if model_bytes is None:
        make_model(directory / "model.onnx", seed, rows, work)
    else:
        (directory / "model.onnx").write_bytes(model_bytes)
    image = np.random.default_rng(7).normal(size=(4 if rows == "rows" else int(rows), FEATURES)).astype(np.float32)
    scores = image @ weights(seed)
    np.savez(
        directory / "golden.npz",
        input_image=image,
        output_scores=scores + np.float32(wrong),
        output_label=scores.argmax(axis=1),
    )
    open_rows = -1 if rows == "rows" else int(rows)
    manifest = Manifest(
        tenant="default",
        model=model,
        model_version=version,
        precision="fp32",
        target=Target(profile="any", arch=[], runtime="onnxruntime", min_runtime="1.23"),
        files=[_file(directory / "model.onnx", "model"), _file(directory / "golden.npz", "golden")],
        inputs=[Tensor(name="image", datatype="FP32", shape=[open_rows, FEATURES])],
        outputs=[
            Tensor(name="scores", datatype="FP32", shape=[open_rows, CLASSES]),
            Tensor(name="label", datatype="INT64", shape=[open_rows]),
        ],
        figures=Figures(
            accuracy=None,
            accuracy_low=None,
            accuracy_high=None,
            samples=0,
            p50_ms=0.1,
            p95_ms=0.2,
            p50_ms_batch8=None,
            peak_memory_bytes=1,
            size_bytes=1,
            measured_on="a test",
        ),
        limits=Limits(max_p95_ms=max_p95_ms, max_memory_bytes=max_memory_bytes, tolerance=1e-4),
        reasons=["made for a test"],
        created=1.0 + seed + version,
    )
    payload = encode(manifest)
    (directory / "manifest.json").write_bytes(payload)
    return build_id(payload)


def request(rows: int = 1, **more: object) -> dict[str, object]:
    """Return a V2 request of ``rows`` rows for the tiny model."""
    image = np.arange(rows * FEATURES, dtype=np.float32).reshape(rows, FEATURES) / 10
    tensor = {"name": "image", "shape": [rows, FEATURES], "datatype": "FP32", "data": image.reshape(-1).tolist()}
    return {"inputs": [tensor], **more}


def answer(rows: int = 1, seed: int = 1) -> list[float]:
    """Return the scores that belong to ``request(rows)``."""
    image = np.arange(rows * FEATURES, dtype=np.float32).reshape(rows, FEATURES) / 10
    return (image @ weights(seed)).reshape(-1).tolist()


def _file(path: Path, role: str) -> File:
    data = path.read_bytes()
    return File(path=path.name, size=len(data), sha256=hashlib.sha256(data).hexdigest(), role=role)


def as_json(value: object) -> bytes:
    return msgspec.json.encode(value)
