"""From a model to judged candidates: the order of things, with real conversions and stated measurements."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from controller.builds import benchmark
from controller.builds.child import StepError
from controller.builds.figures import Latency, Measured
from controller.builds.make import Made, Order, make
from controller.builds.recipe import Optimization
from controller.builds.sign import builder_key
from wire.envelope import MANIFEST, decode_public_key, open_envelope
from wire.manifest import build_id, parse_manifest

ORDER = Order("acme", "small", 3, "generic-x86_64", (), Optimization.BALANCED)


def stated(precision: str, size: int, us: float, noise: float = 0.0, **changes: Any) -> Measured:
    times = tuple(us / 1000 * (1 + noise * (-1) ** n) for n in range(40))
    latency = Latency(us / 1000, us / 900, 4000, times)
    made = Measured(precision, size, True, 450, 447, 0, 0, 0.0, 0.5, latency, latency, 0.1, 1000, 70_000_000)
    return dataclasses.replace(made, **changes)


@pytest.fixture
def building(write_model: Any, write_data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Makes a small model with the given figures, one list for each measurement that is asked for."""

    async def run(
        *measurements: list[Measured], data: dict[str, Any] | None = None, **order: Any
    ) -> tuple[list[Made], list[str]]:
        waiting, told = list(measurements), []

        async def measure(candidates: Any, *_: Any, **__: Any) -> list[Measured]:
            for candidate in candidates:
                candidate.golden.write_bytes(candidate.precision.encode())
            found = waiting.pop(0)
            assert [one.precision for one in found] == [candidate.precision for candidate in candidates]
            return found

        async def say(text: str) -> None:
            told.append(text)

        monkeypatch.setattr(benchmark, "measure", measure)
        made = await make(
            *(dataclasses.replace(ORDER, **order), write_model(), write_data(**(data or {})), tmp_path),
            *(builder_key(tmp_path), say),
            now=5.0,
            seed=1,
        )
        assert not waiting
        return made, told

    return run


def verdicts(made: list[Made]) -> dict[str, str]:
    return {one.precision: one.verdict for one in made}


async def test_the_better_build_is_signed_and_the_other_kept_in_mind(
    building: Callable[..., Any], tmp_path: Path
) -> None:
    made, told = await building([stated("fp32", 600, 20), stated("int8", 160, 14)])
    assert verdicts(made) == {"fp32": "accepted", "int8": "published"}
    assert made[0].sealed is None
    assert made[1].sealed is not None
    key = builder_key(tmp_path)
    payload = open_envelope(made[1].sealed.envelope, MANIFEST, {key.id: decode_public_key(key.public)})
    manifest = parse_manifest(payload)
    assert build_id(payload) == made[1].sealed.build
    assert (manifest.precision, manifest.model, manifest.model_version, manifest.created) == ("int8", "small", 3, 5.0)
    assert {file.role: file.size for file in manifest.files} == {
        "model": (tmp_path / "int8.onnx").stat().st_size,
        "golden": len("int8"),
    }
    assert "the fastest for one row of 2 accepted builds" in " ".join(manifest.reasons)
    assert told[0].startswith("checking")
    assert told[-1].startswith("choosing")


async def test_a_slower_build_is_refused_and_fp32_goes_alone(building: Callable[..., Any]) -> None:
    made, _ = await building([stated("fp32", 600, 10), stated("int8", 160, 13)])
    assert verdicts(made) == {"fp32": "published", "int8": "refused"}
    assert "slower" in made[1].reasons[0]
    assert "the only build that the gate accepted" in " ".join(made[0].reasons)


async def test_what_a_busy_machine_measured_is_measured_once_more(building: Callable[..., Any]) -> None:
    noisy = [stated("fp32", 600, 20), stated("int8", 160, 20, noise=0.9)]
    made, told = await building(noisy, [stated("fp32", 600, 20), stated("int8", 160, 14)])
    assert verdicts(made)["int8"] == "published"
    assert any("too busy" in text for text in told)
    made, _ = await building(noisy, noisy)
    assert verdicts(made) == {"fp32": "published", "int8": "refused"}


async def test_a_model_that_gives_nan_is_never_published(building: Callable[..., Any]) -> None:
    broken = [stated("fp32", 600, 20, finite=False), stated("int8", 160, 14, finite=False)]
    with pytest.raises(StepError, match="NaN") as failed:
        await building(broken)
    assert failed.value.permanent


@pytest.mark.parametrize(
    ("data", "order", "note"),
    [
        ({"calibration_x": None}, {}, "it needs 16 calibration rows"),
        ({"heldout_label": None}, {}, "without held-out rows and labels"),
        ({}, {"optimization": Optimization.NONE}, "asks for no optimisation"),
    ],
)
async def test_fp32_alone_says_why(building: Callable[..., Any], data: Any, order: Any, note: str) -> None:
    made, _ = await building([stated("fp32", 600, 20)], data=data, **order)
    assert verdicts(made) == {"fp32": "published"}
    assert note in " ".join(made[0].reasons)


async def test_speed_of_another_processor_is_not_claimed(building: Callable[..., Any]) -> None:
    made, _ = await building([stated("fp32", 600, 20), stated("int8", 160, 14)], arch=("riscv64",))
    assert "proves nothing for riscv64" in " ".join(made[1].reasons)
    assert made[1].target.arch == ["riscv64"]
