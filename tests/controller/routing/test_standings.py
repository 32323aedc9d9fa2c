"""The index of who can answer what."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.routing import standings as module
from controller.routing.choose import Policy, Request, rank
from controller.routing.standings import SUSPECT_MAX, LatencyWindow, LiveDevice, Standings
from wire.tunnel import ServedModel, Status


def live(device: str, tenant: str = "t") -> LiveDevice:
    return LiveDevice(device, tenant, 10, 0.0)


def status(*names: str, ready: bool = True, version: str = "1", draining: bool = False) -> Status:
    models = [ServedModel(name=name, version=version, build="b", ready=ready, queued=0) for name in names]
    return Status(models=models, draining=draining)


def devices(standings: Standings, model: str, version: str | None = None, tenant: str = "t") -> set[str]:
    return {one.device for one in standings.eligible(tenant, model, version)}


def test_a_device_is_found_while_it_says_that_the_model_is_ready():
    standings, a, b = Standings(), live("a"), live("b")
    standings.apply(a, status("m", "n"))
    standings.apply(b, status("m", version="2"))
    assert devices(standings, "m") == {"a", "b"}
    assert devices(standings, "m", "1") == {"a"}
    assert devices(standings, "m", "2") == {"b"}
    assert devices(standings, "n") == {"a"}
    assert devices(standings, "m", tenant="other") == set()
    standings.apply(a, status("n"))
    assert devices(standings, "m") == {"b"}
    standings.apply(b, status("m", ready=False, version="2"))
    assert devices(standings, "m") == set()
    standings.apply(a, status("n", draining=True))
    assert devices(standings, "n") == set()


def test_a_removed_device_is_gone_everywhere():
    standings, a = Standings(), live("a")
    standings.apply(a, status("m", "n"))
    standings.remove(a)
    assert devices(standings, "m") == devices(standings, "n", "1") == set()
    standings.remove(a)


def test_figures_are_taken_over_and_nonsense_is_not():
    standings, a = Standings(), live("a")
    models = [ServedModel(name="m", version="1", build="b", ready=True, queued=7, p50_ms=20.0)]
    standings.apply(a, Status(models=models))
    (one,) = standings.eligible("t", "m", None)
    assert (one.queued, one.service) == (7, 0.02)
    models = [ServedModel(name="m", version="1", build="b", ready=True, queued=-7, p50_ms=-1.0)]
    standings.apply(a, Status(models=models))
    assert (one.queued, one.service) == (0, None)


@pytest.mark.parametrize("p50_ms", [1e-322, 1e-310, 1e-9, 1.7e308, 3_600_001.0, -1.0, 0.0])
@pytest.mark.parametrize("queued", [0, 2**63 - 1, 10**300, -(10**300)])
def test_a_device_that_claims_the_impossible_does_not_spoil_the_ranking_for_the_others(p50_ms, queued):
    standings, liar, honest = Standings(), live("liar"), live("honest")
    claims = ServedModel(name="m", version="1", build="b", ready=True, queued=queued, p50_ms=p50_ms)
    standings.apply(liar, Status(models=[claims]))
    standings.apply(honest, status("m"))
    ranked = rank(Request(tenant="t", model="m", version=None, now=1.0), standings, Policy(), random.Random(1))
    assert {one.device for one in ranked} == {"liar", "honest"}
    assert standings.eligible("t", "m", None)[0].service is None


_STEP = st.tuples(st.sampled_from("abcd"), st.sets(st.sampled_from("mno")), st.booleans(), st.booleans())


@settings(max_examples=100, deadline=None)
@given(steps=st.lists(_STEP, max_size=30))
def test_the_index_says_what_the_last_statuses_say(steps):
    standings = Standings()
    lives = {name: live(name) for name in "abcd"}
    truth: dict[str, set[str]] = {name: set() for name in "abcd"}
    for device, names, draining, removed in steps:
        if removed:
            standings.remove(lives[device])
            truth[device] = set()
        else:
            standings.apply(lives[device], status(*sorted(names), draining=draining))
            truth[device] = set() if draining else set(names)
    for model in "mno":
        expected = {device for device, names in truth.items() if model in names}
        assert devices(standings, model) == devices(standings, model, "1") == expected
        assert len(standings.eligible("t", model, None)) == len(expected)


def test_suspicion_grows_and_an_answer_ends_it():
    one = live("a")
    one.suspect(100.0)
    assert one.suspect_until == 105.0
    one.suspect(101.0)  # a second request of the same trouble does not double it
    assert one.suspect_until == 106.0
    one.suspect(107.0)
    assert one.suspect_until == 117.0
    for at in range(1000, 3000, 100):
        one.suspect(float(at))
    assert one.suspect_until == 2900.0 + SUSPECT_MAX
    one.answered()
    assert one.suspect_until == 0.0
    one.suspect(5000.0)
    assert one.suspect_until == 5005.0


def test_percentile_needs_enough_answers():
    window = LatencyWindow()
    for _ in range(19):
        window.add(0.01)
    assert window.p99 is None
    for _ in range(1000):
        window.add(0.01)
    for _ in range(16):
        window.add(2.0)
    assert window.p99 == 2.0


def test_the_window_of_a_model_in_use_stays_when_many_others_come(monkeypatch):
    monkeypatch.setattr(module, "MAX_WINDOWS", 10)
    standings = Standings()
    for number in range(200):
        standings.record("t", "used", 0.5)
        standings.record("t", f"once-{number}", 0.001)
    assert standings.p99("t", "used") == 0.5
    assert standings.p99("t", "once-0") is None
