"""The signed description of one build (wire 6): what it is, which bytes, what was measured, what it must still do.

Invariant: a manifest that ``check`` accepts names every file by size and SHA-256 under a plain relative path, and
carries the golden inputs by which a device proves the build. Does not verify signatures (`envelope.py`).
"""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from wire.codec import Message, decode
from wire.errors import MalformedError
from wire.messages import Name, Text

Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]

MAX_BYTES: Final = 512 * 1024
MAX_FILES: Final = 64
_PATH: Final = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")
_NAME: Final = re.compile(r"^[a-z0-9][a-z0-9._-]{0,62}\Z")


class File(msgspec.Struct, frozen=True, kw_only=True):
    """One artifact of a build. ``role``: "model", "golden" or "data"."""

    path: Name
    size: Annotated[int, Meta(ge=1, le=64 * 1024**3)]
    sha256: Sha256
    role: Name


class Tensor(msgspec.Struct, frozen=True, kw_only=True):
    """An input or output. ``shape``: -1 stands for a size that a request chooses; ``datatype``: V2 name (FP32, …)."""

    name: Name
    datatype: Name
    shape: Annotated[list[int], Meta(max_length=8)]


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """Where a build runs. ``arch``: machine names as `uname -m` gives them, empty for any."""

    profile: Name
    arch: list[Name]
    runtime: Name
    min_runtime: Name


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What the builder measured, on the named machine. Accuracy is a share of 1 with its 95 % interval."""

    accuracy: float | None
    accuracy_low: float | None
    accuracy_high: float | None
    samples: int
    p50_ms: float
    p95_ms: float
    p50_ms_batch8: float | None
    peak_memory_bytes: int
    size_bytes: int
    measured_on: Text


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What the device refuses: latency of one golden run, memory of the trial child, difference of outputs."""

    max_p95_ms: float
    max_memory_bytes: int
    tolerance: float


class Manifest(Message, frozen=True, kw_only=True):
    """One build. Its id is the SHA-256 of its bytes: see ``build_id``."""

    tenant: Name
    model: Name
    model_version: Annotated[int, Meta(ge=1)]
    precision: Name  # "fp32", "int8", …
    target: Target
    files: Annotated[list[File], Meta(min_length=1, max_length=MAX_FILES)]
    inputs: Annotated[list[Tensor], Meta(min_length=1, max_length=32)]
    outputs: Annotated[list[Tensor], Meta(min_length=1, max_length=32)]
    figures: Figures
    limits: Limits
    reasons: list[Text]  # why the gate accepted it
    created: float


def build_id(payload: bytes) -> str:
    """Return the name of a build: "b-" and 32 hex digits of the SHA-256 of its manifest's bytes (wire 6.1)."""
    return "b-" + hashlib.sha256(payload).hexdigest()[:32]


def parse_manifest(payload: bytes) -> Manifest:
    """Return the manifest in ``payload`` (the bytes inside the envelope). Raises MalformedError or VersionError."""
    manifest = decode(Manifest, payload, MAX_BYTES)
    if not _NAME.match(manifest.model):
        raise MalformedError(f"manifest: {manifest.model!r} is not a model name (a-z, 0-9, '.', '_', '-')")
    seen: set[str] = set()
    for file in manifest.files:
        if not _PATH.match(file.path) or file.path in seen:
            raise MalformedError(f"manifest: {file.path!r} is not a plain file name, or is named twice")
        seen.add(file.path)
    for role in ("model", "golden"):
        if sum(file.role == role for file in manifest.files) != 1:
            raise MalformedError(f"manifest: exactly one file must have the role {role!r}")
    return manifest
