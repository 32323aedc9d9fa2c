"""The database as a FastAPI dependency: the one that `app.py` put into the application's state."""

from __future__ import annotations

from starlette.requests import HTTPConnection

from controller.database.connection import Database


def database(connection: HTTPConnection) -> Database:
    """Return the application's database."""
    found = connection.app.state.database
    assert isinstance(found, Database), "app.py sets app.state.database before it serves"
    return found
