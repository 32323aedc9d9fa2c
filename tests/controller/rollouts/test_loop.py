"""The whole way with a real database: plan, effects, signed assignments, reports."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import event, select, update

from controller.database import tables
from controller.rollouts import desired_store, loop, store
from controller.rollouts.model import Wanted
from controller.rollouts.steps import Assign
from wire.messages import ExecutionReport

CANARY = {"stages": [{"count": 1}, "rest"]}
TENANT = "acme"


async def test_a_release_reaches_everybody_canary_first(site: Any) -> None:
    devices = site.add_devices(range(4))
    build = site.add_build(1)
    rollout = site.roll_out(1, CANARY)
    await site.loop.turn()
    assert list(site.sent) == devices[:1], "only the canary before the gate"
    assert site.item(devices[0]).build == build
    await site.settle()
    assert site.state(rollout) == "SUCCEEDED"
    assert site.states(rollout) == dict.fromkeys(devices, "SUCCEEDED")
    assert "4 run it" in site.reasons(rollout)


async def test_every_transition_is_kept_with_its_time(site: Any) -> None:
    (device,) = site.add_devices(range(1))
    site.add_build(1)
    site.roll_out(1)
    await site.loop.turn()
    for second, state in enumerate(("OFFERED", "DOWNLOADING", "INSTALLING", "SUCCEEDED")):
        site.clock += 1
        site.report(device, state, at=site.clock - second)
    with site.database.read() as connection:
        events = store.events_of(connection, site.item(device).execution)
        row = store.find_execution(connection, TENANT, site.item(device).execution)
    assert [event.state for event in events] == ["IDLE", "OFFERED", "DOWNLOADING", "INSTALLING", "SUCCEEDED"]
    assert [event.received for event in events] == sorted(event.received for event in events)
    assert row is not None
    assert row.figures == {"p50_ms": 1.5}


async def test_figures_are_bounded_whatever_a_device_calls_them(site: Any) -> None:
    (device,) = site.add_devices(range(1))
    site.add_build(1)
    site.roll_out(1)
    await site.loop.turn()
    for turn in range(4):
        site.report(device, "DOWNLOADING", figures={f"f{turn}-{number}": 1.0 for number in range(50)})
    site.report(device, "INSTALLING", figures={"f0-0": 2.0})
    with site.database.read() as connection:
        row = store.find_execution(connection, TENANT, site.item(device).execution)
    assert row is not None
    assert len(row.figures) == store.MAX_FIGURES
    assert row.figures["f0-0"] == 2.0, "what is known already still moves"


async def test_a_failed_canary_takes_the_rollout_back(site: Any) -> None:
    devices = site.add_devices(range(5))
    first, second = site.add_build(1), site.add_build(2)
    await_first = site.roll_out(1)
    await site.settle()
    assert site.state(await_first) == "SUCCEEDED"
    rollout = site.roll_out(2, CANARY)
    await site.settle(lambda device, item: "FAILED" if item.build == second else "SUCCEEDED")
    assert site.state(rollout) == "ROLLED_BACK"
    assert site.states(rollout) == {devices[0]: "FAILED", devices[0] + " back": "SUCCEEDED"}
    assert site.item(devices[0]).build == first
    assert {site.item(device).build for device in devices[1:]} == {first}
    with site.database.read() as connection:
        row = store.find_rollout(connection, TENANT, rollout)
    assert row is not None
    assert any("1 of 1 finished devices failed" in reason for reason in row.stages[0]["reasons"])


async def test_rollback_after_success_removes_what_had_no_predecessor(site: Any) -> None:
    devices = site.add_devices(range(3))
    site.add_build(1)
    rollout = site.roll_out(1)
    await site.settle()
    site.want(rollout, Wanted.ROLLBACK)
    await site.settle()
    assert site.state(rollout) == "ROLLED_BACK"
    assert {site.item(device).build for device in devices} == {None}
    await site.settle()
    assert site.state(rollout) == "ROLLED_BACK", "a continuous rollout that went back gives nothing any more"


async def test_going_back_skips_what_another_rollout_took_back(site: Any) -> None:
    (device,) = site.add_devices(range(1))
    first, second, third = site.add_build(1), site.add_build(2), site.add_build(3)
    site.roll_out(1)
    await site.settle()
    bad = site.roll_out(2)
    await site.settle()
    site.want(bad, Wanted.ROLLBACK)
    await site.settle(lambda device, item: None)  # the way back is never reported
    assert site.item(device).build == first
    newest = site.roll_out(3)
    await site.settle()
    assert site.item(device).build == third
    site.want(newest, Wanted.ROLLBACK)
    await site.settle()
    assert site.item(device).build == first, f"{second} was taken back for a reason"


async def test_paused_gives_nothing_and_resumed_goes_on(site: Any) -> None:
    site.add_devices(range(3))
    site.add_build(1)
    rollout = site.roll_out(1, CANARY)
    await site.loop.turn()
    site.want(rollout, Wanted.PAUSE)
    await site.settle()
    assert site.state(rollout) == "PAUSED"
    assert len(site.sent) == 1
    site.want(rollout, Wanted.RUN)
    await site.settle()
    assert site.state(rollout) == "SUCCEEDED"
    assert len(site.sent) == 3


async def test_a_gate_that_pauses_is_forgiven_by_resume(site: Any) -> None:
    devices = site.add_devices(range(4))
    site.add_build(1)
    rollout = site.roll_out(1, CANARY | {"gate": {"on_failure": "pause"}})
    await site.settle(lambda device, item: "FAILED" if device == devices[0] else "SUCCEEDED")
    assert site.state(rollout) == "PAUSED"
    site.want(rollout, Wanted.RUN)
    await site.settle()
    assert site.state(rollout) == "SUCCEEDED"
    assert site.states(rollout)[devices[0]] == "FAILED"


async def test_abort_takes_back_what_is_unfinished_and_leaves_the_rest(site: Any) -> None:
    devices = site.add_devices(range(3))
    first, second = site.add_build(1), site.add_build(2)
    site.roll_out(1)
    await site.settle()
    rollout = site.roll_out(2)
    await site.loop.turn()
    site.report(devices[0], "SUCCEEDED")
    stale = site.item(devices[1])
    site.want(rollout, Wanted.ABORT)
    await site.loop.turn()
    assert site.state(rollout) == "CANCELED"
    assert [site.item(device).build for device in devices] == [second, first, first]
    assert site.report(devices[1], "SUCCEEDED", stale) is store.Recorded.NOTED
    assert site.states(rollout)[devices[1]] == "CANCELED", "what has ended never changes"


async def test_a_newer_rollout_supersedes_the_unfinished_items_of_an_older_one(site: Any) -> None:
    devices = site.add_devices(range(4))
    site.add_build(1)
    newer_build = site.add_build(2)
    old = site.roll_out(1)
    await site.loop.turn()
    site.report(devices[0], "SUCCEEDED")
    new = site.roll_out(2)
    await site.settle()
    assert site.state(old) == "SUPERSEDED"
    assert site.state(new) == "SUCCEEDED"
    assert site.states(old) == {devices[0]: "SUCCEEDED"} | dict.fromkeys(devices[1:], "SUPERSEDED")
    assert {site.item(device).build for device in devices} == {newer_build}
    assert all(site.item(device).generation == 2 for device in devices)


async def test_an_older_rollout_leaves_devices_to_a_newer_one_under_way(site: Any) -> None:
    site.add_devices(range(2), tags=("a",))
    others = site.add_devices(range(2, 4))
    build, _ = site.add_build(1), site.add_build(2)
    old = site.roll_out(1, CANARY)
    new = site.roll_out(2, {"stages": [{"count": 1}, "rest"]}, {"tags": ["a"]})
    site.want(new, Wanted.PAUSE)
    await site.settle()
    assert site.state(new) == "PAUSED"
    assert set(site.sent) == set(others), "a stuck newer rollout holds its own devices, and no others"
    assert {site.item(device).build for device in others} == {build}
    assert site.state(old) == "SUPERSEDED"


async def test_a_rollout_of_another_component_is_not_disturbed(site: Any) -> None:
    (device,) = site.add_devices(range(1))
    site.add_build(1)
    site.add_build(1, model="faces")
    first, second = site.roll_out(1), site.roll_out(1, model="faces")
    await site.settle()
    assert (site.state(first), site.state(second)) == ("SUCCEEDED", "SUCCEEDED")
    assert [item.component for item in site.sent[device].items] == ["model:digits", "model:faces"]


async def test_what_is_installed_already_is_a_success_at_once(site: Any) -> None:
    devices = site.add_devices(range(3))
    site.add_build(1)
    site.roll_out(1)
    await site.settle()
    numbers = {device: site.sent[device].number for device in devices}
    again = site.roll_out(1)
    await site.loop.turn()
    assert site.state(again) == "SUCCEEDED"
    assert site.states(again) == dict.fromkeys(devices, "SKIPPED")
    assert {device: site.sent[device].number for device in devices} == numbers, "nothing had to be sent"


async def test_a_device_that_is_away_is_skipped_and_finds_its_item_when_it_returns(site: Any) -> None:
    here = site.add_devices(range(3))
    (gone,) = site.add_devices(range(3, 4), online=False)
    site.add_build(1)
    rollout = site.roll_out(1, CANARY)
    await site.settle(lambda device, item: "SUCCEEDED" if device in here else None)
    assert site.state(rollout) == "RUNNING"
    site.clock += 121
    for device in here:
        site.set_device(device, last_seen=site.clock)
    await site.settle(lambda device, item: None)
    assert site.state(rollout) == "SUCCEEDED"
    assert "1 will get it when they return" in site.reasons(rollout)
    site.report(gone, "SUCCEEDED")
    assert site.states(rollout)[gone] == "SUCCEEDED"


async def test_devices_that_come_later_get_it_too(site: Any) -> None:
    site.add_devices(range(2))
    build = site.add_build(1)
    rollout = site.roll_out(1)
    await site.settle()
    assert site.state(rollout) == "SUCCEEDED"
    (late,) = site.add_devices(range(2, 3))
    await site.settle()
    assert site.item(late).build == build
    assert site.states(rollout)[late] == "SUCCEEDED"


async def test_without_continuous_they_do_not(site: Any) -> None:
    site.add_devices(range(2))
    site.add_build(1)
    site.roll_out(1, {"continuous": False})
    await site.settle()
    (late,) = site.add_devices(range(2, 3))
    await site.settle()
    assert late not in site.sent


async def test_nobody_fits_yet(site: Any) -> None:
    site.add_build(1)
    waits, over = site.roll_out(1), site.roll_out(1, {"continuous": False})
    await site.settle()
    assert (site.state(waits), site.state(over)) == ("SUCCEEDED", "FAILED")
    (device,) = site.add_devices(range(1))
    await site.settle()
    assert site.states(waits) == {device: "SUCCEEDED"}


async def test_one_rollout_that_cannot_be_planned_does_not_stop_the_others(
    site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.add_devices(range(2))
    site.add_build(1)
    site.add_build(1, model="faces")
    fine, bad = site.roll_out(1), site.roll_out(1, model="faces")
    sound = loop.advance

    def advance(rollout: Any, fleet: Any, now: float) -> Any:
        if rollout.id == bad:
            raise ZeroDivisionError("a defect")
        return sound(rollout, fleet, now)

    monkeypatch.setattr(loop, "advance", advance)
    await site.settle()
    assert site.state(fine) == "SUCCEEDED"
    assert (site.state(bad), site.reasons(bad)) == ("PENDING", "could not be planned: a defect")


async def test_one_rollout_that_cannot_be_read_does_not_stop_the_others(site: Any) -> None:
    site.add_devices(range(2))
    site.add_build(1)
    fine, odd = site.roll_out(1), site.roll_out(1)
    with site.database.begin() as connection:
        row = store.find_rollout(connection, TENANT, odd)
        assert row is not None
        future = row.policy | {"moon_phase": "full"}  # of a newer version of this program
        connection.execute(update(tables.rollouts).where(tables.rollouts.c.id == odd).values(policy=future))
    await site.settle()
    assert site.state(fine) == "SUCCEEDED"
    assert "could not be planned" in site.reasons(odd)
    assert "moon_phase" in site.reasons(odd)


async def test_reports_that_do_not_belong_change_nothing(site: Any) -> None:
    one, two = site.add_devices(range(2))
    site.add_build(1)
    rollout = site.roll_out(1)
    await site.loop.turn()
    assert site.report(two, "SUCCEEDED", site.item(one)) is store.Recorded.FOREIGN
    item = site.item(one)
    unknown = ExecutionReport(
        stream="stream-1",
        sequence=1,
        previous=0,
        at=0,
        execution="e-unknown",
        component=item.component,
        generation=1,
        origin="x",
        state="SUCCEEDED",
    )
    with site.database.begin() as connection:
        assert store.record_report(connection, one, unknown, 0.0) is store.Recorded.FOREIGN
    assert site.report(one, "A_STATE_OF_THE_FUTURE") is store.Recorded.NOTED
    assert site.states(rollout) == {one: "IDLE", two: "IDLE"}


async def test_what_was_committed_is_sent_when_the_broker_returns(site: Any) -> None:
    (device,) = site.add_devices(range(1))
    site.add_build(1)
    site.roll_out(1)
    site.broken_broker = True
    await site.loop.turn()
    assert site.sent == {}
    site.broken_broker = False
    await site.loop.turn()
    assert site.sent[device].number == 1
    await site.loop.turn()
    assert site.publishes == 1, "sent once"
    await site.loop.republish_all()
    await site.loop.turn()
    assert site.publishes == 2


async def test_assignments_are_renewed_before_they_expire(site: Any) -> None:
    (device,) = site.add_devices(range(1))
    site.add_build(1)
    site.roll_out(1)
    await site.settle()
    before = site.sent[device]
    site.clock += 21 * 86_400
    await site.loop.turn()
    after = site.sent[device]
    assert (after.number, after.items) == (before.number + 1, before.items)
    assert after.expires > before.expires


async def test_a_revoked_device_gets_nothing(site: Any) -> None:
    kept, revoked = site.add_devices(range(2))
    site.set_device(revoked, revoked=site.clock)
    site.add_build(1)
    rollout = site.roll_out(1)
    await site.settle()
    assert site.state(rollout) == "SUCCEEDED"
    assert set(site.sent) == {kept}


async def test_it_wakes_for_a_commit(site: Any) -> None:
    site.add_devices(range(1))
    site.add_build(1)
    running = asyncio.create_task(site.loop.run())
    try:
        await asyncio.sleep(0.05)
        rollout = await asyncio.to_thread(site.roll_out, 1)
        async with asyncio.timeout(5):
            while not site.sent:
                await asyncio.sleep(0.01)
    finally:
        running.cancel()
    assert site.state(rollout) == "RUNNING"


async def test_an_assignment_is_stored_before_it_is_sent(site: Any) -> None:
    (device,) = site.add_devices(range(1))
    site.add_build(1)
    site.roll_out(1)
    site.broken_broker = True
    await site.loop.turn()
    with site.database.read() as connection:
        row = desired_store.find_assignment(connection, device)
        desired = connection.execute(select(tables.desired_items)).all()
    assert row is not None
    assert row.published is None
    assert len(desired) == 1


async def test_a_device_that_ran_it_before_keeps_it_when_the_rollout_goes_back(site: Any) -> None:
    old, *_ = site.add_devices(range(1))
    build = site.add_build(1)
    site.roll_out(1)
    await site.settle()
    (new,) = site.add_devices(range(1, 2))
    again = site.roll_out(1)
    await site.settle()
    assert site.states(again) == {old: "SKIPPED", new: "SUCCEEDED"}
    site.want(again, Wanted.ROLLBACK)
    await site.settle()
    assert site.state(again) == "ROLLED_BACK"
    assert (site.item(old).build, site.item(new).build) == (build, None)
    assert f"{old} back" not in site.states(again), "nothing was brought, so nothing is taken back"


async def test_what_is_in_place_keeps_its_generation(site: Any) -> None:
    (device,) = site.add_devices(range(1))
    site.add_build(1)
    site.roll_out(1)
    await site.settle()
    generation = site.item(device).generation
    site.roll_out(1)
    await site.settle()
    site.clock += 21 * 86_400  # a renewed assignment is what shows the desired row
    await site.loop.turn()
    assert site.item(device).generation == generation, "the device, which has finished it, must not begin anew"


async def test_those_that_are_away_do_not_hold_up_the_way_back(site: Any) -> None:
    devices = site.add_devices(range(2))
    site.add_build(1)
    rollout = site.roll_out(1)
    await site.settle()
    site.want(rollout, Wanted.ROLLBACK)
    site.set_device(devices[0], online=False)
    await site.settle(lambda device, item: "SUCCEEDED" if device == devices[1] else None)
    assert site.state(rollout) == "ROLLING_BACK"
    site.clock += 121
    await site.settle(lambda device, item: None)
    assert site.state(rollout) == "ROLLED_BACK"
    assert site.reasons(rollout) == "1 are back; 1 go back when they return"


async def test_stages_watch_on_those_that_were_away(site: Any) -> None:
    canaries = site.add_devices(range(2))
    others = site.add_devices(range(2, 12))
    site.add_build(1)
    rollout = site.roll_out(1, {"stages": [{"count": 2}, "rest"], "gate": {"max_failed": 0}})
    await site.settle(lambda device, item: "SUCCEEDED" if device == canaries[0] else None)
    site.set_device(canaries[1], online=False)
    site.clock += 130
    for device in others:
        site.set_device(device, last_seen=site.clock)
    await site.loop.turn()
    assert set(site.sent) == {*canaries, *others}, "the second stage has begun"
    site.set_device(canaries[1], online=True, last_seen=site.clock)
    site.report(canaries[1], "FAILED")
    await site.settle()
    assert site.state(rollout) == "ROLLED_BACK", "its failure still counts"


async def test_nobody_is_forgotten_when_a_quorum_is_enough(site: Any) -> None:
    site.add_devices(range(8))
    site.add_build(1)
    policy = {"continuous": False, "max_in_flight": 2, "gate": {"quorum_percent": 25}}
    rollout = site.roll_out(1, policy)
    await site.settle()
    assert site.state(rollout) == "SUCCEEDED"
    assert len(site.sent) == 8


async def test_an_order_that_comes_between_reading_and_doing_wins(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    site.add_devices(range(2))
    site.add_build(1)
    rollout = site.roll_out(1)
    sound = loop.advance

    def advance(seen: Any, fleet: Any, now: float) -> Any:
        steps = sound(seen, fleet, now)
        if any(isinstance(step, Assign) for step in steps):
            site.want(rollout, Wanted.PAUSE)
        return steps

    monkeypatch.setattr(loop, "advance", advance)
    await site.settle()
    assert site.state(rollout) == "PAUSED"
    assert site.sent == {}


async def test_a_device_revoked_or_changed_in_the_middle_is_left(site: Any) -> None:
    devices = site.add_devices(range(4))
    site.add_build(1)
    rollout = site.roll_out(1, {"max_in_flight": 1})
    await site.loop.turn()
    site.set_device(devices[1], revoked=site.clock)
    site.set_device(devices[2], facts={"at": site.clock, "facts": {"arch": "x86_64"}, "runtimes": []})
    await site.settle()
    assert site.state(rollout) == "SUCCEEDED"
    assert set(site.sent) == {devices[0], devices[3]}


async def test_a_large_fleet_in_a_few_statements(site: Any) -> None:
    site.add_devices(range(2000))
    site.add_build(1)
    rollout = site.roll_out(1, {"max_in_flight": 5000, "stages": [{"percent": 5}, "rest"]})
    statements = 0

    def count(*_: Any) -> None:
        nonlocal statements
        statements += 1

    event.listen(site.database._engine, "before_cursor_execute", count)
    await asyncio.to_thread(site.loop._plan_all)
    assert len(site.states(rollout)) == 100
    assert statements < 100, "reads and writes are batched, whatever the number of devices"


async def test_a_quiet_fleet_costs_little(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    site.add_devices(range(2))
    site.add_build(1)
    site.roll_out(1)
    await site.settle()
    patient = loop.RolloutLoop(site.database, site.key, site.publish, lambda: site.clock, tend_seconds=3600.0)
    await patient.turn()
    looked = 0
    sound = loop.advance

    def advance(*args: Any) -> Any:
        nonlocal looked
        looked += 1
        return sound(*args)

    monkeypatch.setattr(loop, "advance", advance)
    await patient.turn()
    assert looked == 0, "nothing is under way and newcomers were looked for a moment ago"
    rollout = site.roll_out(1)
    await patient.turn()
    assert looked > 0
    assert site.state(rollout) == "SUCCEEDED"


async def test_who_waits_for_its_turn_is_not_late(site: Any) -> None:
    devices = site.add_devices(range(6))
    site.add_build(1)
    rollout = site.roll_out(1, {"max_in_flight": 1, "deadline": 100.0})
    for done in range(6):
        await site.loop.turn()
        assert len(site.sent) == done + 1, "one after the other"
        site.clock += 60  # together more than the time of one
        for device in devices:
            site.set_device(device, last_seen=site.clock)
        (new,) = (d for d in site.sent if site.states(rollout)[d] == "IDLE")
        site.report(new, "SUCCEEDED")
    await site.loop.turn()
    assert site.state(rollout) == "SUCCEEDED"
    assert site.reasons(rollout) == "6 run it"


async def test_who_hangs_loses_its_turn_when_its_time_is_over(site: Any) -> None:
    devices = site.add_devices(range(3))
    site.add_build(1)
    rollout = site.roll_out(1, {"max_in_flight": 1, "deadline": 100.0, "gate": {"max_failed_percent": 100}})
    await site.loop.turn()
    (hanging,) = site.sent
    for seconds, reached in ((99, 1), (1, 2)):
        site.clock += seconds
        for device in devices:
            site.set_device(device, last_seen=site.clock)
        await site.loop.turn()
        assert len(site.sent) == reached
    await site.settle(lambda device, item: None if device == hanging else "SUCCEEDED")
    assert site.state(rollout) == "SUCCEEDED"
    assert site.reasons(rollout) == "2 run it; 1 have not finished"


async def test_a_newcomer_has_the_same_time_as_the_others_and_nobody_joins_for_ever(site: Any) -> None:
    slow, _ = site.add_devices(range(2))
    site.add_build(1)
    rollout = site.roll_out(1, {"deadline": 100.0})
    await site.settle(lambda device, item: None if device == slow else "SUCCEEDED")
    site.clock += 90
    (late,) = site.add_devices(range(2, 3))
    await site.loop.turn()
    site.report(slow, "SUCCEEDED")
    site.clock += 99
    (later,) = site.add_devices(range(3, 4))
    for device in (slow, late):
        site.set_device(device, last_seen=site.clock)
    await site.loop.turn()
    assert site.state(rollout) == "RUNNING", "the newcomer is at work and has a second left"
    assert later not in site.sent, "it gets the release when the rollout has succeeded"
    site.report(late, "SUCCEEDED")
    await site.settle()
    assert site.state(rollout) == "SUCCEEDED"
    assert site.states(rollout)[later] == "SUCCEEDED"


@pytest.mark.parametrize("gone", ["away", "revoked"])
async def test_a_canary_that_is_gone_is_replaced_by_another_one(site: Any, gone: str) -> None:
    canary, *others = site.add_devices(range(4))
    site.add_build(1)
    rollout = site.roll_out(1, CANARY)
    await site.loop.turn()
    assert set(site.sent) == {canary}
    if gone == "away":
        site.set_device(canary, online=False)
    else:
        site.set_device(canary, revoked=site.clock)
    site.clock += 121
    for device in others:
        site.set_device(device, last_seen=site.clock)
    await site.loop.turn()
    assert len(set(site.sent) - {canary}) == 1, "one takes its place, and the rest wait for what it says"
    await site.settle(lambda device, item: None if device == canary else "SUCCEEDED")
    assert site.state(rollout) == "SUCCEEDED"
    assert len(site.sent) == 4


async def test_nobody_takes_the_place_of_a_canary_when_all_are_away(site: Any) -> None:
    devices = site.add_devices(range(3))
    site.add_build(1)
    rollout = site.roll_out(1, CANARY | {"deadline": 1000.0})
    await site.loop.turn()
    for device in devices:
        site.set_device(device, online=False)
    site.clock += 999
    await site.loop.turn()
    assert (site.state(rollout), len(site.sent)) == ("RUNNING", 1)
    site.clock += 1
    await site.settle(lambda device, item: None)
    assert site.state(rollout) == "ROLLING_BACK"
    assert "nothing is proven" in site.reasons(rollout)


async def test_who_was_away_at_its_deadline_is_not_awaited_when_it_returns(site: Any) -> None:
    here, gone, slow = site.add_devices(range(3))
    site.add_build(1)
    rollout = site.roll_out(1, {"deadline": 200.0, "soak": 50.0, "max_in_flight": 2, "gate": {"max_failed": 0}})
    site.set_device(gone, online=False, last_seen=site.clock - 500)
    await site.loop.turn()
    site.report(here, "SUCCEEDED")
    site.clock += 199
    site.set_device(slow, last_seen=site.clock)
    site.report(slow, "SUCCEEDED")
    await site.loop.turn()
    site.clock += 2  # the time of the one that is away has passed
    await site.loop.turn()
    site.clock += 30
    site.set_device(gone, online=True, last_seen=site.clock)
    await site.loop.turn()
    assert site.state(rollout) == "RUNNING", "soaking"
    site.clock += 18
    await site.loop.turn()
    assert site.state(rollout) == "SUCCEEDED", "who came back neither failed nor made the soak longer"


async def test_a_rollout_is_newer_than_those_before_it_also_when_the_clock_went_back(site: Any) -> None:
    (device,) = site.add_devices(range(1))
    site.add_build(1)
    second = site.add_build(2)
    site.roll_out(1)
    await site.settle()
    site.clock = 1000.0  # no battery, no network: 1970
    newer = site.roll_out(2)
    await site.settle()
    assert site.state(newer) == "SUCCEEDED"
    assert site.item(device).build == second


async def test_assignments_are_renewed_also_after_the_clock_went_back(site: Any) -> None:
    (device,) = site.add_devices(range(1))
    site.add_build(1)
    right = site.clock
    site.clock += 20 * 365 * 86_400  # a clock that is wrong at the start
    await site.loop.turn()
    site.clock = right
    site.roll_out(1)
    await site.settle()
    number = site.sent[device].number
    site.clock += 21 * 86_400
    await site.loop.turn()
    assert site.sent[device].number == number + 1


async def test_a_rollout_that_goes_back_is_not_concluded_any_more(site: Any) -> None:
    site.add_devices(range(1))
    site.add_build(1)
    rollout = site.roll_out(1)
    await site.settle()
    site.want(rollout, Wanted.ROLLBACK)
    for state, concluded in (("ROLLING_BACK", False), ("ROLLED_BACK", True)):
        await site.settle(lambda device, item, concluded=concluded: None if not concluded else "SUCCEEDED")
        if concluded:
            for device in site.sent:
                site.report(device, "SUCCEEDED")
            await site.loop.turn()
        with site.database.read() as connection:
            row = store.find_rollout(connection, TENANT, rollout)
        assert row is not None
        assert (row.state, row.concluded is not None) == (state, concluded)
