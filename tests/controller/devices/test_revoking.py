"""Revocations are carried to the broker: the list first, then the cuts; whatever fails is tried again."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from controller.database.connection import Database
from controller.devices.authority import Authority
from controller.devices.revocation import CUTS
from controller.devices.revoking import Revoking
from controller.errors import UnavailableError


class Broker:
    """Notes in which order it was told what, and what was on the list at that time."""

    def __init__(self, authority: Authority) -> None:
        self.authority = authority
        self.told: list[tuple[str, int]] = []
        self.away = False

    def _note(self, what: str) -> None:
        if self.away:
            raise UnavailableError("away", "broker_away")
        held = self.authority.held_list()
        self.told.append((what, len(held.serials) if held else -1))

    def reload(self) -> None:
        self._note("reload")

    async def cut(self, device: str) -> None:
        self._note(device)


@pytest.fixture
def broker(api: Any) -> Broker:
    return Broker(api.fleet.authority)


def revoking(api: Any, broker: Broker, ticks: list[float]) -> Revoking:
    return Revoking(api.db, api.fleet.authority, broker.reload, broker.cut, monotonic=lambda: ticks[0])


async def test_the_list_comes_before_the_cut_and_cuts_are_repeated(api: Any, broker: Broker) -> None:
    first, second = api.enrolled(), api.enrolled()
    ticks = [0.0]
    work = revoking(api, broker, ticks)
    await work.look()
    assert broker.told == [("reload", 0)]
    assert api.admin.delete(f"/api/v1/devices/{first}").status_code == 204
    await work.look()
    await work.look()
    assert broker.told[1:] == [("reload", 1), (first, 1)]
    ticks[0] = 1.0
    assert api.admin.delete(f"/api/v1/devices/{second}").status_code == 204
    await work.look()
    assert broker.told[3:] == [("reload", 2), (second, 2)]
    for tick in CUTS[1:]:
        ticks[0] = 1.0 + tick
        await work.look()
    assert [what for what, _ in broker.told].count(first) == len(CUTS)
    assert [what for what, _ in broker.told].count(second) == len(CUTS)


async def test_all_certificates_of_a_device_are_on_the_list(api: Any, broker: Broker, make_key: Any) -> None:
    token, key = api.join_token(), make_key()
    device = api.enrol(token, key).json()["device"]
    assert api.enrol(token, key).json()["device"] == device  # it asked again: another certificate
    with api.db.read() as c:
        serials = {row.serial for row in c.exec_driver_sql("select serial from certificates")}
    api.admin.delete(f"/api/v1/devices/{device}")
    await revoking(api, broker, [0.0]).look()
    held = api.fleet.authority.held_list()
    assert held is not None
    assert held.serials == serials


async def test_a_broker_that_was_away_and_a_restart_miss_nothing(api: Any, broker: Broker) -> None:
    device = api.enrolled()
    api.admin.delete(f"/api/v1/devices/{device}")
    work = revoking(api, broker, [0.0])
    broker.away = True
    for _ in range(2):
        with pytest.raises(UnavailableError):
            await work.look()
    broker.away = False
    await work.look()
    assert broker.told == [("reload", 1), (device, 1)]
    again = Broker(api.fleet.authority)
    await revoking(api, again, [0.0]).look()  # as after a restart: nobody knows how far the first one came
    assert again.told == [("reload", 1), (device, 1)]


async def test_a_flooding_device_is_kept_out_for_a_while_and_longer_the_next_time(api: Any, broker: Broker) -> None:
    device, other = api.enrolled(), api.enrolled()
    ticks = [0.0]
    work = revoking(api, broker, ticks)
    work.silence(device)
    await work.look()
    assert broker.told == [("reload", 1), (device, 1)]
    assert work.silenced() == [device]
    api.admin.delete(f"/api/v1/devices/{other}")
    await work.look()
    assert broker.told[2:] == [("reload", 2), (other, 2)]
    ticks[0] = 61.0
    await work.look()
    assert ("reload", 1) in broker.told[4:]  # it is taken again, and who is revoked is not
    assert work.silenced() == []
    work.silence(device)
    await work.look()
    assert (device, 2) in broker.told[-2:]
    ticks[0] = 61.0 + 119
    assert work.silenced() == [device]


async def test_it_is_carried_out_within_a_moment_of_the_commit(api: Any, broker: Broker) -> None:
    device = api.enrolled()
    task = asyncio.create_task(revoking(api, broker, [0.0]).run())
    try:
        async with asyncio.timeout(10):
            while not broker.told:
                await asyncio.sleep(0.01)
            began = time.monotonic()
            await asyncio.to_thread(api.admin.delete, f"/api/v1/devices/{device}")
            while (device, 1) not in broker.told:
                await asyncio.sleep(0.01)
        assert time.monotonic() - began < 5.0
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_broken_or_missing_list_is_made_anew(api: Any, broker: Broker) -> None:
    device = api.enrolled()
    api.admin.delete(f"/api/v1/devices/{device}")
    work = revoking(api, broker, [0.0])
    await work.look()
    for content in (None, b"", b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"):
        file = api.fleet.authority.list_file
        file.unlink() if content is None else file.write_bytes(content)
        await work.look()
        held = api.fleet.authority.held_list()
        assert held is not None
        assert len(held.serials) == 1


def test_the_database_is_asked_for_certificates_that_still_matter(api: Any) -> None:
    from controller.devices import store

    device = api.enrolled()
    database: Database = api.db
    with database.read() as c:
        assert store.revoked_certificates(c, 0.0) == []
    api.admin.delete(f"/api/v1/devices/{device}")
    with database.read() as c:
        assert [row[0] for row in store.revoked_certificates(c, 0.0)] == [device]
        assert store.revoked_certificates(c, time.time() + 40 * 86_400) == []
