"""The registry: followed while it is there, kept while it is not."""

from __future__ import annotations

import shutil
import time

import pytest
from sqlalchemy import insert, update
from sqlalchemy.exc import OperationalError

from controller.database import tables
from controller.errors import UnauthenticatedError, UnavailableError
from controller.routing.fleet_view import FleetView
from controller.routing.store import RegistryFile
from controller.tenants import tokens


@pytest.fixture
def view(registry):
    made = FleetView(registry[0].path)
    yield made
    made.close()


async def test_before_the_first_look_nothing_is_known(view, registry):
    assert not view.ready
    with pytest.raises(UnavailableError):
        view.principal(registry[1], time.time())
    await view.refresh()
    assert view.ready
    assert view.principal(registry[1], time.time()).role == "admin"


async def test_a_principal_is_the_one_that_the_api_would_see(view, registry):
    database, _ = registry
    with database.begin() as c:
        text = tokens.make(c, tenant="other", name="ci", role="operator", now=time.time()).text
    await view.refresh()
    with database.read() as c:
        assert view.principal(text, time.time()) == tokens.verify(c, text, time.time())


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t[:-1] + ("B" if t[-1] == "A" else "A"),
        lambda t: t[3:],
        lambda t: "x" + t,
        lambda t: t + ".a",
        lambda t: "",
    ],
)
async def test_a_token_that_differs_is_not_believed(view, registry, change):
    await view.refresh()
    with pytest.raises(UnauthenticatedError):
        view.principal(change(registry[1]), time.time())


async def test_changes_are_seen_and_told(view, registry):
    database, _ = registry
    told = []
    view.subscribe(lambda: told.append(1))
    await view.refresh()
    await view.refresh()
    assert len(told) == 1
    assert not view.has_model("default", "other-model", None)
    with database.begin() as c:
        c.execute(insert(tables.models).values(tenant="default", name="other-model", created=1.0))
        c.execute(
            insert(tables.model_versions).values(
                tenant="default", model="other-model", version=3, source_sha256="", data_sha256="", created=1.0
            )
        )
    await view.refresh()
    assert len(told) == 2
    assert view.has_model("default", "other-model", None)
    assert view.has_model("default", "other-model", "3")
    assert not view.has_model("default", "other-model", "4")
    assert not view.has_model("other", "other-model", None)


def test_what_devices_report_all_the_time_does_not_build_the_registry_anew(registry):
    database, _ = registry
    file = RegistryFile(database.path)
    with database.begin() as c:
        c.execute(
            insert(tables.devices).values(
                id="d-a",
                tenant="default",
                name="a",
                tags=[],
                public_key="k",
                join_token="join-default",
                enrolled=1.0,
                online=True,
                sequence=0,
            )
        )
    assert file.read_if_changed().devices["d-a"].revoked is False
    with database.begin() as c:
        c.execute(update(tables.devices).values(last_seen=5.0))
    assert file.read_if_changed() is None
    with database.begin() as c:
        c.execute(update(tables.devices).values(revoked=6.0))
    assert file.read_if_changed().devices["d-a"].revoked is True
    file.close()


async def test_the_last_view_holds_while_the_database_is_away(view, registry):
    database, token = registry
    await view.refresh()
    database.close()
    database.path.rename(database.path.with_suffix(".away"))
    await view.refresh()
    assert view.principal(token, time.time()).tenant == "default"
    database.path.with_suffix(".away").rename(database.path)
    with database.begin() as c:
        text = tokens.make(c, tenant="default", name="new", role="viewer", now=time.time()).text
    await view.refresh()
    assert view.principal(text, time.time()).name == "new"


async def test_a_database_put_in_its_place_is_noticed(view, registry, template, tmp_path):
    database, _ = registry
    with database.begin() as c:
        text = tokens.make(c, tenant="default", name="gone", role="viewer", now=time.time()).text
    await view.refresh()
    assert view.principal(text, time.time())
    database.close()
    for suffix in ("-wal", "-shm"):
        database.path.with_name(database.path.name + suffix).unlink(missing_ok=True)
    shutil.copy(template[0], tmp_path / "backup.db")
    (tmp_path / "backup.db").replace(database.path)
    await view.refresh()
    with pytest.raises(UnauthenticatedError):
        view.principal(text, time.time())


def test_the_registry_cannot_be_written(registry):
    file = RegistryFile(registry[0].path)
    file.read_if_changed()
    with file._engine.connect() as connection, pytest.raises(OperationalError, match="readonly"):
        connection.execute(insert(tables.tenants).values(name="x", created=0.0))
    file.close()


async def test_a_damaged_file_is_said_and_survived(tmp_path):
    path = tmp_path / "state.db"
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(UnavailableError, match="cannot be read"):
        RegistryFile(path).read_if_changed()
    view = FleetView(path)
    await view.refresh()
    assert not view.ready
    view.close()
