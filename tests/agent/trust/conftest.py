"""A device's client and a repository that it looks at, over a real socket."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.trust import refusals
from agent.trust.metadata_fetcher import Pace
from agent.trust.protocol import Failure, Refreshed, Request
from agent.trust.updater import answer
from tests.agent.trust.signed_repository import SignedRepository

NOW = 1_800_000_000.0
CODES = set(re.findall(r"(?m)(?:^ {4}|  )([a-z_]+)  +\w", refusals.__doc__ or "")) | {
    "disk_full",
    "busy",
    "bad_address",
}
PATIENT = Pace(deadline=60.0, window=30.0)  # a slow machine is no slow server
QUICK = Pace(deadline=5.0, window=0.4, minimum_bytes=1000)


class Device:
    """Its clock shows ``now``; everything it knows is in ``directory``."""

    def __init__(self, directory: Path, repository: SignedRepository) -> None:
        self.directory = directory
        self.repository = repository
        self.now = repository.now
        self.request = Request(directory=str(directory), url=repository.url, root=repository.first_root)

    def ask(self, *paths: str, pace: Pace = PATIENT, **changes: Any) -> Refreshed | Failure:
        request = msgspec.structs.replace(self.request, paths=list(paths), **changes)
        return answer(request, self.now, pace)

    def accepts(self, *paths: str, **changes: Any) -> Refreshed:
        told = self.ask(*paths, **changes)
        assert isinstance(told, Refreshed), told
        return told

    def refuses(self, *paths: str, **changes: Any) -> Failure:
        told = self.ask(*paths, **changes)
        assert isinstance(told, Failure), told
        assert told.code in CODES, f"{told.code} is not in the table of agent/trust/refusals.py"
        return told

    def versions(self, roles: Sequence[str] = ("root", "timestamp", "snapshot", "targets")) -> list[int]:
        """The versions on the disk, 0 for what is not there."""
        found = []
        for role in roles:
            path = self.directory / f"{role}.json"
            found.append(msgspec.json.decode(path.read_bytes())["signed"]["version"] if path.is_file() else 0)
        return found


@pytest.fixture
def repository() -> Iterator[SignedRepository]:
    made = SignedRepository(NOW)
    yield made
    made.close()


@pytest.fixture
def device(tmp_path: Path, repository: SignedRepository) -> Device:
    return Device(tmp_path / "trust", repository)
