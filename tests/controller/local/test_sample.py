"""The sample's training (the trained network itself is proven in tests/controller/builds)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from sklearn.datasets import load_digits

from controller.errors import InvalidError
from controller.local.network import Network
from controller.local.sample import HELD_OUT, train


def test_the_slopes_are_those_of_the_loss() -> None:
    """One step of plain descent against numeric slopes, in each of the eight parameter arrays."""
    generator = np.random.default_rng(5)
    network = Network(generator, (2, 3), 4)
    for bias in network.biases:
        bias += generator.normal(size=bias.shape).astype(np.float32) * 0.1
    images = generator.random((4, 1, 8, 8), np.float32)
    labels = np.array([0, 3, 3, 9])

    def loss() -> float:
        scores = network.scores(images).astype(np.float64)
        shifted = scores - scores.max(axis=1, keepdims=True)
        return float((np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(4), labels]).mean())

    numeric = []
    for parameter in network.weights + network.biases:
        slopes = np.zeros(parameter.shape)
        for place in np.ndindex(*parameter.shape):
            kept = parameter[place]
            parameter[place] = kept + np.float32(1e-2)
            above = loss()
            parameter[place] = kept - np.float32(1e-2)
            slopes[place] = (above - loss()) / 2e-2
            parameter[place] = kept
        numeric.append(slopes)
    before = [parameter.copy() for parameter in network.weights + network.biases]
    network.step(images, labels, 1e-3)
    for old, new, slopes in zip(before, network.weights + network.biases, numeric, strict=True):
        steep = np.abs(slopes) > 0.02
        assert steep.any()
        # Adam's first step goes by the sign of the slope alone
        assert np.mean(np.sign(old - new)[steep] == np.sign(slopes)[steep]) > 0.97


def test_what_is_written_is_what_was_trained(tmp_path: Path) -> None:
    told: list[tuple[str, float]] = []
    made = train(tmp_path / "new", lambda text, share: told.append((text, share)), filters=(4, 8), hidden=16, epochs=2)
    session = onnxruntime.InferenceSession(made.model, providers=["CPUExecutionProvider"])
    (given,), (answer,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape[1:]) == ("image", "tensor(float)", [1, 8, 8])
    assert (answer.name, answer.shape[1:]) == ("scores", [10])
    with np.load(made.data, allow_pickle=False) as data:
        arrays = {name: data[name] for name in data.files}
    assert {name: array.shape for name, array in arrays.items()} == {
        "calibration_image": (200, 1, 8, 8),
        "heldout_image": (450, 1, 8, 8),
        "heldout_label": (450,),
        "golden_image": (16, 1, 8, 8),
    }
    right = session.run(None, {"image": arrays["heldout_image"]})[0].argmax(axis=1) == arrays["heldout_label"]
    assert right.mean() == pytest.approx(made.accuracy), "the ONNX file computes what the numpy network does"
    assert made.held_out == HELD_OUT == 450
    shares = [share for _, share in told]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert all(text for text, _ in told)


def test_the_held_out_images_are_in_no_other_part(tmp_path: Path) -> None:
    made = train(tmp_path, lambda *_: None, filters=(1, 1), hidden=1, epochs=1)
    with np.load(made.data, allow_pickle=False) as data:
        held = {image.tobytes() for image in data["heldout_image"]}
        others = [image.tobytes() for name in ("calibration_image", "golden_image") for image in data[name]]
    known = [(image.astype(np.float32) / 16.0).tobytes() for image in load_digits().images]
    assert len(known) - len(set(known)) == 0, "no image is in the collection twice"
    assert held <= set(known)
    assert not held & set(others)


def test_the_same_seed_gives_the_same_network(tmp_path: Path) -> None:
    options = {"filters": (2, 2), "hidden": 4, "epochs": 1}
    first = train(tmp_path / "1", lambda *_: None, **options, seed=7)  # type: ignore[arg-type]
    second = train(tmp_path / "2", lambda *_: None, **options, seed=7)  # type: ignore[arg-type]
    third = train(tmp_path / "3", lambda *_: None, **options, seed=8)  # type: ignore[arg-type]
    assert first.model.read_bytes() == second.model.read_bytes() != third.model.read_bytes()


def test_a_directory_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InvalidError, match="cannot write the sample"):
        train(tmp_path / "file", lambda *_: None, filters=(1, 1), hidden=1, epochs=1)
