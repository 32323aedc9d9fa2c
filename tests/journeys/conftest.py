from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.journeys.local_fleet import LocalFleet, start


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFleet]:
    """Three agents that serve the sample model. Shared: a test leaves the three devices serving it."""
    started = start(tmp_path_factory.mktemp("fleet"), 3)
    yield started
    assert started.stop() == 0
    assert started.processes() == []


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of the shared fleet run in one worker, so that it is started once."""
    for item in items:
        if "fleet" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("fleet"))
