from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.journeys.local_fleet import LocalFleet, start


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFleet]:
    """Three agents that serve the sample model."""
    started = start(tmp_path_factory.mktemp("fleet"), 3)
    yield started
    assert started.stop() == 0
    assert started.processes() == []
