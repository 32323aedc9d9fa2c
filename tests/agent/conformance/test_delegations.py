"""Delegations: roles are asked in the order of the framework's search, each once, and only where its paths match."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import quote

import pytest

from tests.agent.conformance.client_program import DONE, REFUSED, ClientProgram
from tests.agent.trust.signed_repository import SignedRepository

pytestmark = pytest.mark.hours

TOP_LEVEL_FILES = 4  # the next root, timestamp, snapshot and targets


class Edge(NamedTuple):
    """One delegation."""

    parent: str
    child: str
    terminating: bool = False
    path: str = "*"


A, B = Edge("targets", "A"), Edge("targets", "B")
GRAPHS = {
    "one": ([A], "A"),
    "two beside each other": ([A, B], "AB"),
    "two levels": ([A, B, Edge("B", "C")], "ABC"),
    "two below the first": ([A, B, Edge("A", "C"), Edge("A", "D")], "ACDB"),
    "three levels": ([A, B, Edge("A", "C"), Edge("C", "D")], "ACDB"),
    "terminating at the second level": ([A, B, Edge("A", "C", terminating=True), Edge("A", "D")], "AC"),
    "terminating above the third level": ([A, B, Edge("A", "C", terminating=True), Edge("C", "D")], "ACD"),
    "no match at the first level": ([Edge("targets", "A", path="*.py"), B, Edge("A", "C")], "B"),
    "no match at the second level": ([A, B, Edge("A", "C", path="*.py"), Edge("C", "D")], "AB"),
    "circle": ([A, B, Edge("B", "C"), Edge("C", "D"), Edge("D", "B")], "ABCD"),
    "two parents": ([A, B, Edge("B", "C"), Edge("A", "C")], "ACB"),
    "two parents, the first with other paths": ([A, B, Edge("B", "C"), Edge("A", "C", path="*.py")], "ABC"),
}
FOUND = {
    "targetfile": "",
    "README.md": "A",
    "releases/x/x_v1": "BC",
    "releases/y/y_v1.zip": "BD",
}
UNREACHABLE = "releases/z/z_v1.zip"  # D names it, but B gives D other paths


def roles_asked(repository: SignedRepository) -> list[str]:
    """Return the metadata files that were asked for after those of the top level."""
    return [name for name in repository.asked[TOP_LEVEL_FILES:] if name.endswith(".json")]


@pytest.fixture
def projects(client: ClientProgram) -> ClientProgram:
    """Return a client whose repository has documents in A, and releases in C and D below B."""
    repository = client.repository
    repository.delegate("targets", "A", ["*.doc", "*.md"])
    repository.delegate("targets", "B", ["releases/*/*"])
    repository.delegate("B", "C", ["releases/x/*"])
    repository.delegate("B", "D", ["releases/y/*.zip"])
    for path, asked in FOUND.items():
        repository.add(asked[-1:] or "targets", path, path.encode())
    repository.add("D", UNREACHABLE, UNREACHABLE.encode())
    repository.release("A", "B", "C", "D", "targets")
    return client


@pytest.mark.parametrize(("edges", "order"), GRAPHS.values(), ids=list(GRAPHS))
def test_search_for_what_nobody_has_asks_all_that_may_have_it_in_order(
    client: ClientProgram, edges: list[Edge], order: str
) -> None:
    for edge in edges:
        client.repository.delegate(edge.parent, edge.child, [edge.path], terminating=edge.terminating)
    client.repository.release(*sorted({edge.child for edge in edges}), "targets")
    assert client.init() == DONE
    assert client.download("missing") == REFUSED
    assert client.repository.asked[TOP_LEVEL_FILES:] == [f"1.{role}.json" for role in order]


@pytest.mark.parametrize("path", FOUND)
def test_search_ends_at_the_role_that_has_the_target(projects: ClientProgram, path: str) -> None:
    assert projects.init() == DONE
    assert projects.download(path) == DONE
    assert projects.downloaded() == [path.encode()]
    assert roles_asked(projects.repository) == [f"1.{role}.json" for role in FOUND[path]]


def test_role_is_not_asked_for_paths_that_it_was_not_given(projects: ClientProgram) -> None:
    assert projects.init() == DONE
    assert projects.download(UNREACHABLE) == REFUSED
    assert projects.downloaded() == []
    assert roles_asked(projects.repository) == ["1.B.json"]


@pytest.mark.parametrize("role", ["?", "#", "/delegatedrole", "../delegatedrole"])
def test_role_name_stays_one_file_name(lasting_client: ClientProgram, role: str) -> None:
    repository = lasting_client.repository
    repository.delegate("targets", role)
    repository.release(role, "targets")
    assert lasting_client.init() == DONE
    assert lasting_client.download("nonexistent target") == REFUSED
    assert f"1.{quote(role, safe='')}.json" in repository.asked
    assert len(lasting_client.versions()) == TOP_LEVEL_FILES + 1
