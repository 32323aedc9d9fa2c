from __future__ import annotations

import dataclasses

import pytest

from controller.console.attention import (
    CERTIFICATE_SECONDS,
    DAY,
    LOW_DISK_BYTES,
    DeviceSeen,
    JobSeen,
    RolloutSeen,
    Standing,
    Suspect,
    attention,
)

NOW = 1_700_000_000.0
QUIET = Standing(0, 0, 0, 0, 0, 0, None, (), (), ())
WELL = DeviceSeen((), 1e10, 1e9, 100.0, 0.0)


def test_a_fleet_that_is_well_needs_nobody() -> None:
    running = RolloutSeen("r1", "digits-1", "RUNNING", NOW, ())
    done = RolloutSeen("r2", "digits-0", "SUCCEEDED", NOW, ())
    assert attention(dataclasses.replace(QUIET, devices=(WELL,) * 3, rollouts=(running, done)), NOW) == []


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"lost": 1}, "lost", "1 device lost"),
        ({"late": 1200}, "late", "1,200 devices late"),
        ({"serving_down": 2}, "down", "serving is down on 2 devices"),
        ({"suspects": (Suspect("d-1", "copied", "two machines use it", NOW),)}, "copied", "d-1: two machines use it"),
        ({"suspects": (Suspect("d-1", "flood", "it sends too much"),)}, "flood", "d-1: it sends too much"),
        ({"authority_ends": NOW + 100 * DAY}, "authority", "ends in 100 days: replace it"),
        ({"authority_ends": NOW - 1}, "authority", "has ended"),
        ({"own_certificates_end": NOW + 29 * DAY}, "own-certificate", "restart the controller"),
        ({"inconsistent": 1}, "inconsistent", "neither finish an update nor go back"),
        ({"noticing": 2}, "notice", "2 devices cannot take new builds"),
        ({"signatures": (("targets", NOW + DAY),)}, "signature", "targets expires soon"),
        ({"signatures": (("root", NOW - 1), ("targets", NOW + DAY))}, "signature", "root, targets has expired"),
        ({"expiring": 3, "first_expiry": NOW + CERTIFICATE_SECONDS / 2}, "certificate", "expire within a week"),
        ({"expiring": 3, "first_expiry": NOW - 1}, "certificate", "have expired"),
        ({"devices": (dataclasses.replace(WELL, throttling=("under_voltage",)),)}, "throttled", "heat or power"),
        ({"devices": (dataclasses.replace(WELL, disk_free_bytes=LOW_DISK_BYTES - 1),)}, "disk", "out of disk"),
        ({"devices": (dataclasses.replace(WELL, memory_available_bytes=1.0),)}, "memory", "out of memory"),
        ({"devices": (dataclasses.replace(WELL, errors_per_s=6.0),)}, "errors", "more than 5%"),
        (
            {"failed_jobs": (JobSeen("cats", 2, "jetson", "no such operator", NOW),)},
            "build",
            "cats 2 for jetson: no such",
        ),
    ],
)
def test_each_trouble_is_one_line_that_says_what_it_is(change: dict[str, object], kind: str, words: str) -> None:
    found = attention(dataclasses.replace(QUIET, **change), NOW)  # type: ignore[arg-type]
    assert [item.kind for item in found] == [kind]
    assert words in found[0].text
    assert found[0].href.startswith("/")


def test_what_was_not_measured_is_no_trouble() -> None:
    silent = DeviceSeen((), None, None, None, None)
    assert attention(dataclasses.replace(QUIET, devices=(silent,)), NOW) == []


def test_a_paused_rollout_waits_for_a_person_however_old_it_is_and_a_failed_one_is_news_for_a_day() -> None:
    rollouts = (
        RolloutSeen("r1", "digits-1", "PAUSED", NOW - 30 * DAY, ("2 of 3 failed",)),
        RolloutSeen("r2", "digits-2", "ROLLED_BACK", NOW - 60, ("p95 too high",)),
        RolloutSeen("r3", "digits-3", "FAILED", NOW - 2 * DAY, ()),
    )
    found = attention(dataclasses.replace(QUIET, rollouts=rollouts), NOW)
    assert [item.href for item in found] == ["/rollouts/r2", "/rollouts/r1"]
    assert "2 of 3 failed" in found[1].text


def test_the_worst_comes_first_then_the_newest() -> None:
    rollouts = (
        RolloutSeen("old", "a", "FAILED", NOW - 100, ()),
        RolloutSeen("new", "b", "FAILED", NOW - 1, ()),
    )
    found = attention(dataclasses.replace(QUIET, late=1, rollouts=rollouts), NOW)
    assert [item.severity for item in found] == ["bad", "bad", "warn"]
    assert [item.href for item in found[:2]] == ["/rollouts/new", "/rollouts/old"]


def test_a_certificate_authority_that_holds_for_long_needs_nobody() -> None:
    assert attention(dataclasses.replace(QUIET, authority_ends=NOW + 181 * DAY), NOW) == []
    assert attention(dataclasses.replace(QUIET, own_certificates_end=NOW + 31 * DAY), NOW) == []
    (soon,) = attention(dataclasses.replace(QUIET, authority_ends=NOW + 100 * DAY), NOW)
    (now,) = attention(dataclasses.replace(QUIET, authority_ends=NOW + 29 * DAY), NOW)
    assert (soon.severity, now.severity) == ("warn", "bad")


def test_many_suspects_do_not_fill_the_list() -> None:
    suspects = tuple(Suspect(f"d-{n}", "copied", "two machines use it", NOW) for n in range(12))
    found = attention(dataclasses.replace(QUIET, suspects=suspects), NOW)
    assert sorted(item.kind for item in found) == ["copied", "copied", "copied", "suspects"]
    assert any("9 devices more" in item.text for item in found)
