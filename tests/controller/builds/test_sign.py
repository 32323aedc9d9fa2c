"""The builder's key and what it seals."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from controller.builds.figures import Latency, Measured
from controller.builds.sign import KEY_FILE, builder_key, limits_for
from controller.errors import InvalidError
from wire.envelope import ASSIGNMENT, MANIFEST, decode_public_key, open_envelope
from wire.errors import MalformedError, SignatureError
from wire.manifest import Figures, File, Limits, Manifest, Target, Tensor, build_id, parse_manifest


def manifest(model: str = "digits") -> Manifest:
    files = [File(path=f"{role}.bin", size=1, sha256="a" * 64, role=role) for role in ("model", "golden")]
    tensor = [Tensor(name="x", datatype="FP32", shape=[-1, 4])]
    return Manifest(
        tenant="acme",
        model=model,
        model_version=1,
        precision="fp32",
        target=Target(profile="generic", arch=[], runtime="onnxruntime", min_runtime="1.18"),
        files=files,
        inputs=tensor,
        outputs=tensor,
        figures=Figures(
            accuracy=None,
            accuracy_low=None,
            accuracy_high=None,
            samples=0,
            p50_ms=1,
            p95_ms=1,
            p50_ms_batch8=None,
            peak_memory_bytes=1,
            size_bytes=1,
            measured_on="a test",
        ),
        limits=Limits(max_p95_ms=1, max_memory_bytes=1, tolerance=1),
        reasons=[],
        created=0.0,
    )


def test_the_key_is_made_once_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    first, second = builder_key(tmp_path), builder_key(tmp_path)
    assert first.id == second.id
    path = tmp_path / KEY_FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [file.name for file in path.parent.iterdir()] == ["key.pem"]


def test_a_file_that_is_no_such_key_stops_the_start(tmp_path: Path) -> None:
    path = tmp_path / KEY_FILE
    path.parent.mkdir()
    path.write_bytes(b"junk")
    with pytest.raises(InvalidError, match="not a private key"):
        builder_key(tmp_path)
    other = ec.generate_private_key(ec.SECP256R1())
    path.write_bytes(
        other.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    with pytest.raises(InvalidError, match="not an Ed25519 key"):
        builder_key(tmp_path)


def test_what_is_sealed_opens_for_this_purpose_and_key_only(tmp_path: Path) -> None:
    key = builder_key(tmp_path)
    sealed = key.seal(manifest())
    keys = {key.id: decode_public_key(key.public)}
    payload = open_envelope(sealed.envelope, MANIFEST, keys)
    assert build_id(payload) == sealed.build
    assert parse_manifest(payload).model == "digits"
    with pytest.raises(SignatureError):
        open_envelope(sealed.envelope, ASSIGNMENT, keys)
    stranger = builder_key(tmp_path / "other")
    with pytest.raises(SignatureError):
        open_envelope(sealed.envelope, MANIFEST, {stranger.id: decode_public_key(stranger.public)})


def test_a_manifest_that_no_device_takes_is_not_sealed(tmp_path: Path) -> None:
    with pytest.raises(MalformedError):
        builder_key(tmp_path).seal(manifest("../etc"))


def test_limits_are_generous_in_time_and_memory_and_take_the_tolerance_as_it_is() -> None:
    fast = Latency(0.01, 0.02, 100, (0.01,))
    small = Measured("int8", 1, True, 0, None, 0, 0, 0.0, 1.25, fast, None, 0.2, 10 * 1024**2, 66 * 1024**2)
    assert limits_for(small) == Limits(max_p95_ms=100.0, max_memory_bytes=256 * 1024**2, tolerance=1.25)
    slow = Latency(80, 90, 100, (80,))
    large = Measured("int8", 1, True, 0, None, 0, 0, 0.0, 0.5, slow, None, 300, 10, 400 * 1024**2)
    assert limits_for(large) == Limits(max_p95_ms=15_000, max_memory_bytes=800 * 1024**2, tolerance=0.5)
