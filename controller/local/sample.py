"""The sample model: trains a digits classifier on this machine, in seconds, and writes it as an ONNX file.

Invariant: the same seed gives the same network, and none of the 450 held-out images is seen in training or used for
calibration. Does not decide whether a build of it is good (`controller/builds/accept.py`), and downloads nothing: the
8 x 8 images come with scikit-learn. numpy, scikit-learn and onnx are imported when training starts, not before.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from controller.errors import InvalidError, UnavailableError

if TYPE_CHECKING:
    from controller.local.network import Network

MODEL_FILE: Final = "model.onnx"
DATA_FILE: Final = "data.npz"
HELD_OUT: Final = 450
CALIBRATION: Final = 200
GOLDEN: Final = 16
EPOCHS: Final = 12
BATCH: Final = 32
FILTERS_1: Final = 32
FILTERS_2: Final = 64
HIDDEN: Final = 128
OPSET: Final = 17
IR_VERSION: Final = 8


@dataclass(frozen=True, slots=True)
class Sample:
    """What was trained. accuracy: share of the ``held_out`` images that the network reads rightly, 0 to 1."""

    model: Path
    data: Path
    accuracy: float
    held_out: int
    seconds: float


def train(
    directory: Path,
    progress: Callable[[str, float], None],
    *,
    filters: tuple[int, int] = (FILTERS_1, FILTERS_2),
    hidden: int = HIDDEN,
    epochs: int = EPOCHS,
    seed: int = 0,
) -> Sample:
    """Train the classifier and write `model.onnx` and `data.npz` into ``directory``.

    The model: input `image` FP32 [-1, 1, 8, 8] with values from 0 to 1, output `scores` FP32 [-1, 10]. The data:
    `calibration_image`, `heldout_image`, `heldout_label`, `golden_image`. ``progress`` is told a sentence and the share
    that is done. ``filters`` and ``hidden`` size the two convolutions and the layer after them.
    Raises UnavailableError when a package is missing, InvalidError when the directory cannot be written.
    """
    try:
        import numpy as np
        from sklearn.datasets import load_digits
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # of scikit-learn, without types

        from controller.local.network import Network, shift
    except ImportError as error:
        raise UnavailableError(f"training the sample needs `pip install muster[builder,demo]`: {error}") from error

    started = time.monotonic()
    generator = np.random.default_rng(seed)
    digits = load_digits()
    images = (digits.images.astype(np.float32) / 16.0)[:, None, :, :]
    labels = digits.target.astype(np.int64)
    order = generator.permutation(len(images))
    held, kept = order[:HELD_OUT], order[HELD_OUT:]

    network = Network(generator, filters, hidden)
    with threadpool_limits(1):  # these matrices are small: a second thread would wait more than it works
        for epoch in range(epochs):
            progress(f"training, pass {epoch + 1} of {epochs}", epoch / (epochs + 1))
            # The step size falls to a tenth over the passes: without it the last digit of accuracy is luck.
            rate = 2e-3 * (0.1 + 0.9 * (1 - epoch / epochs))
            shuffled = generator.permutation(kept)
            for start in range(0, len(shuffled), BATCH):
                rows = shuffled[start : start + BATCH]
                network.step(shift(generator, images[rows]), labels[rows], rate)
        right = int((network.scores(images[held]).argmax(axis=1) == labels[held]).sum())
    progress("writing the model", epochs / (epochs + 1))

    model, data = directory / MODEL_FILE, directory / DATA_FILE
    calibration, golden = kept[:CALIBRATION], kept[CALIBRATION : CALIBRATION + GOLDEN]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        model.write_bytes(_onnx(network))
        np.savez_compressed(
            data,
            calibration_image=images[calibration],
            heldout_image=images[held],
            heldout_label=labels[held],
            golden_image=images[golden],
        )
    except OSError as error:
        raise InvalidError(f"cannot write the sample to {directory}: {error}", "bad_directory") from error
    progress("trained", 1.0)
    return Sample(model, data, right / HELD_OUT, HELD_OUT, time.monotonic() - started)


def _onnx(network: Network) -> bytes:
    """Return ``network`` as the bytes of an ONNX model with a free batch size."""
    try:
        from onnx import TensorProto, helper, numpy_helper
    except ImportError as error:
        raise UnavailableError(f"writing the sample needs `pip install muster[builder]`: {error}") from error

    constants = []
    for index, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True), start=1):
        if index <= 2:  # rows of the matrix are (y, x, channel): ONNX wants [filter, channel, y, x]
            weight = weight.reshape(3, 3, -1, weight.shape[1]).transpose(3, 2, 0, 1)
        constants.append(numpy_helper.from_array(weight.copy(), f"weight_{index}"))
        constants.append(numpy_helper.from_array(bias.copy(), f"bias_{index}"))
    same: dict[str, Any] = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["image", "weight_1", "bias_1"], ["conv_1"], "conv_1", **same),
        helper.make_node("Relu", ["conv_1"], ["relu_1"], "relu_1"),
        helper.make_node("Conv", ["relu_1", "weight_2", "bias_2"], ["conv_2"], "conv_2", **same),
        helper.make_node("Relu", ["conv_2"], ["relu_2"], "relu_2"),
        helper.make_node("MaxPool", ["relu_2"], ["pool"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["pool"], ["flat"], "flat", axis=1),
        helper.make_node("Gemm", ["flat", "weight_3", "bias_3"], ["dense_3"], "dense_3"),
        helper.make_node("Relu", ["dense_3"], ["relu_3"], "relu_3"),
        helper.make_node("Gemm", ["relu_3", "weight_4", "bias_4"], ["scores"], "dense_4"),
    ]
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 10])],
        constants,
    )
    model = helper.make_model(graph, producer_name="muster", opset_imports=[helper.make_opsetid("", OPSET)])
    model.ir_version = IR_VERSION
    return bytes(model.SerializeToString())
