"""When a list of revoked certificates is written anew: never too late, never from the future, never the same date."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from controller.devices.revocation import BACKDATED, CUTS, DAY, HOLDS, Held, Keep, Write, cuts_due, judge, silence

NOW = 1_790_000_000.0
ISSUERS = frozenset({"CN=a", "CN=b"})


def held(begins: float = NOW - BACKDATED, serials: frozenset[str] = frozenset(), **more: float) -> Held:
    return Held(serials, ISSUERS, begins, more.get("ends", begins + BACKDATED + HOLDS))


def test_the_first_list_is_backdated_and_holds_for_long() -> None:
    verdict = judge(None, set(), ISSUERS, NOW)
    assert isinstance(verdict, Write)
    assert (verdict.begins, verdict.ends) == (NOW - BACKDATED, NOW + HOLDS)


def test_a_list_that_has_everything_is_kept_for_a_day() -> None:
    on_it = held(serials=frozenset({"1", "2"}))
    assert isinstance(judge(on_it, {"1", "2"}, ISSUERS, NOW), Keep)
    assert isinstance(judge(on_it, {"1", "2"}, ISSUERS, NOW + DAY - 1), Keep)
    late = judge(on_it, {"1", "2"}, ISSUERS, NOW + DAY)
    assert isinstance(late, Write)
    assert (late.begins, late.ends) == (NOW + DAY - BACKDATED, NOW + DAY + HOLDS)


def test_a_missing_certificate_or_another_issuer_is_written_at_once() -> None:
    one = judge(held(), {"1"}, ISSUERS, NOW)
    assert isinstance(one, Write)
    assert one.begins == NOW - BACKDATED + 1  # later than the one before, in the same second
    assert isinstance(judge(held(), set(), ISSUERS | {"CN=c"}, NOW), Write)
    assert isinstance(judge(held(serials=frozenset({"1", "2"})), {"1"}, ISSUERS, NOW), Write)  # taken again


def test_a_clock_that_was_put_back_makes_a_list_that_is_valid_now() -> None:
    ahead = held(begins=NOW + 5 * DAY)
    verdict = judge(ahead, set(), ISSUERS, NOW)
    assert isinstance(verdict, Write)
    assert verdict.begins == NOW - BACKDATED
    assert "clock" in verdict.reason


@given(st.lists(st.tuples(st.floats(0, 3 * DAY), st.booleans()), max_size=60))
def test_whatever_happens_the_list_on_disk_is_valid_and_later_than_the_one_before(
    steps: list[tuple[float, bool]],
) -> None:
    now, on_disk, serials = NOW, None, set()
    for pause, revoked in steps:
        now += pause
        if revoked:
            serials.add(str(len(serials)))
        verdict = judge(on_disk, serials, ISSUERS, now)
        if isinstance(verdict, Write):
            assert on_disk is None or int(verdict.begins) > int(on_disk.begins)
            on_disk = Held(frozenset(serials), ISSUERS, verdict.begins, verdict.ends)
        assert on_disk is not None
        assert on_disk.begins <= now < now + HOLDS - 2 * DAY < on_disk.ends
        assert serials <= on_disk.serials


def test_a_flooding_device_is_kept_out_longer_each_time_and_never_for_good() -> None:
    assert [silence(times) for times in (1, 2, 3)] == [60, 120, 240]
    assert silence(50) == silence(10_000) == 3_600


def test_cuts_are_made_at_once_and_again_later_and_then_no_more() -> None:
    assert cuts_due(0.0, 0)
    assert not cuts_due(1.9, 1)
    assert cuts_due(2.0, 1)
    assert not cuts_due(1e9, len(CUTS))
    assert CUTS[-1] > 90  # mosquitto waits so long for a client that said nothing yet
