"""Refreshes: which files are asked for, in which order, and what stays when one cannot be had."""

from __future__ import annotations

import pytest
from tuf.api.metadata import MetaFile

from tests.agent.conformance.client_program import DONE, REFUSED, ClientProgram

pytestmark = pytest.mark.hours


def test_init_asks_for_nothing_and_refresh_for_four_files_in_order(lasting_client: ClientProgram) -> None:
    repository = lasting_client.repository
    assert lasting_client.init() == DONE
    assert repository.asked == []
    assert lasting_client.refresh() == DONE
    snapshot, targets = (repository.mds[role].signed.version for role in ("snapshot", "targets"))
    expected = ["2.root.json", "timestamp.json", f"{snapshot}.snapshot.json", f"{targets}.targets.json"]
    assert repository.asked == expected


def test_metadata_is_kept_byte_for_byte(client: ClientProgram) -> None:
    client.repository.served["timestamp.json"] += b" "
    assert client.init() == DONE
    assert client.refresh() == DONE
    assert client.trusts("timestamp") == client.repository.served["timestamp.json"]


def test_missing_timestamp_ends_the_refresh_after_one_request(client: ClientProgram) -> None:
    repository = client.repository
    assert client.init() == DONE
    assert client.refresh() == DONE
    del repository.served["timestamp.json"]
    assert client.refresh() == REFUSED
    assert repository.asked[-1] == "timestamp.json"
    assert repository.asked.count("timestamp.json") == 2


def test_server_that_hangs_up_at_the_timestamp_ends_the_refresh_there(client: ClientProgram) -> None:
    repository = client.repository
    assert client.init() == DONE
    assert client.refresh() == DONE
    repository.answers["timestamp.json"] = lambda _request: None
    assert client.refresh() == REFUSED
    assert repository.asked[-1] == "timestamp.json"


def test_timestamp_is_kept_when_its_snapshot_is_missing(client: ClientProgram) -> None:
    repository = client.repository
    assert client.init() == DONE
    assert client.refresh() == DONE
    repository.mds["timestamp"].signed.snapshot_meta = MetaFile(2)
    repository.publish("timestamp")
    assert client.refresh() == REFUSED
    assert client.versions() == {"root": 1, "snapshot": 1, "targets": 1, "timestamp": 2}
