"""Expiry: what is over is refused by the client's clock, and what lay on its disk does not hinder what is new."""

from __future__ import annotations

import datetime

import pytest

from tests.agent.conformance.client_program import DONE, REFUSED, ClientProgram
from tests.agent.trust.signed_repository import SignedRepository

pytestmark = pytest.mark.hours

DAY = 86_400


def end_in(repository: SignedRepository, role: str, days: float) -> None:
    """Let ``role`` end this long from now. Publish it afterwards."""
    moment = datetime.datetime.fromtimestamp(repository.now + days * DAY, datetime.UTC)
    repository.mds[role].signed.expires = moment


def test_expired_timestamp_on_disk_is_followed_by_a_new_one(lasting_client: ClientProgram) -> None:
    repository = lasting_client.repository
    end_in(repository, "timestamp", 7)
    repository.publish("timestamp")
    assert lasting_client.init() == DONE
    assert lasting_client.refresh() == DONE
    end_in(repository, "timestamp", 21)
    repository.release("targets")
    assert lasting_client.refresh(at=repository.now + 18 * DAY) == DONE
    assert lasting_client.versions()["targets"] == repository.mds["targets"].signed.version
    assert lasting_client.refresh(at=repository.now + 25 * DAY) == REFUSED


def test_clock_that_goes_back_blocks_nothing(lasting_client: ClientProgram) -> None:
    now = lasting_client.repository.now
    assert lasting_client.init() == DONE
    assert lasting_client.refresh(at=now + 18 * DAY) == DONE
    assert lasting_client.refresh(at=now + 45 * DAY) == REFUSED
    assert lasting_client.refresh() == DONE
    assert lasting_client.refresh(at=now - 400 * DAY) == DONE


def test_delegated_role_on_disk_that_ended_is_refused_until_it_is_new(lasting_client: ClientProgram) -> None:
    repository = lasting_client.repository
    later = repository.now + 18 * DAY
    repository.delegate("targets", "delegated", ["directory/*"])
    end_in(repository, "delegated", 7)
    repository.add("delegated", "directory/1", b"1")
    repository.add("delegated", "directory/2", b"2")
    repository.release("delegated", "targets")
    assert lasting_client.init() == DONE
    assert lasting_client.download("directory/1") == DONE
    assert lasting_client.download("directory/2", at=later) == REFUSED
    assert lasting_client.downloaded() == [b"1"]
    end_in(repository, "delegated", 21)
    repository.release("delegated")
    assert lasting_client.download("directory/2", at=later) == DONE
    assert lasting_client.downloaded() == [b"1", b"2"]


def test_delegated_role_that_was_never_seen_fresh_is_not_kept(lasting_client: ClientProgram) -> None:
    repository = lasting_client.repository
    repository.delegate("targets", "delegated", ["directory/*"])
    repository.expire("delegated")
    repository.add("delegated", "directory/1", b"1")
    repository.release("delegated", "targets")
    assert lasting_client.init() == DONE
    assert lasting_client.refresh() == DONE
    assert lasting_client.download("directory/1") == REFUSED
    assert lasting_client.downloaded() == []
    assert lasting_client.versions().keys() == {"root", "timestamp", "snapshot", "targets"}


def test_expired_root_is_kept_and_nothing_below_it_is_taken(lasting_client: ClientProgram) -> None:
    repository = lasting_client.repository
    assert lasting_client.init() == DONE
    assert lasting_client.refresh() == DONE
    repository.publish("root")
    assert lasting_client.refresh() == DONE
    before = lasting_client.versions()
    repository.expire("root")
    repository.publish("root")
    repository.release("targets")
    assert lasting_client.refresh() == REFUSED
    assert lasting_client.versions() == {**before, "root": 3}
