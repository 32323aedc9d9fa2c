"""Presence: the judgement, and that the database's filter says the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import text

from controller.database.connection import Database
from controller.devices import list_store, store
from controller.devices.enrolment import Token
from controller.devices.list_store import DeviceFilter
from controller.devices.presence import LATE_AFTER, LOST_AFTER, PresenceState, presence, supersedes
from controller.tenants.store import add_tenant

NOW = 10_000.0
TABLE = [
    (None, False, PresenceState.LOST),
    (None, True, PresenceState.LOST),
    (NOW, True, PresenceState.ONLINE),
    (NOW, False, PresenceState.LOST),
    (NOW - LATE_AFTER, True, PresenceState.ONLINE),
    (NOW - LATE_AFTER - 0.1, True, PresenceState.LATE),
    (NOW - LOST_AFTER, True, PresenceState.LATE),
    (NOW - LOST_AFTER - 0.1, True, PresenceState.LOST),
    (NOW + 50, True, PresenceState.ONLINE),  # this machine's clock was set back
]


@pytest.mark.parametrize(("last_seen", "online", "state"), TABLE)
def test_table(last_seen: float | None, online: bool, state: PresenceState) -> None:
    judged = presence(last_seen, online, NOW)
    assert judged.state is state
    assert judged.reason


def test_the_filter_of_the_list_says_the_same(tmp_path: Path) -> None:
    db = Database(tmp_path / "state.db")
    db.migrate()
    with db.begin() as c:
        add_tenant(c, "default", NOW)
        store.add_join_token(c, Token("t", "default", "x", 100, NOW, ()), NOW)
        for number, (last_seen, online, _) in enumerate(TABLE):
            store.add_device(
                c,
                device=f"d-{number}",
                tenant="default",
                name="n",
                tags=[],
                public_key=str(number),
                join_token="t",
                now=NOW,
            )
            statement = text("UPDATE devices SET last_seen = :seen, online = :online WHERE id = :id")
            c.execute(statement, {"seen": last_seen, "online": online, "id": f"d-{number}"})
        for state in PresenceState:
            found = {row.id for row in list_store.page(c, "default", DeviceFilter(state=state), NOW)}
            assert found == {f"d-{number}" for number, row in enumerate(TABLE) if row[2] is state}


def test_a_late_will_of_an_older_connection_is_ignored() -> None:
    assert supersedes("b", 1, None, None)
    assert supersedes("b", 2, "b", 1)
    assert supersedes("b", 2, "b", 2)
    assert not supersedes("b", 1, "b", 2)
    assert supersedes("c", 1, "b", 2)
