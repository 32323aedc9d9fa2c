"""The check and the conversion on hostile and on real models; in the bounded child where an engine would load them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from controller.builds.child import Bounds, StepError, run_child
from controller.builds.convert import onnx as converter
from controller.builds.convert.data import InputRefusedError
from controller.builds.convert.onnx import CheckRequest
from controller.local.sample import Sample

MODULE = "controller.builds.convert.onnx"
BOUNDS = Bounds(30, 2 * 1024**3)


async def check(model: Path, data: Path, bounds: Bounds = BOUNDS) -> dict[str, Any]:
    request = {"model": str(model), "data": str(data), "output": str(model.parent / "fp32.onnx")}
    return dict((await run_child(MODULE, {"check": request}, bounds))["checked"])


async def refusal(model: Path, data: Path) -> str:
    with pytest.raises(StepError) as refused:
        await check(model, data)
    assert refused.value.permanent, refused.value
    assert not (model.parent / "fp32.onnx").exists(), "nothing is written of what was refused"
    return str(refused.value)


async def test_what_is_found_out_about_a_model(write_model: Any, write_data: Any) -> None:
    found = await check(write_model(), write_data())
    assert found == {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 3]}],
        "batch": 0,
        "calibration": 64,
        "heldout": 100,
        "labelled": True,
    }


async def test_a_fixed_batch_size_is_found(write_model: Any, write_data: Any) -> None:
    assert (await check(write_model(rows=2), write_data()))["batch"] == 2
    assert "fewer golden rows" in await refusal_of_second(write_model(rows=17), write_data())


async def refusal_of_second(model: Path, data: Path) -> str:
    (model.parent / "fp32.onnx").unlink()
    return await refusal(model, data)


async def test_the_cleaned_model_tells_nothing_about_its_author(write_model: Any, write_data: Any) -> None:
    def tell(model: onnx.ModelProto) -> None:
        model.doc_string = "made by alice"
        model.graph.doc_string = "/home/alice/train.py"
        model.graph.node[0].doc_string = "/home/alice/train.py:12"
        things = [model, model.graph, model.graph.node[0], model.graph.input[0], model.graph.initializer[0]]
        for thing in things:
            thing.metadata_props.add(key="pkg.torch.onnx.stack_trace", value="/home/alice/train.py:12")
        model.graph.output[0].doc_string = model.graph.initializer[0].doc_string = "by alice"
        model.training_info.add().algorithm.doc_string = "by alice"
        model.ir_version = 12
        weight = model.graph.initializer[0]
        model.graph.input.append(helper.make_tensor_value_info("w", weight.data_type, list(weight.dims)))
        model.graph.value_info.append(helper.make_tensor_value_info("y2", TensorProto.FLOAT, [9]))

    source = write_model(change=tell)
    found = await check(source, write_data())
    cleaned = (source.parent / "fp32.onnx").read_bytes()
    assert b"alice" not in cleaned
    assert [spec["name"] for spec in found["inputs"]] == ["x"], "a weight among the inputs is no input"
    assert onnx.load_model_from_string(cleaned).ir_version == 10


async def test_an_old_opset_is_brought_up(write_model: Any, write_data: Any) -> None:
    source = write_model(opset=9)
    await check(source, write_data())
    assert onnx.load(source.parent / "fp32.onnx").opset_import[0].version == 17


def external(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../etc/passwd")


def external_by_location_only(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL


def external_by_entry_only(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].external_data.add(key="location", value="../secret")


def external_in_attribute(model: onnx.ModelProto) -> None:
    constant = numpy_helper.from_array(np.zeros((4, 3), np.float32), "c")
    constant.ClearField("raw_data")
    constant.external_data.add(key="location", value="../secret")
    model.graph.node.append(helper.make_node("Constant", [], ["unused"], value=constant))


def external_in_function(model: onnx.ModelProto) -> None:
    constant = numpy_helper.from_array(np.zeros((4, 3), np.float32), "c")
    constant.ClearField("raw_data")
    constant.external_data.add(key="location", value="../secret")
    node = helper.make_node("Constant", [], ["y"], value=constant)
    opset = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("", "Mine", ["x"], ["y"], [node], opset))
    model.graph.node.append(helper.make_node("Mine", ["x"], ["unused"]))


def external_in_branch(model: onnx.ModelProto) -> None:
    inner = onnx.ModelProto()
    inner.CopyFrom(model)
    external(inner)
    branch = inner.graph
    model.graph.node.append(helper.make_node("If", ["x"], ["z"], then_branch=branch, else_branch=branch))


def foreign(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "com.evil"
    model.opset_import.add(domain="com.evil", version=1)


def undeclared_foreign(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Python", ["x"], ["z"], domain="ai.onnx.contrib"))


def deep(model: onnx.ModelProto) -> None:
    graph = model.graph
    for _ in range(12):
        node = graph.node.add(op_type="If")
        attribute = node.attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH)
        attribute.g.node.add(op_type="Identity", input=["x"], output=["y"])
        graph = attribute.g


def newest(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 99


def no_opset(model: onnx.ModelProto) -> None:
    del model.opset_import[:]


def odd_name(model: onnx.ModelProto) -> None:
    model.graph.input[0].name = "../x\n"
    model.graph.node[0].input[0] = "../x\n"


def many_nodes(model: onnx.ModelProto) -> None:
    for number in range(50_001):
        model.graph.node.add(op_type="Identity", input=["x"], output=[f"i{number}"])


HOSTILE: list[tuple[Callable[[onnx.ModelProto], None], str]] = [
    (external, "in another file"),
    (external_by_location_only, "in another file"),
    (external_by_entry_only, "in another file"),
    (external_in_attribute, "in another file"),
    (external_in_branch, "in another file"),
    (external_in_function, "functions of its own"),
    (foreign, "com.evil"),
    (undeclared_foreign, "ai.onnx.contrib"),
    (deep, "more than 8 deep"),
    (newest, "opset 99"),
    (no_opset, "opset 0"),
    (odd_name, "input name"),
    (many_nodes, "more than 50000 nodes"),
]


@pytest.mark.parametrize(("change", "words"), HOSTILE, ids=[change.__name__ for change, _ in HOSTILE])
def test_hostile_models_are_refused_before_an_engine_sees_them(
    change: Any, words: str, write_model: Any, write_data: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if change is not odd_name:  # names are read from the loaded model
        monkeypatch.setattr(converter, "open_session", None)
    model = write_model(change=change)
    request = CheckRequest(model=str(model), data=str(write_data()), output=str(model.parent / "fp32.onnx"))
    with pytest.raises(InputRefusedError) as refused:
        converter.check(request)
    assert words in str(refused.value)
    assert not (model.parent / "fp32.onnx").exists()


def test_golden_rows_that_no_device_would_take_are_refused_at_once(
    write_model: Any, write_data: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = write_model(), write_data()
    request = CheckRequest(model=str(model), data=str(data), output=str(model.parent / "fp32.onnx"))
    monkeypatch.setattr(converter, "MAX_GOLDEN", 16 * (4 + 3) * 4)
    converter.check(request)
    monkeypatch.setattr(converter, "MAX_GOLDEN", 16 * (4 + 3) * 4 - 1)
    with pytest.raises(InputRefusedError, match="put fewer rows"):
        converter.check(request)


@pytest.mark.parametrize("content", [b"", b"garbage" * 100, b"\x08\x08" + bytes(10), b"PK\x03\x04"])
async def test_what_is_no_model_is_refused(content: bytes, write_model: Any, write_data: Any) -> None:
    path = write_model()
    path.write_bytes(content)
    assert "ONNX" in await refusal(path, write_data())


async def test_a_truncated_model_is_refused(sample: Sample, tmp_path: Path) -> None:
    path = tmp_path / "source.onnx"
    whole = sample.model.read_bytes()
    for share in (0.5, 0.99):
        path.write_bytes(whole[: int(share * len(whole))])
        await refusal(path, sample.data)


async def test_a_model_that_wants_six_gigabytes_kills_only_its_child(write_model: Any, write_data: Any) -> None:
    shape = numpy_helper.from_array(np.array([1500, 1000, 1000], np.int64), "shape")  # 6 GB of FP32
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["huge"]),
        helper.make_node("ReduceSum", ["huge"], ["sum"], keepdims=0),
        helper.make_node("Add", ["x", "sum"], ["y"]),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 4])]
    model, began = write_model(nodes=nodes, outputs=outputs, constants=[shape]), time.monotonic()
    with pytest.raises(StepError):
        await check(model, write_data(), Bounds(30, 1024**3))
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    ("inputs", "outputs", "words"),
    [
        ([helper.make_tensor_value_info("x", TensorProto.STRING, ["rows", 4])], None, "tensor(string)"),
        ([helper.make_tensor_value_info("x", TensorProto.FLOAT, [])], None, "a single number"),
    ],
)
async def test_inputs_that_no_device_can_serve(
    inputs: Any, outputs: Any, words: str, write_model: Any, write_data: Any
) -> None:
    kind, shape = inputs[0].type.tensor_type.elem_type, [d.dim_param for d in inputs[0].type.tensor_type.shape.dim]
    model = write_model(
        nodes=[helper.make_node("Identity", ["x"], ["y"])],
        inputs=inputs,
        outputs=[helper.make_tensor_value_info("y", kind, shape or [])],
        constants=[],
    )
    assert words in await refusal(model, write_data())


async def test_labels_need_scores(write_model: Any, write_data: Any) -> None:
    data = write_data(heldout_label=np.full(100, 3))
    assert "classes outside of 0 to 2" in await refusal(write_model(), data)


@pytest.mark.parametrize("method", ["minmax", "percentile"])
async def test_int8_is_small_and_close(method: str, sample: Sample, tmp_path: Path) -> None:
    baseline, quantised = tmp_path / "fp32.onnx", tmp_path / "int8.onnx"
    request = {"model": str(sample.model), "data": str(sample.data), "output": str(baseline)}
    await run_child(MODULE, {"check": request}, BOUNDS)
    request = {"model": str(baseline), "data": str(sample.data), "output": str(quantised), "calibration": method}
    await run_child(MODULE, {"quantize": request}, BOUNDS)
    assert quantised.stat().st_size < baseline.stat().st_size / 3
    model = onnx.load(quantised)
    stored = {tensor.data_type for tensor in model.graph.initializer if tensor.name.startswith("weight_1")}
    assert TensorProto.INT8 in stored
    scales = [tensor for tensor in model.graph.initializer if tensor.name.startswith("weight_1_scale")]
    assert [list(tensor.dims) for tensor in scales] == [[32]], "a scale for each of the 32 filters"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fp32.onnx", "int8.onnx"], "no work files are left"
