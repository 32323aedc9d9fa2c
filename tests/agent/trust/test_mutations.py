"""Metadata that somebody changed on its way, anywhere: refused, or without any effect."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.trust.protocol import Refreshed
from tests.agent.trust.conftest import NOW, Device
from tests.agent.trust.signed_repository import SignedRepository

PATHS = ("builds/pi5/digits/b-1.json", "builds/pi5/digits/b-2.json", "software/agent/1")
FILES = ("2.root.json", "timestamp.json", "2.snapshot.json", "2.targets.json", "1.pi5.json", "1.software.json")


@pytest.fixture(scope="module")
def repository() -> Iterator[SignedRepository]:
    made = SignedRepository(NOW)
    made.publish("root")
    made.delegate("targets", "pi5", ["builds/pi5/*/*"], terminating=True)
    made.delegate("targets", "software", ["software/*/*"], terminating=True, threshold=2)
    made.add("pi5", PATHS[0], b"one", {"precision": "int8"})
    made.add("software", PATHS[2], b"agent")
    made.release("pi5", "software", "targets")
    yield made
    made.close()


def what_holds(told: Refreshed) -> object:
    return told.root, told.timestamp, told.snapshot, told.targets, told.expires, told.issued, told.found


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(FILES),
    at=st.floats(0, 1, exclude_max=True),
    cut=st.integers(0, 12),
    put=st.one_of(st.binary(max_size=8), st.sampled_from([b"0", b"9", b"}", b'"', b",", b"null", b"[", b"\n", b"1e9"])),
)
def test_a_change_anywhere_is_refused_or_changes_nothing(
    repository: SignedRepository, name: str, at: float, cut: int, put: bytes
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        honest = what_holds(Device(Path(directory) / "honest", repository).accepts(*PATHS))
        data = repository.served[name]
        start = int(at * len(data))
        repository.served[name] = data[:start] + put + data[start + cut :]
        device = Device(Path(directory) / "attacked", repository)
        try:
            told = device.ask(*PATHS)
        finally:
            repository.served[name] = data
        if isinstance(told, Refreshed):
            assert what_holds(told) == honest
        assert what_holds(device.accepts(*PATHS)) == honest  # and nothing bad was kept
