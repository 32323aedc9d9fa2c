"""Signatures: each role needs its threshold of different keys, of any kind that the framework names."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import MetaFile

from tests.agent.conformance.client_program import DONE, REFUSED, ClientProgram
from tests.agent.conformance.key_sets import KeySet, fresh_keys, give_keys

pytestmark = pytest.mark.hours

SIGNED_ONLINE = ("timestamp", "snapshot", "targets")
SCHEMES: dict[str, Callable[[], CryptoSigner]] = {
    "rsa-pss": CryptoSigner.generate_rsa,
    "rsa-pkcs": functools.partial(CryptoSigner.generate_rsa, scheme="rsa-pkcs1v15-sha256"),
    "ecdsa": CryptoSigner.generate_ecdsa,
    "ed25519": CryptoSigner.generate_ed25519,
}
UNSIGNED = {
    "root": {"root": 1},
    "timestamp": {"root": 2},
    "snapshot": {"root": 2, "timestamp": 2},
    "targets": {"root": 2, "timestamp": 2, "snapshot": 2},
}
ENOUGH = {
    "its only key": KeySet([2], 1, [2]),
    "its key among others": KeySet([1], 1, [3, 1, 4]),
    "three of five": KeySet(range(5), 3, [0, 2, 4]),
    "another three of five": KeySet(range(5), 3, [2, 3, 4]),
}
TOO_FEW = {
    "only other keys": KeySet([2], 1, [1, 3, 4]),
    "two of five and another key": KeySet([0, 1, 3, 4, 5], 3, [0, 2, 4]),
    "two of five": KeySet([0, 1, 3, 4, 5], 3, [0, 4]),
}


def change(client: ClientProgram, name: str, edit: Callable[[list[dict[str, Any]]], None]) -> None:
    """Let ``edit`` change the signatures of a served file, behind the signer's back."""
    envelope = json.loads(client.repository.served[name])
    edit(envelope["signatures"])
    client.repository.served[name] = json.dumps(envelope).encode()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_kinds_of_keys_are_all_believed(lasting_client: ClientProgram, scheme: str) -> None:
    repository = lasting_client.repository
    signer = SCHEMES[scheme]()
    for role in SIGNED_ONLINE:
        give_keys(repository, role, KeySet([0], 1, [0]), [signer])
    repository.publish("root")
    repository.add("targets", "target", b"content")
    repository.release("targets")
    assert lasting_client.init() == DONE
    assert lasting_client.download("target") == DONE
    assert lasting_client.downloaded() == [b"content"]


@pytest.mark.parametrize("scheme", ["rsa", "ecdsa", "ed25519"])
def test_changed_signature_of_any_kind_is_refused(client: ClientProgram, scheme: str) -> None:
    repository = client.repository
    signer: CryptoSigner = getattr(CryptoSigner, f"generate_{scheme}")()
    repository.root.add_key(signer.public_key, "root")
    repository.root.roles["root"].threshold = 2
    repository.signers["root"].append(signer)
    repository.publish("root")
    assert client.init() == DONE
    assert client.refresh() == DONE
    assert client.versions()["root"] == 2

    def bend(signatures: list[dict[str, Any]]) -> None:
        signatures[1]["sig"] = f"30{signatures[1]['sig'][2:-2]}00"

    repository.publish("root")
    change(client, "3.root.json", bend)
    assert client.refresh() == REFUSED
    assert client.versions()["root"] == 2


@pytest.mark.parametrize("role", UNSIGNED)
def test_unsigned_role_is_refused_and_nothing_after_it_is_kept(client: ClientProgram, role: str) -> None:
    client.repository.signers[role] = []
    client.repository.publish("root", "targets", "snapshot", "timestamp")
    assert client.init() == DONE
    assert client.refresh() == REFUSED
    assert client.versions() == UNSIGNED[role]


@pytest.mark.parametrize("given", ENOUGH.values(), ids=list(ENOUGH))
def test_role_signed_by_its_threshold_is_believed(client: ClientProgram, given: KeySet) -> None:
    repository = client.repository
    signers = fresh_keys(6)
    assert client.init() == DONE
    for role in SIGNED_ONLINE:
        give_keys(repository, role, given, signers)
        repository.publish("root")
        repository.release("targets")
        assert client.refresh() == DONE
        version = repository.mds[role].signed.version
        name = "timestamp.json" if role == "timestamp" else f"{version}.{role}.json"
        assert client.trusts(role) == repository.served[name]


@pytest.mark.parametrize("given", TOO_FEW.values(), ids=list(TOO_FEW))
@pytest.mark.parametrize("role", SIGNED_ONLINE)
def test_role_below_its_threshold_is_refused(client: ClientProgram, role: str, given: KeySet) -> None:
    assert client.init() == DONE
    give_keys(client.repository, role, given, fresh_keys(6))
    client.repository.publish("root")
    client.repository.release("targets")
    assert client.refresh() == REFUSED
    assert role not in client.versions()


def test_one_signature_twice_is_refused(client: ClientProgram) -> None:
    client.repository.mds["timestamp"].signed.snapshot_meta = MetaFile(1)
    client.repository.publish("timestamp")
    change(client, "1.snapshot.json", lambda signatures: signatures.append(signatures[0]))
    assert client.init() == DONE
    assert client.refresh() == REFUSED
    assert "snapshot" not in client.versions()


def test_empty_signature_beside_a_threshold_of_good_ones_does_no_harm(client: ClientProgram) -> None:
    repository = client.repository
    second = CryptoSigner.generate_ecdsa()
    repository.root.add_key(second.public_key, "timestamp")
    repository.signers["timestamp"].append(second)
    repository.publish("root", "timestamp")
    change(client, "timestamp.json", lambda signatures: signatures[1].update(sig=""))
    assert client.init() == DONE
    assert client.refresh() == DONE
    assert client.versions() == {"root": 2, "timestamp": 2, "snapshot": 1, "targets": 1}


def test_snapshot_in_place_of_a_timestamp_is_refused_though_a_right_key_signed_it(client: ClientProgram) -> None:
    repository = client.repository
    (signer,) = repository.signers["timestamp"]
    repository.root.add_key(signer.public_key, "snapshot")
    repository.signers["snapshot"].append(signer)
    repository.mds["snapshot"].signed.meta = {"snapshot.json": MetaFile(1)}
    repository.publish("root", "snapshot")
    repository.served["timestamp.json"] = repository.served["2.snapshot.json"]
    assert client.init() == DONE
    assert client.refresh() == REFUSED
    assert client.versions() == {"root": 2}
