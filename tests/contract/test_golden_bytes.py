"""The contract's golden bytes: what version 1 looks like on the wire, for every message.

A change here is a change of the contract: it needs SPEC.md, and old agents in mind. To write the file of a new message,
add it to ``EXAMPLES`` and run this module once with ``python -m pytest`` and MUSTER_WRITE_GOLDEN=1.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519

from wire import envelope, tunnel
from wire.assignment import Assignment, Item, Policy, parse_assignment
from wire.codec import Message, decode, encode
from wire.enrolment import EnrolAnswer, EnrolRequest, RenewAnswer, TrustBundle, fingerprint
from wire.manifest import Figures, File, Limits, Manifest, Target, Tensor, build_id, parse_manifest
from wire.messages import (
    Ack,
    Command,
    ExecutionReport,
    Facts,
    Fault,
    Health,
    Heartbeat,
    Reply,
    Reported,
    ReportedItem,
    State,
    Window,
)
from wire.topics import CHANNELS, topic_for

GOLDEN = Path(__file__).parent / "golden"
DEVICE = "d-" + "abcdefghijklmnopqrstuvwxyz"
SHA = "0123456789abcdef" * 4
KEY = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32)))

EXAMPLES: dict[str, Message] = {
    "command": Command(
        id="c-" + "0123456789ab" * 2,
        device=DEVICE,
        kind="restart",
        issued=1_700_000_000.0,
        expires=1_700_003_600.0,
    ),
    "reply": Reply(
        stream="stream-1",
        sequence=9,
        previous=8,
        at=1_700_000_001.0,
        command="c-" + "0123456789ab" * 2,
        outcome="done",
        detail="serving runs again, process 7",
    ),
    "state": State(online=True, boot="1f0c", session=3, agent_version="0.1.0"),
    "heartbeat": Heartbeat(at=1_700_000_000.5, session=3),
    "facts": Facts(
        at=1_700_000_000.0,
        profile="generic-x86_64",
        title="x86-64 computer",
        confidence=0.5,
        evidence=["machine: x86_64"],
        facts={"arch": "x86_64", "memory_total_bytes": 8_000_000_000, "device_tree_model": None},
        runtimes=[{"name": "onnxruntime", "version": "1.31.1"}],
        agent_version="0.1.0",
    ),
    "reported": Reported(
        notices=["new builds wait: this device's clock says 1970-01-01 00:00 UTC"],
        at=1_700_000_000.0,
        epoch=1,
        number=2,
        items=[
            ReportedItem(component="model:digits", generation=1, build="b-0", state="SUCCEEDED", since=1_700_000_000.0)
        ],
        serving="ready",
    ),
    "execution": ExecutionReport(
        stream="stream-1",
        sequence=7,
        previous=6,
        at=1_700_000_000.0,
        execution="e-1",
        component="model:digits",
        generation=1,
        origin="WARMING",
        state="ROLLING_BACK",
        detail="trial failed",
        fault=Fault(phase="WARMING", code="golden_mismatch", message="output scores differs by 3.5, 0.5 is allowed"),
        figures={"p95_ms": 1.5},
    ),
    "health": Health(
        stream="stream-1",
        sequence=8,
        previous=7,
        windows=[
            Window(
                name="muster_device_memory_available_bytes",
                labels={"device": "self"},
                start=1_700_000_000.0,
                seconds=10.0,
                count=10,
                total=10.0,
                minimum=1.0,
                maximum=1.0,
                p50=1.0,
                p95=1.0,
                p99=1.0,
            )
        ],
    ),
    "ack": Ack(stream="stream-1", sequence=8),
    "assignment": Assignment(
        device=DEVICE,
        epoch=1,
        number=2,
        issued=1_700_000_000.0,
        expires=1_702_592_000.0,
        items=[
            Item(
                component="model:digits",
                generation=1,
                execution="e-1",
                build="b-" + "0" * 32,
                manifest_sha256=SHA,
                manifest_size=4096,
                policy=Policy(),
            )
        ],
    ),
    "manifest": Manifest(
        tenant="default",
        model="digits",
        model_version=1,
        precision="int8",
        target=Target(profile="generic-x86_64", arch=["x86_64"], runtime="onnxruntime", min_runtime="1.23"),
        files=[
            File(path="model.onnx", size=160_000, sha256=SHA, role="model"),
            File(path="golden.npz", size=5_000, sha256=SHA, role="golden"),
        ],
        inputs=[Tensor(name="image", datatype="FP32", shape=[-1, 1, 8, 8])],
        outputs=[Tensor(name="scores", datatype="FP32", shape=[-1, 10])],
        figures=Figures(
            accuracy=0.995,
            accuracy_low=0.98,
            accuracy_high=0.999,
            samples=450,
            p50_ms=0.01,
            p95_ms=0.02,
            p50_ms_batch8=0.05,
            peak_memory_bytes=50_000_000,
            size_bytes=160_000,
            measured_on="x86_64, 2 cores",
        ),
        limits=Limits(max_p95_ms=20.0, max_memory_bytes=300_000_000, tolerance=0.5),
        reasons=["accuracy 99.5 % of the source's"],
        created=1_700_000_000.0,
    ),
    "trust_bundle": TrustBundle(ca_pem="PEM", assignment_keys=["a2V5"], tuf_root=b'{"signed":{}}'),
    "enrol_request": EnrolRequest(token="id.secret", csr_pem="PEM", facts={"arch": "x86_64"}, name="bench-1"),
    "enrol_answer": EnrolAnswer(
        device=DEVICE,
        certificate_pem="PEM",
        chain_pem="PEM",
        mqtt_host="127.0.0.1",
        mqtt_port=8883,
        api_url="https://127.0.0.1:7070",
        gateway_url="wss://127.0.0.1:7071/tunnel",
    ),
    "renew_answer": RenewAnswer(certificate_pem="PEM", chain_pem="PEM", roots_pem="PEM"),
}
FRAMES = {
    "tunnel_request": tunnel.Frame(
        tunnel.Kind.REQUEST,
        5,
        msgspec.json.encode(
            tunnel.RequestHead(method="POST", path="/v2/models/digits/infer", headers={}, deadline_ms=900, body_bytes=2)
        ),
        b"{}",
        end=True,
    ),
    "tunnel_status": tunnel.Frame(
        tunnel.Kind.STATUS,
        0,
        msgspec.json.encode(
            tunnel.Status(models=[tunnel.ServedModel(name="digits", version="1", build="b-0", ready=True, queued=0)])
        ),
        end=True,
    ),
}


def golden(name: str, produced: bytes) -> bytes:
    file = GOLDEN / name
    if os.environ.get("MUSTER_WRITE_GOLDEN") == "1" and not file.exists():
        file.write_bytes(produced)
    return file.read_bytes()


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_message_is_written_and_read_as_agreed(name: str) -> None:
    message = EXAMPLES[name]
    expected = golden(f"{name}.json", encode(message))
    assert encode(message) == expected
    assert decode(type(message), expected) == message


@pytest.mark.parametrize("name", FRAMES)
def test_every_frame_is_written_and_read_as_agreed(name: str) -> None:
    expected = golden(f"{name}.bin", tunnel.encode_frame(FRAMES[name]))
    assert tunnel.encode_frame(FRAMES[name]) == expected
    assert tunnel.decode_frame(expected) == FRAMES[name]


def test_every_channel_of_the_table_has_a_golden_message() -> None:
    shown = {type(message) for message in EXAMPLES.values()}
    assert {channel.message for channel in CHANNELS if channel.message} <= shown


def test_the_table_of_topics_is_as_agreed() -> None:
    lines = [
        f"{topic_for(c, DEVICE)} qos={c.qos} retained={c.retained} limit={c.limit} "
        f"{c.message.__name__ if c.message else 'envelope'}"
        for c in CHANNELS
    ]
    assert golden("topics.txt", "\n".join(lines).encode()).decode() == "\n".join(lines)


def test_a_sealed_assignment_is_as_agreed_and_opens_for_its_purpose_only() -> None:
    payload = encode(EXAMPLES["assignment"])
    sealed = envelope.seal(payload, envelope.ASSIGNMENT, KEY)
    expected = golden("assignment.envelope.json", sealed)
    assert sealed == expected  # Ed25519 is deterministic
    keys: dict[str, envelope.PublicKey] = {envelope.key_id(KEY.public_key()): KEY.public_key()}
    assert parse_assignment(envelope.open_envelope(expected, envelope.ASSIGNMENT, keys)) == EXAMPLES["assignment"]
    with pytest.raises(envelope.SignatureError):
        envelope.open_envelope(expected, envelope.MANIFEST, keys)


def test_ids_made_from_bytes_are_as_agreed() -> None:
    manifest = encode(EXAMPLES["manifest"])
    ids = f"{build_id(manifest)}\n{fingerprint(encode(EXAMPLES['trust_bundle']))}\n{envelope.key_id(KEY.public_key())}"
    assert golden("ids.txt", ids.encode()).decode() == ids
    assert parse_manifest(manifest) == EXAMPLES["manifest"]
