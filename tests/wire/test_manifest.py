from __future__ import annotations

from typing import Any

import msgspec
import pytest

from wire.errors import MalformedError
from wire.manifest import build_id, parse_manifest

SHA = "0123456789abcdef" * 4


def fields(**changes: Any) -> dict[str, Any]:
    return {
        "v": 1,
        "tenant": "default",
        "model": "digits",
        "model_version": 1,
        "precision": "fp32",
        "target": {"profile": "generic-x86_64", "arch": ["x86_64"], "runtime": "onnxruntime", "min_runtime": "1.23"},
        "files": [
            {"path": "model.onnx", "size": 10, "sha256": SHA, "role": "model"},
            {"path": "golden.npz", "size": 10, "sha256": SHA, "role": "golden"},
        ],
        "inputs": [{"name": "image", "datatype": "FP32", "shape": [-1, 1, 8, 8]}],
        "outputs": [{"name": "scores", "datatype": "FP32", "shape": [-1, 10]}],
        "figures": {
            "accuracy": None,
            "accuracy_low": None,
            "accuracy_high": None,
            "samples": 0,
            "p50_ms": 1.0,
            "p95_ms": 1.0,
            "p50_ms_batch8": None,
            "peak_memory_bytes": 1,
            "size_bytes": 1,
            "measured_on": "x86_64",
        },
        "limits": {"max_p95_ms": 1.0, "max_memory_bytes": 1, "tolerance": 0.1},
        "reasons": [],
        "created": 1.0,
    } | changes


def test_a_whole_manifest_is_read() -> None:
    manifest = parse_manifest(msgspec.json.encode(fields()))
    assert (manifest.model, [file.role for file in manifest.files]) == ("digits", ["model", "golden"])


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/b", "..", ".hidden", "", "a\x00b", "x" * 200, "-rf"])
def test_a_file_cannot_leave_its_directory(path: str) -> None:
    changed = fields()
    changed["files"][0]["path"] = path
    with pytest.raises(MalformedError):
        parse_manifest(msgspec.json.encode(changed))


def test_a_file_named_twice_is_refused() -> None:
    changed = fields()
    changed["files"][1]["path"] = "model.onnx"
    with pytest.raises(MalformedError, match="twice"):
        parse_manifest(msgspec.json.encode(changed))


@pytest.mark.parametrize("role", ["model", "golden"])
def test_one_model_and_one_golden_file_are_needed(role: str) -> None:
    changed = fields()
    changed["files"] = [file for file in changed["files"] if file["role"] != role]
    with pytest.raises(MalformedError, match=role):
        parse_manifest(msgspec.json.encode(changed))


@pytest.mark.parametrize(
    "changes",
    [{"model": "../digits"}, {"model": "Digits"}, {"model_version": 0}, {"inputs": []}, {"files": []}, {"v": 2}],
)
def test_other_nonsense_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_manifest(msgspec.json.encode(fields(**changes)))


@pytest.mark.parametrize("size", [0, -1, 65 * 1024**3])
def test_an_impossible_size_is_refused(size: int) -> None:
    changed = fields()
    changed["files"][0]["size"] = size
    with pytest.raises(MalformedError):
        parse_manifest(msgspec.json.encode(changed))


def test_a_build_is_named_by_its_bytes() -> None:
    one, other = msgspec.json.encode(fields()), msgspec.json.encode(fields(created=2.0))
    assert build_id(one) != build_id(other)
    assert build_id(one) == build_id(bytes(one))
