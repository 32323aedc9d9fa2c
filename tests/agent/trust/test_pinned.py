"""Only what a pinned key signed for the right purpose is opened, or what has the hash that was vouched for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agent.errors import TrustError
from agent.trust.pinned import Pinned
from wire import codec, envelope
from wire.assignment import Assignment, Item
from wire.enrolment import TrustBundle
from wire.manifest import Figures, File, Limits, Manifest, Target, Tensor, build_id

BUILDER, ASSIGNER, STRANGER = (Ed25519PrivateKey.generate() for _ in range(3))


def public(*keys: envelope.PrivateKey) -> list[str]:
    return [envelope.encode_public_key(key.public_key()) for key in keys]


PINNED = Pinned(TrustBundle(ca_pem="", assignment_keys=public(ASSIGNER), tuf_root=b"{}"))
ASSIGNMENT = codec.encode(
    Assignment(
        device="d-" + "a" * 26, epoch=1, number=1, issued=0, expires=1,
        items=[
            Item(
                component="model:x", generation=1, execution="x1", build=None, manifest_sha256=None, manifest_size=None,
            ),
        ],
    )
)  # fmt: skip
_TENSOR = Tensor(name="x", datatype="FP32", shape=[-1])
MANIFEST = codec.encode(
    Manifest(
        tenant="t", model="digits", model_version=1, precision="fp32",
        target=Target(profile="p", arch=[], runtime="onnxruntime", min_runtime="1"),
        files=[
            File(path="m", size=1, sha256="0" * 64, role="model"),
            File(path="g", size=1, sha256="1" * 64, role="golden"),
        ],
        inputs=[_TENSOR], outputs=[_TENSOR],
        figures=Figures(accuracy=None, accuracy_low=None, accuracy_high=None, samples=0, p50_ms=1, p95_ms=1,
                        p50_ms_batch8=None, peak_memory_bytes=1, size_bytes=1, measured_on=""),
        limits=Limits(max_p95_ms=1, max_memory_bytes=1, tolerance=0), reasons=[], created=0,
    )
)  # fmt: skip


SEALED = envelope.seal(MANIFEST, envelope.MANIFEST, BUILDER)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def code(open_it: Callable[..., object], data: bytes, *more: str) -> str:
    with pytest.raises(TrustError) as caught:
        open_it(data, *more)
    return caught.value.code


def test_what_the_right_key_signed_is_opened() -> None:
    assert PINNED.open_assignment(envelope.seal(ASSIGNMENT, envelope.ASSIGNMENT, ASSIGNER)).number == 1


@pytest.mark.parametrize("key", [STRANGER, BUILDER])
def test_an_assignment_from_another_key_is_refused(key: Ed25519PrivateKey) -> None:
    assert code(PINNED.open_assignment, envelope.seal(ASSIGNMENT, envelope.ASSIGNMENT, key)) == "bad_signature"


def test_a_signature_for_another_purpose_is_refused() -> None:
    assert code(PINNED.open_assignment, envelope.seal(ASSIGNMENT, envelope.MANIFEST, ASSIGNER)) == "bad_signature"
    assert code(PINNED.open_command, envelope.seal(ASSIGNMENT, envelope.ASSIGNMENT, ASSIGNER)) == "bad_signature"


def test_changed_bytes_are_refused() -> None:
    sealed = envelope.seal(ASSIGNMENT, envelope.ASSIGNMENT, ASSIGNER)
    other = envelope.seal(ASSIGNMENT.replace(b"x1", b"x2"), envelope.ASSIGNMENT, STRANGER)
    payload = lambda data: data.split(b'"payload":"')[1].split(b'"')[0]  # noqa: E731
    assert code(PINNED.open_assignment, sealed.replace(payload(sealed), payload(other))) == "bad_signature"


def test_a_manifest_is_known_by_its_hash_and_by_nothing_else() -> None:
    for key in (BUILDER, STRANGER):  # who may sign it is the repository's affair, which vouches for the hash
        data = envelope.seal(MANIFEST, envelope.MANIFEST, key)
        build, manifest, payload = PINNED.open_manifest(data, sha256(data))
        assert (build, manifest.model, payload) == (build_id(MANIFEST), "digits", MANIFEST)
    for changed in (SEALED[:-1], SEALED + b" ", SEALED.replace(b"e", b"f", 1)):
        assert code(PINNED.open_manifest, changed, sha256(SEALED)) == "wrong_hash"


@pytest.mark.parametrize("data", [b"", b"{}", b"[1]", b"\xff", b"{" * 100_000, b"x" * (2 * 1024**2)])
def test_what_is_no_envelope_is_malformed(data: bytes) -> None:
    assert code(PINNED.open_manifest, data, sha256(data)) == code(PINNED.open_assignment, data) == "malformed"


def test_a_payload_of_a_wrong_form_or_version_is_told_apart() -> None:
    for content, expected in ((b"{}", "version"), (b'{"v":1}', "malformed")):
        data = envelope.seal(content, envelope.MANIFEST, BUILDER)
        assert code(PINNED.open_manifest, data, sha256(data)) == expected
    later = ASSIGNMENT.replace(b'"v":1', b'"v":2', 1)
    assert code(PINNED.open_assignment, envelope.seal(later, envelope.ASSIGNMENT, ASSIGNER)) == "version"


def test_a_bundle_whose_keys_cannot_be_read_is_refused() -> None:
    with pytest.raises(TrustError):
        Pinned(TrustBundle(ca_pem="", assignment_keys=["bm90IGEga2V5"], tuf_root=b"{}"))
