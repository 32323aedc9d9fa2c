"""Metadata that somebody changed on its way, anywhere: refused, or without any effect."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tuf.api.metadata import MetaFile

from agent.trust.protocol import Refreshed
from tests.agent.trust.conftest import NOW, Device
from tests.agent.trust.signed_repository import SignedRepository

PATHS = ("builds/pi5/digits/b-1.json", "builds/pi5/digits/b-2.json", "software/agent/1")
FILES = ("2.root.json", "timestamp.json", "3.snapshot.json", "2.targets.json", "1.pi5.json", "1.software.json")


@pytest.fixture(scope="module")
def repository() -> Iterator[SignedRepository]:
    made = SignedRepository(NOW)
    made.publish("root")
    made.delegate("targets", "pi5", ["builds/pi5/*/*"], terminating=True)
    made.delegate("targets", "software", ["software/*/*"], terminating=True, threshold=2)
    made.add("pi5", PATHS[0], b"one", {"precision": "int8"})
    made.add("software", PATHS[2], b"agent")
    made.release("pi5", "software", "targets")
    for name, about in made.mds["snapshot"].signed.meta.items():
        made.mds["snapshot"].signed.meta[name] = MetaFile(about.version)  # no hash: the signatures alone must hold
    made.publish("snapshot")
    made.mds["timestamp"].signed.snapshot_meta = MetaFile(3)
    made.publish("timestamp")
    yield made
    made.close()


def what_holds(told: Refreshed) -> object:
    return told.root, told.timestamp, told.snapshot, told.targets, told.expires, told.issued, told.found


def places(document: Any) -> list[tuple[Any, Any]]:
    """Every container of the document with each of its keys."""
    keys = list(document) if isinstance(document, dict) else range(len(document)) if isinstance(document, list) else ()
    return [*((document, key) for key in keys), *(place for key in keys for place in places(document[key]))]


def altered(data: bytes, rng: random.Random) -> bytes:
    """Return well-formed metadata in which one thing is another than was signed."""
    document = json.loads(data)
    container, key = rng.choice(places(document["signed"]))
    value = container[key]
    if isinstance(value, bool):
        container[key] = not value
    elif isinstance(value, int):
        container[key] = value + rng.choice([-1, 1, 1000])
    elif isinstance(value, str) and value:
        at = rng.randrange(len(value))
        container[key] = value[:at] + rng.choice("0123456789abcdef*") + value[at + 1 :]
    elif isinstance(container, dict) and rng.random() < 0.5:
        container[f"{key}x"] = container.pop(key)
    else:
        del container[key]
    return json.dumps(document).encode()


def check(repository: SignedRepository, name: str, changed: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        honest = what_holds(Device(Path(directory) / "honest", repository).accepts(*PATHS))
        data = repository.served[name]
        repository.served[name] = changed
        device = Device(Path(directory) / "attacked", repository)
        try:
            told = device.ask(*PATHS)
        finally:
            repository.served[name] = data
        if isinstance(told, Refreshed):
            assert what_holds(told) == honest
        assert what_holds(device.accepts(*PATHS)) == honest  # and nothing bad was kept


SETTINGS = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@SETTINGS
@given(name=st.sampled_from(FILES), rng=st.randoms(use_true_random=False))
def test_another_value_anywhere_is_refused(repository: SignedRepository, name: str, rng: random.Random) -> None:
    check(repository, name, altered(repository.served[name], rng))


@SETTINGS
@given(
    name=st.sampled_from(FILES),
    at=st.floats(0, 1, exclude_max=True),
    cut=st.integers(0, 12),
    put=st.one_of(st.binary(max_size=8), st.sampled_from([b"0", b"9", b"}", b'"', b",", b"null", b"[", b"\n", b"1e9"])),
)
def test_other_bytes_anywhere_are_refused_or_change_nothing(
    repository: SignedRepository, name: str, at: float, cut: int, put: bytes
) -> None:
    data = repository.served[name]
    start = int(at * len(data))
    check(repository, name, data[:start] + put + data[start + cut :])
