import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from agent.errors import DeviceError, ServingError
from agent.serving.runtimes import TensorSpec
from agent.serving.runtimes.onnx import OnnxRuntime
from tests.agent.serving.builds import make_model, weights


def test_describes_and_runs_a_model(tmp_path: Path) -> None:
    runtime = OnnxRuntime(make_model(tmp_path / "m.onnx"))
    assert runtime.inputs == (TensorSpec("image", "FP32", (-1, 8), ("rows", "")),)
    assert [spec.datatype for spec in runtime.outputs] == ["FP32", "INT64"]
    image = np.ones((2, 8), np.float32)
    outputs = runtime.run({"image": image})
    assert np.allclose(outputs["scores"], image @ weights(), atol=1e-5)
    runtime.close()


def test_refused_inputs_are_a_serving_error(tmp_path: Path) -> None:
    runtime = OnnxRuntime(make_model(tmp_path / "m.onnx"))
    with pytest.raises(ServingError, match="failed on these inputs"):
        runtime.run({"image": np.ones((2, 9), np.float32)})


def test_a_broken_model_is_a_serving_error_that_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "broken.onnx"
    file.write_bytes(b"no model at all")
    with pytest.raises(ServingError, match=r"ONNX Runtime refuses broken\.onnx"):
        OnnxRuntime(file)


def test_a_missing_model_is_a_device_error(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="install the build again"):
        OnnxRuntime(tmp_path / "none.onnx")


def test_a_text_model_is_refused_at_load(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["a"], ["b"])],
        "text",
        [helper.make_tensor_value_info("a", TensorProto.STRING, [1])],
        [helper.make_tensor_value_info("b", TensorProto.STRING, [1])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path / "t.onnx")
    with pytest.raises(ServingError, match=r"tensor\(string\), which is not served"):
        OnnxRuntime(tmp_path / "t.onnx")


def test_an_idle_engine_does_not_spin(tmp_path: Path) -> None:
    runtime = OnnxRuntime(make_model(tmp_path / "m.onnx", work=64), threads=2)
    runtime.run({"image": np.ones((1, 8), np.float32)})
    before = time.process_time()
    time.sleep(0.09)
    assert time.process_time() - before < 0.03
