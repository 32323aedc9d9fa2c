"""The measurement of real builds in real child processes."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from controller.builds import benchmark
from controller.builds.benchmark import Candidate, figures, measure
from controller.builds.child import Bounds, run_child
from controller.builds.figures import Measured
from controller.local.sample import Sample

BOUNDS = Bounds(60, 4 * 1024**3)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("measured")


@pytest.fixture(scope="module")
def measured(sample: Sample, directory: Path) -> list[Measured]:
    """FP32 and INT8 of the sample; the child's parent holds 300 MB, which must not show in its memory figures."""
    ballast = np.ones(300 * 1024**2, np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "SECONDS", 0.0)
        found = asyncio.run(_build_and_measure(sample, directory))
    assert ballast[0] == 1
    return found


async def _build_and_measure(sample: Sample, directory: Path) -> list[Measured]:
    fp32, int8 = directory / "fp32.onnx", directory / "int8.onnx"
    data = str(sample.data)
    module = "controller.builds.convert.onnx"
    await run_child(module, {"check": {"model": str(sample.model), "data": data, "output": str(fp32)}}, BOUNDS)
    request = {"model": str(fp32), "data": data, "output": str(int8), "calibration": "minmax"}
    await run_child(module, {"quantize": request}, BOUNDS)
    candidates = [
        Candidate("fp32", fp32, directory / "fp32.npz"),
        Candidate("int8", int8, directory / "int8.npz"),
    ]
    return await measure(candidates, sample.data, BOUNDS, seed=3, rounds=20)


def test_accuracy_is_that_of_the_training_program(measured: list[Measured], sample: Sample) -> None:
    fp32, int8 = measured
    assert fp32.samples == int8.samples == sample.held_out
    assert fp32.accuracy == pytest.approx(sample.accuracy)
    assert int8.accuracy is not None
    assert int8.accuracy >= 0.98
    assert int8.right is not None
    assert fp32.right is not None
    assert int8.right - fp32.right == int8.gained - int8.lost
    assert fp32.finite
    assert int8.finite


def test_int8_is_smaller_and_a_little_different(measured: list[Measured]) -> None:
    fp32, int8 = measured
    assert int8.size_bytes < fp32.size_bytes / 3
    assert fp32.difference == 0
    assert 0 < int8.difference < 0.1


def test_speed_is_told_by_round_in_the_same_order(measured: list[Measured]) -> None:
    for build in measured:
        assert build.batch8 is not None
        for latency in (build.batch1, build.batch8):
            assert len(latency.rounds) == 20
            assert latency.runs >= 20 * 3
            assert 0 < latency.p50_ms <= latency.p95_ms
            assert all(value > 0 for value in latency.rounds)
        assert build.batch8.p50_ms > build.batch1.p50_ms


def test_memory_is_the_childs_own(measured: list[Measured]) -> None:
    for build in measured:
        assert 20 * 1024**2 < build.peak_memory_bytes < 200 * 1024**2, "not that of the process that started it"
        assert 0 < build.memory_bytes < build.peak_memory_bytes


def test_golden_outputs_are_the_builds_own(measured: list[Measured], directory: Path) -> None:
    outputs = []
    for build in measured:
        with np.load(directory / f"{build.precision}.npz", allow_pickle=False) as arrays:
            assert sorted(arrays.files) == ["input_image", "output_scores"]
            outputs.append(arrays["output_scores"])
            spread = float(np.ptp(arrays["output_scores"]))
        share = 1e-3 if build.precision == "fp32" else 0.05
        assert build.tolerance == pytest.approx(share * spread, rel=1e-5)
    difference = float(np.abs(outputs[0] - outputs[1]).max())
    assert 0 < difference < measured[1].tolerance


def test_figures_of_a_manifest(measured: list[Measured]) -> None:
    stated = figures(measured[1], benchmark.this_machine())
    assert stated.accuracy is not None
    assert stated.accuracy_low is not None
    assert stated.accuracy_high is not None
    assert stated.accuracy_low < stated.accuracy < stated.accuracy_high
    assert "1 thread" in stated.measured_on
    assert not math.isnan(stated.p50_ms)


async def test_nan_is_found_wherever_it_arises(
    write_model: Any, write_data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "SECONDS", 0.0)
    model = write_model(
        nodes=[helper.make_node("Log", ["x"], ["y"])],  # NaN for negative values
        outputs=[helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 4])],
        constants=[],
    )
    heldout = np.ones((100, 4), np.float32)
    heldout[99, 3] = -1
    data = write_data(golden_x=np.ones((16, 4), np.float32), heldout_x=heldout)
    found = await measure([Candidate("fp32", model, tmp_path / "golden.npz")], data, BOUNDS, seed=1, rounds=4)
    assert not found[0].finite


async def test_a_fixed_batch_size_is_measured_with_that(
    write_model: Any, write_data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "SECONDS", 0.0)
    candidate = Candidate("fp32", write_model(rows=3), tmp_path / "golden.npz")
    (found,) = await measure([candidate], write_data(), BOUNDS, seed=1, rounds=4)
    assert found.batch8 is None
    assert found.samples == 99
    with np.load(candidate.golden) as arrays:
        assert arrays["input_x"].shape == (3, 4)
