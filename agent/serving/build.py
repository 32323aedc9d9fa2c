"""An installed build or a model file, opened: what it is, the engine that runs it, whether its requests may be joined.

Invariant: what is opened has the bytes that its manifest names, and takes the tensors that its manifest declares.
Requests are joined into batches only where joined rows were seen to give the same answers as single ones, or where a
person said so. Everything here may take seconds: call it in a worker thread.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from agent.errors import AgentError, DeviceError, ServingError
from agent.serving.golden import Golden, compare, read_golden
from agent.serving.infer import Signature, signature
from agent.serving.runtimes import DATATYPES, Array, Runtime, TensorSpec
from agent.serving.runtimes.onnx import OnnxRuntime
from wire.errors import WireError
from wire.manifest import MAX_BYTES, Manifest, build_id, parse_manifest

MANIFEST_NAME: Final = "manifest.json"
MAX_BATCH: Final = 16
_UNPROVEN_TOLERANCE: Final = 1e-4


class Build(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be opened. max_batch: rows that may be joined, None to find out; max_delay: seconds."""

    model: str
    version: str
    build: str
    file: Path
    golden: Path | None = None
    tolerance: float = _UNPROVEN_TOLERANCE
    threads: int = 1
    max_batch: int | None = None
    max_delay: float = 0.0
    manifest: Manifest | None = None


class Opened(msgspec.Struct, frozen=True):
    """A build in memory. max_batch: as found out or given; load_ms: how long opening took."""

    build: Build
    runtime: Runtime
    signature: Signature
    golden: Golden | None
    max_batch: int
    load_ms: float


def read_build(directory: Path, expected: str | None = None) -> Build:
    """Return the build installed in ``directory``, its files checked by size and SHA-256.

    Raises DeviceError (unreadable) or ServingError ("bad_build": not what the manifest, or ``expected``, names).
    """
    payload = _read(directory / MANIFEST_NAME, MAX_BYTES)
    build = build_id(payload)
    if expected is not None and build != expected:
        raise ServingError(f"{directory} holds build {build}, not {expected}; install the build again", "bad_build")
    try:
        manifest = parse_manifest(payload)
    except WireError as error:
        raise ServingError(f"{directory / MANIFEST_NAME}: {error}", "bad_build") from error
    paths = {}
    for file in manifest.files:
        path = directory / file.path
        if (size := _size(path)) != file.size or _sha256(path) != file.sha256:
            raise ServingError(
                f"{path}: {size} bytes are not the {file.size} bytes that the manifest names; install the build again",
                "bad_build",
            )
        paths[file.role] = path
    return Build(
        model=manifest.model,
        version=str(manifest.model_version),
        build=build,
        file=paths["model"],
        golden=paths["golden"],
        tolerance=manifest.limits.tolerance,
        manifest=manifest,
    )


def open_build(build: Build) -> Opened:
    """Return ``build`` loaded into its engine and run once. Raises DeviceError or ServingError."""
    begun = time.perf_counter()
    golden = None if build.golden is None else read_golden(build.golden)
    runtime = OnnxRuntime(build.file, build.threads)
    try:
        described = signature(runtime.inputs, runtime.outputs)
        if build.manifest is not None:
            _compare_with_manifest(build.manifest, described)
        sample = golden.inputs if golden is not None else synthetic(described)
        if golden is not None and set(golden.inputs) != {spec.name for spec in described.inputs}:
            raise ServingError(f"{build.file.name}: the golden inputs are not the model's inputs", "bad_golden")
        max_batch = build.max_batch
        if not described.batched:
            max_batch = 1
        elif max_batch is None:
            max_batch = MAX_BATCH if sample and joins(runtime, sample, build.tolerance) else 1
    except AgentError:
        runtime.close()
        raise
    return Opened(build, runtime, described, golden, max_batch, 1000 * (time.perf_counter() - begun))


def joins(runtime: Runtime, sample: dict[str, Array], tolerance: float) -> bool:
    """Return whether rows run together give the same outputs, in the same order, as rows run in another company."""
    try:
        alone = runtime.run(sample)
        turned = {name: array[::-1] for name, array in sample.items()}
        together = runtime.run({name: np.concatenate([array, turned[name]]) for name, array in sample.items()})
    except AgentError:
        return False
    expected = {name: np.concatenate([array, array[::-1]]) for name, array in alone.items() if array.ndim > 0}
    return len(expected) == len(together) and compare(expected, together, tolerance).passed


def synthetic(described: Signature) -> dict[str, Array] | None:
    """Return made-up inputs, three rows where that is open; None where another size is open."""
    rng = np.random.default_rng(0)
    arrays: dict[str, Array] = {}
    for spec in described.inputs:
        if -1 in spec.shape[1:]:
            return None
        dtype = DATATYPES[spec.datatype]
        shape = tuple(3 if size == -1 else size for size in spec.shape)
        arrays[spec.name] = (
            rng.normal(size=shape).astype(dtype) if dtype.kind == "f" else rng.integers(0, 2, shape).astype(dtype)
        )
    return arrays


def _compare_with_manifest(manifest: Manifest, described: Signature) -> None:
    for declared, found in ((manifest.inputs, described.inputs), (manifest.outputs, described.outputs)):
        names = {tensor.name: tensor.datatype for tensor in declared}
        if names != {spec.name: spec.datatype for spec in found}:
            raise ServingError(f"the model has {_names(found)}, its manifest declares {sorted(names)}", "bad_build")


def _names(specs: tuple[TensorSpec, ...]) -> list[str]:
    return sorted(spec.name for spec in specs)


def _read(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise DeviceError(f"{path}: {error.strerror}; install the build again", "no_build") from error
    if len(data) > limit:
        raise ServingError(f"{path} is larger than {limit} bytes", "bad_build")
    return data


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise DeviceError(f"{path}: {error.strerror}; install the build again", "no_build") from error


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DeviceError(f"{path}: {error.strerror}; install the build again", "no_build") from error
