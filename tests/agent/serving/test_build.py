from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from agent.errors import DeviceError, ServingError
from agent.serving.build import MAX_BATCH, Build, open_build, read_build
from tests.agent.serving.builds import make_build, make_model


def test_an_installed_build_opens(tmp_path: Path) -> None:
    identity = make_build(tmp_path, version=7)
    build = read_build(tmp_path, identity)
    assert (build.model, build.version, build.build) == ("tiny", "7", identity)
    opened = open_build(build)
    assert opened.max_batch == MAX_BATCH
    assert opened.golden is not None
    assert opened.load_ms > 0


def test_another_build_than_asked_for_is_refused(tmp_path: Path) -> None:
    make_build(tmp_path)
    with pytest.raises(ServingError, match="holds build b-"):
        read_build(tmp_path, "b-" + "0" * 32)


def test_one_changed_byte_is_refused(tmp_path: Path) -> None:
    make_build(tmp_path)
    data = bytearray((tmp_path / "model.onnx").read_bytes())
    data[-1] ^= 1
    (tmp_path / "model.onnx").write_bytes(data)
    with pytest.raises(ServingError, match="are not the"):
        read_build(tmp_path)


def test_missing_files_are_the_device_s_fault(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="install the build again"):
        read_build(tmp_path)
    make_build(tmp_path)
    (tmp_path / "golden.npz").unlink()
    with pytest.raises(DeviceError, match="install the build again"):
        read_build(tmp_path)


def test_a_broken_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ServingError, match=r"manifest\.json"):
        read_build(tmp_path)


def test_a_model_with_a_fixed_size_is_never_joined(tmp_path: Path) -> None:
    file = make_model(tmp_path / "m.onnx", rows=2)
    assert open_build(Build(model="m", version="1", build="b", file=file, max_batch=8)).max_batch == 1


def test_rows_that_influence_each_other_are_never_joined(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Softmax", ["x"], ["y"], axis=0)],
        "mixes",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
    )
    file = tmp_path / "mixes.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), file)
    assert open_build(Build(model="m", version="1", build="b", file=file)).max_batch == 1
    assert open_build(Build(model="m", version="1", build="b", file=make_model(tmp_path / "m.onnx"))).max_batch > 1


def test_a_model_unlike_its_manifest_is_refused(tmp_path: Path) -> None:
    make_build(tmp_path)
    build = read_build(tmp_path)
    assert build.manifest is not None
    graph = helper.make_graph(
        [helper.make_node("Identity", ["a"], ["b"])],
        "other",
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, ["n"])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), build.file)
    with pytest.raises(ServingError, match="its manifest declares"):
        open_build(build)


def test_golden_inputs_of_another_model_are_refused(tmp_path: Path) -> None:
    make_build(tmp_path)
    build = read_build(tmp_path)
    np.savez(tmp_path / "golden.npz", input_other=np.zeros(1), output_y=np.zeros(1))
    with pytest.raises(ServingError, match="not the model's inputs"):
        open_build(build)
