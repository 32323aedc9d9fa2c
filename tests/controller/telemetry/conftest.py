"""Real databases with enrolled devices."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import insert

from controller.database import tables
from controller.database.connection import Database
from controller.telemetry.series import Series

NOW = 1_800_000_000.0
DEVICES = ["d-" + letter * 26 for letter in "abc"]


def make_database(path: Path) -> Database:
    database = Database(path)
    database.migrate()
    with database.begin() as connection:
        for tenant in ("acme", "other"):
            connection.execute(insert(tables.tenants).values(name=tenant, created=NOW))
        connection.execute(
            insert(tables.join_tokens).values(
                id="token", tenant="acme", secret_sha256="", uses_left=9, tags=[], created=NOW, expires=NOW
            )
        )
        for device in DEVICES:
            connection.execute(
                insert(tables.devices).values(
                    id=device,
                    tenant="acme",
                    name=device[2],
                    tags=[],
                    public_key=device,
                    join_token="token",
                    enrolled=NOW,
                )
            )
    return database


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = make_database(tmp_path / "state.db")
    yield database
    database.close()


@pytest.fixture
def series(tmp_path: Path) -> Iterator[Series]:
    series = Series(tmp_path / "series.db")
    yield series
    series.close()
