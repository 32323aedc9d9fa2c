"""What a device believes of its clock, and what signed metadata does to that."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.trust import clock as clocks
from agent.trust.clock import FAR_AHEAD, RELEASED, SLACK, confirm, judge, raised
from agent.trust.floor import keep_floor, read_floor
from tests.agent.trust.conftest import NOW, Device
from tests.agent.trust.signed_repository import SignedRepository

DAY = 86_400.0


@pytest.mark.parametrize(
    ("now", "floor", "suspect"),
    [
        (0.0, RELEASED, True),
        (RELEASED - SLACK - 1, RELEASED, True),
        (RELEASED - SLACK, RELEASED, False),
        (RELEASED + FAR_AHEAD, RELEASED, False),
        (RELEASED + FAR_AHEAD + 1, RELEASED, True),
        (0.0, 0.0, False),
        (1e12, 0.0, False),
        (-1e18, RELEASED, True),
        (1e18, RELEASED, True),
    ],
)
def test_a_clock_before_the_floor_or_years_after_it_is_suspect(now: float, floor: float, suspect: bool) -> None:
    clock = judge(now, floor)
    assert clock.suspect == suspect
    assert bool(clock.reason) == suspect
    assert ("NTP" in clock.reason) == suspect
    assert clock.reference == max(now, floor)
    assert clock.ahead == (suspect and now > floor)


def test_the_release_is_not_in_the_future_of_the_build_machine_and_is_a_whole_day() -> None:
    import time

    assert RELEASED % DAY == 0
    assert time.time() + DAY > RELEASED


def test_the_floor_follows_what_was_signed_within_what_other_keys_allow() -> None:
    assert raised(10.0, 20.0, (100.0, 200.0)) == 20.0
    assert raised(10.0, 5.0, (100.0, 200.0)) == 10.0
    assert raised(10.0, 1e15, (100.0, 200.0)) == 100.0
    assert raised(10.0, 0.0, (100.0,)) == raised(10.0, -5.0, (100.0,)) == 10.0


def test_fresh_metadata_settles_a_doubt_about_the_future_but_none_about_the_past() -> None:
    later = RELEASED + 2 * FAR_AHEAD
    assert judge(later, RELEASED).suspect
    assert not confirm(judge(later, RELEASED), RELEASED).suspect
    assert not confirm(judge(later, RELEASED), later - DAY).suspect
    assert confirm(judge(0.0, RELEASED), RELEASED).suspect


def test_the_floor_on_disk_only_grows_and_is_not_written_for_little(tmp_path: Path) -> None:
    assert read_floor(tmp_path) == 0.0
    keep_floor(tmp_path, NOW)
    keep_floor(tmp_path, NOW - DAY)
    keep_floor(tmp_path, NOW + 60)
    assert read_floor(tmp_path) == NOW
    keep_floor(tmp_path, NOW + DAY)
    assert read_floor(tmp_path) == NOW + DAY


@pytest.mark.parametrize("data", [b"", b"null", b'{"at": NaN}', b'{"at": -5}', b'{"at": 1e999}', b"\0" * 9000, b"[]"])
def test_a_floor_that_cannot_be_read_is_none(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "floor").write_bytes(data)
    assert read_floor(tmp_path) == 0.0
    keep_floor(tmp_path, NOW)
    assert read_floor(tmp_path) == NOW


# Against a repository


def test_a_board_in_1970_takes_fresh_metadata_and_says_that_its_clock_is_wrong(device: Device) -> None:
    device.now = 0.0
    told = device.accepts(earliest=NOW - 10 * DAY)
    assert told.clock.suspect
    assert "1970-01-01" in told.clock.reason
    assert told.clock.floor == NOW


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets", "root"])
def test_a_board_in_1970_is_not_fooled_by_what_expired_before_the_floor(
    device: Device, repository: SignedRepository, role: str
) -> None:
    repository.expire(role, seconds_ago=5 * DAY)
    repository.publish(*(("root",) if role == "root" else ()))
    repository.release("targets")
    device.now = 0.0
    assert device.refuses(earliest=NOW - DAY).code == "expired"


def test_the_signed_time_of_the_last_refresh_holds_after_the_clock_fell_back(
    device: Device, repository: SignedRepository
) -> None:
    device.accepts()
    stale = dict(repository.served)
    repository.advance(30 * DAY)
    device.now = repository.now
    device.accepts()
    assert read_floor(device.directory) == repository.now
    for name in ("timestamp.json", "snapshot.json"):
        (device.directory / name).unlink()
    repository.served = stale
    device.now = NOW
    failure = device.refuses()
    assert failure.code == "expired"


def test_a_clock_years_ahead_is_blamed_before_the_metadata_is(device: Device) -> None:
    device.accepts()
    device.now += 3 * FAR_AHEAD
    failure = device.refuses()
    assert failure.code == "clock_suspect"
    assert "NTP" in failure.message


def test_years_on_a_shelf_are_over_with_the_first_fresh_metadata(device: Device, repository: SignedRepository) -> None:
    later = repository.now + 3 * FAR_AHEAD
    repository.now = later
    for role in ("root", "targets"):
        repository.mds[role].signed.expires = repository._in(role)
    repository.publish("root", "targets")
    repository.advance(0)
    device.now = later
    assert clocks.judge(later, NOW).suspect
    told = device.accepts(earliest=NOW)
    assert not told.clock.suspect
    assert told.clock.floor == later


@pytest.mark.parametrize("issued", [10**30, 10**400, 10**18, -1, True, "soon", None, [1]])
def test_a_signer_that_lies_about_the_time_moves_the_floor_no_further_than_the_offline_keys_allow(
    device: Device, repository: SignedRepository, issued: object
) -> None:
    repository.mds["timestamp"].signed.unrecognized_fields["issued"] = (
        int(issued) if isinstance(issued, float) else issued
    )
    repository.publish("timestamp")
    told = device.accepts()
    assert read_floor(device.directory) in (0.0, NOW + 90 * DAY)
    assert told.clock.floor in (0.0, NOW + 90 * DAY)
