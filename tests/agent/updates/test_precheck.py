"""Fits or not, with every reason at once."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from agent.updates.precheck import Capabilities, Fits, Room, Unfit, check
from wire.manifest import Figures, File, Limits, Manifest, Target, Tensor

TENSOR = Tensor(name="x", datatype="FP32", shape=[-1])
MANIFEST = Manifest(
    tenant="t", model="digits", model_version=1, precision="fp32",
    target=Target(profile="p", arch=["aarch64", "armv7l"], runtime="onnxruntime", min_runtime="1.20"),
    files=[
        File(path="m", size=1, sha256="0" * 64, role="model"), File(path="g", size=1, sha256="1" * 64, role="golden"),
    ],
    inputs=[TENSOR], outputs=[TENSOR],
    figures=Figures(accuracy=None, accuracy_low=None, accuracy_high=None, samples=0, p50_ms=1, p95_ms=1,
                    p50_ms_batch8=None, peak_memory_bytes=10**6, size_bytes=1, measured_on=""),
    limits=Limits(max_p95_ms=1, max_memory_bytes=1, tolerance=0), reasons=[], created=0,
)  # fmt: skip
PI = Capabilities("aarch64", {"onnxruntime": "1.23.0"}, 10**9)
PLENTY = Room(100, 10_000, 1000)


def judge(device: Capabilities = PI, room: Room = PLENTY, **target: Any) -> Fits | Unfit:
    manifest = msgspec.structs.replace(MANIFEST, target=msgspec.structs.replace(MANIFEST.target, **target))
    return check(manifest, "digits", device, room)


def test_what_fits_fits() -> None:
    assert judge() == Fits()
    assert judge(arch=[]) == Fits()
    assert judge(Capabilities("aarch64", {"onnxruntime": "1.23"})) == Fits()


@pytest.mark.parametrize(
    ("device", "code"),
    [
        (Capabilities("x86_64", {"onnxruntime": "1.23"}), "wrong_arch"),
        (Capabilities("aarch64", {}), "no_runtime"),
        (Capabilities("aarch64", {"onnxruntime": "1.19.2"}), "old_runtime"),
        (Capabilities("aarch64", {"onnxruntime": "1.23"}, 999_999), "little_memory"),
    ],
)
def test_what_the_device_is_not_is_lasting(device: Capabilities, code: str) -> None:
    verdict = judge(device)
    assert isinstance(verdict, Unfit)
    assert (verdict.code, verdict.lasting) == (code, True)


def test_every_reason_is_told() -> None:
    verdict = judge(Capabilities("x86_64", {}))
    assert isinstance(verdict, Unfit)
    assert verdict.code == "wrong_arch"
    assert len(verdict.reasons) == 2


def test_another_models_build_is_refused() -> None:
    verdict = check(MANIFEST, "faces", PI, PLENTY)
    assert isinstance(verdict, Unfit)
    assert verdict.code == "other_model"


@pytest.mark.parametrize(("free", "fits"), [(1100, True), (1099, False)])
def test_room_is_counted_to_the_byte_and_is_not_lasting(free: int, fits: bool) -> None:
    verdict = judge(room=Room(100, free, 1000))
    assert (verdict == Fits()) is fits
    if isinstance(verdict, Unfit):
        assert (verdict.code, verdict.lasting) == ("disk_full", False)
        assert "free 1 bytes" in verdict.reasons[0]


@pytest.mark.parametrize(
    ("have", "need", "enough"),
    [
        ("1.23.0", "1.23", True), ("1.23", "1.23.0", True), ("1.9", "1.10", False), ("1.10", "1.9", True),
        ("1.23.0+gpu", "1.23", True), ("1.23rc1", "1.23", True), ("2", "1.99.99", True), ("", "1", False),
    ],
)  # fmt: skip
def test_versions_compare_by_number(have: str, need: str, enough: bool) -> None:
    verdict = judge(Capabilities("aarch64", {"onnxruntime": have}), min_runtime=need)
    assert (verdict == Fits()) is enough
