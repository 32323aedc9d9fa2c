"""A client program and a signed repository that it looks at, over a real socket and by the real clock."""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent.conformance.client_program import ClientProgram
from tests.agent.trust.signed_repository import SignedRepository

DAY = 86_400


@pytest.fixture
def client(tmp_path: Path) -> Iterator[ClientProgram]:
    """Return a client of a new repository; it believes no root yet."""
    repository = SignedRepository(float(int(time.time())))
    yield ClientProgram(tmp_path, repository)
    repository.close()


@pytest.fixture(params=[False, True], ids=["plain", "issued"])
def lasting_client(client: ClientProgram, request: pytest.FixtureRequest) -> ClientProgram:
    """Return a client of a repository that lives thirty days, with `issued` as ours have it and without as others."""
    repository = client.repository
    if not request.param:
        repository.mds["timestamp"].signed.unrecognized_fields["issued"] = 0
        repository.publish("timestamp")
    for role in ("timestamp", "snapshot", "targets"):
        expires = datetime.datetime.fromtimestamp(repository.now + 30 * DAY, datetime.UTC)
        repository.mds[role].signed.expires = expires
    repository.release("targets")
    return client
