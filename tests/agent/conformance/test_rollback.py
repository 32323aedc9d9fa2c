"""Versions: a file says the version that it is asked for, and a number that an attacker drove up can be taken back."""

from __future__ import annotations

import pytest

from tests.agent.conformance.client_program import DONE, REFUSED, ClientProgram

pytestmark = pytest.mark.hours

KEPT = {
    "root": {"root": 1},
    "snapshot": {"root": 2, "timestamp": 2},
    "targets": {"root": 2, "timestamp": 2, "snapshot": 2},
}


@pytest.mark.parametrize("role", KEPT)
def test_file_of_another_version_than_its_name_is_refused(client: ClientProgram, role: str) -> None:
    repository = client.repository
    timestamp, snapshot = repository.mds["timestamp"].signed, repository.mds["snapshot"].signed
    repository.mds[role].signed.version += 1
    repository.publish("root", "targets", "snapshot", "timestamp")
    repository.served[f"2.{role}.json"] = repository.served.pop(f"3.{role}.json")
    if role != "root":  # its parent promises version 2 and vouches for no bytes
        promise = timestamp.snapshot_meta if role == "snapshot" else snapshot.meta["targets.json"]
        promise.version, promise.hashes, promise.length = 2, None, None
        if role == "targets":
            snapshot.version = 1
            repository.publish("snapshot")
        timestamp.version = 1
        repository.publish("timestamp")
    assert client.init() == DONE
    assert client.refresh() == REFUSED
    assert client.versions() == KEPT[role]


def test_new_snapshot_key_ends_versions_that_were_driven_up(client: ClientProgram) -> None:
    repository = client.repository
    targets = repository.targets("targets")
    assert client.init() == DONE
    repository.delegate("targets", "delegated")
    repository.publish("delegated")
    targets.version = 100
    repository.publish("targets", bump=False)
    repository.publish("snapshot", "timestamp")
    assert client.refresh() == DONE
    assert client.versions()["targets"] == 100

    repository.rotate("snapshot")
    targets.version = 1
    del repository.mds["snapshot"].signed.meta["delegated.json"]
    repository.publish("root")
    repository.publish("targets", bump=False)
    repository.publish("snapshot", "timestamp")
    assert client.refresh() == DONE
    assert client.versions()["targets"] == 1
