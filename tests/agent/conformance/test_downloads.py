"""Targets: what lies in the directory of downloads is what the newest metadata vouches for, byte for byte."""

from __future__ import annotations

import pytest

from tests.agent.conformance.client_program import DONE, REFUSED, ClientProgram

pytestmark = pytest.mark.hours


def test_changed_and_new_targets_are_fetched_and_changed_bytes_are_not(lasting_client: ClientProgram) -> None:
    repository = lasting_client.repository
    repository.add("targets", "file", b"first")
    repository.release("targets")
    assert lasting_client.init() == DONE
    assert lasting_client.download("file") == DONE
    added: list[bytes] = []
    for number in range(4):
        added.append(b"added %d" % number)
        changed = repository.add("targets", "file", b"changed %d" % number)
        repository.add("targets", f"added-{number}", added[-1])
        repository.release("targets")
        assert lasting_client.download("file") == DONE
        assert lasting_client.download(f"added-{number}") == DONE
        assert lasting_client.downloaded() == [*added, b"changed %d" % number]
        repository.served[f"{changed.hashes['sha256']}.file"] = b"evil"
        lasting_client.download("file")
        assert lasting_client.downloaded() == [*added, b"changed %d" % number]


def test_target_with_changed_bytes_is_refused(client: ClientProgram) -> None:
    repository = client.repository
    target = repository.add("targets", "file", b"good")
    repository.release("targets")
    repository.served[f"{target.hashes['sha256']}.file"] = b"evil"
    assert client.init() == DONE
    assert client.download("file") == REFUSED
    assert client.downloaded() == []


def test_target_whose_digest_nobody_can_compute_is_refused(lasting_client: ClientProgram) -> None:
    repository = lasting_client.repository
    target = repository.add("targets", "file", b"content")
    digest = target.hashes["sha256"]
    target.hashes = {"unknown-hash": digest}
    repository.release("targets")
    assert lasting_client.init() == DONE
    assert lasting_client.download("file") == REFUSED
    assert lasting_client.downloaded() == []


def test_target_that_is_there_is_not_fetched_again(lasting_client: ClientProgram) -> None:
    repository = lasting_client.repository
    repository.add("targets", "file", b"content")
    repository.release("targets")
    assert lasting_client.init() == DONE
    assert lasting_client.download("file") == DONE
    assert lasting_client.download("file") == DONE
    assert len([name for name in repository.asked if name.endswith(".file")]) == 1


def test_repository_without_versions_in_its_file_names_is_read(lasting_client: ClientProgram) -> None:
    repository = lasting_client.repository
    repository.root.consistent_snapshot = False
    repository.publish("root")
    repository.add("targets", "directory/file", b"content")
    repository.release("targets")
    for role in ("snapshot", "targets"):
        version = repository.mds[role].signed.version
        repository.served[f"{role}.json"] = repository.served[f"{version}.{role}.json"]
    repository.served["directory/file"] = b"content"
    assert lasting_client.init() == DONE
    assert lasting_client.download("directory/file") == DONE
    assert lasting_client.downloaded() == [b"content"]
