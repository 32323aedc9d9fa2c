"""Whole updates, over real HTTP, a real journal and real files."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent import durable
from agent.builds.slots import Slots
from agent.errors import DeviceError
from agent.updates import effects, loop
from agent.updates.precheck import Capabilities
from wire.assignment import Policy

HAPPY = [
    "OFFERED", "PRECHECK", "DOWNLOADING", "VERIFYING", "STAGED", "INSTALLING", "WARMING", "ACTIVATING", "PROBATION",
    "COMMITTING", "CLEANUP", "SUCCEEDED",
]  # fmt: skip


async def test_a_first_build_goes_all_the_way(device: Any, controller: Any, serving: Any) -> None:
    build = controller.publish(1)
    async with device.running() as updates:
        updates.offer(controller.assignment(1, controller.item(build, 1)))
        assert await device.ended("x-digits-1") == "SUCCEEDED"
        assert controller.states("x-digits-1") == HAPPY
        origins = [controller.reports[f"x-digits-1/{n}"]["origin"] for n in range(1, len(HAPPY) + 1)]
        assert origins == ["IDLE", *HAPPY[:-1]]  # each report begins where the one before it ended (wire 4.7)
        assert serving.active == {"digits": build}
        assert device.slots.committed("model:digits") == device.slots.current("model:digits") == build
        assert updates.position == (1, 1)
        [item] = updates.reported_items()
        assert (item.component, item.generation, item.build, item.state) == ("model:digits", 1, build, "SUCCEEDED")


async def settle(device: Any, controller: Any, build: str, number: int = 1) -> None:
    """Bring ``build`` about as generation ``number`` in a run of its own."""
    async with device.running() as updates:
        updates.offer(controller.assignment(number, controller.item(build, number)))
        assert await device.ended(f"x-digits-{number}") == "SUCCEEDED"


async def test_a_second_build_replaces_the_first_and_the_first_is_kept(
    device: Any, controller: Any, serving: Any
) -> None:
    one, two, three = (controller.publish(n) for n in (1, 2, 3))
    await settle(device, controller, one, 1)
    await settle(device, controller, two, 2)
    assert serving.active == {"digits": two}
    assert list(serving.loaded["digits"]) == [two]
    assert device.slots.previous("model:digits") == one
    await settle(device, controller, three, 3)
    home = device.root / "builds/model/digits"
    assert {path.name for path in home.iterdir()} == {two, three, "current", "committed", "previous"}
    blobs = {path.name for path in (device.root / "blobs/sha256").glob("*/*")}
    assert blobs == {f.sha256 for m in device.slots.kept("model:digits").values() for f in m.files}


async def test_going_back_to_the_previous_build_needs_no_download(device: Any, controller: Any) -> None:
    one, two = controller.publish(1), controller.publish(2)
    await settle(device, controller, one, 1)
    await settle(device, controller, two, 2)
    controller.requests.clear()
    await settle(device, controller, one, 3)
    assert len(controller.requests) == 1  # its manifest
    assert device.slots.current("model:digits") == one


async def test_what_is_committed_already_is_skipped_and_an_offer_repeated_is_nothing(
    device: Any, controller: Any
) -> None:
    one = controller.publish(1)
    await settle(device, controller, one, 1)
    async with device.running() as updates:
        updates.offer(controller.assignment(1, controller.item(one, 1)))
        renamed = msgspec.structs.replace(controller.item(one, 1), execution="x-other")
        updates.offer(controller.assignment(2, renamed))  # the same generation is the same work, whatever its name
        updates.offer(controller.assignment(3, controller.item(one, 2)))
        assert await device.ended("x-digits-2") == "SKIPPED"
        updates.offer(controller.assignment(3, controller.item(one, 2)))
    assert controller.states("x-other") == []
    assert controller.states("x-digits-2") == ["OFFERED", "SKIPPED"]
    assert controller.states("x-digits-1") == HAPPY


async def test_a_model_is_removed_and_the_rest_stays(device: Any, controller: Any, serving: Any) -> None:
    one, other = controller.publish(1), controller.publish(1, "faces")
    faces = controller.item(other, 1, "model:faces")
    async with device.running() as updates:
        updates.offer(controller.assignment(1, controller.item(one, 1), faces))
        assert await device.ended("x-digits-1") == await device.ended("x-faces-1") == "SUCCEEDED"
        updates.offer(controller.assignment(2, controller.item(None, 2), faces))
        assert await device.ended("x-digits-2") == "SUCCEEDED"
        assert serving.active == {"faces": other}
        assert device.slots.current("model:digits") is None
        assert controller.states("x-faces-1").count("OFFERED") == 1
        updates.offer(controller.assignment(3, controller.item(None, 3), faces))
        assert await device.ended("x-digits-3") == "SKIPPED"


@pytest.mark.parametrize("kind", ["errors", "probe", "crash"])
async def test_a_build_that_fails_while_it_serves_goes_back_and_is_not_taken_again(
    device: Any, controller: Any, serving: Any, kind: str
) -> None:
    one, two = controller.publish(1), controller.publish(2)
    await settle(device, controller, one, 1)
    serving.bad[two], serving.traffic = kind, kind == "errors"
    policy = Policy(probation=30, probation_deadline=60)
    async with device.running() as updates:
        updates.offer(controller.assignment(2, controller.item(two, 2, policy=policy)))
        assert await device.ended("x-digits-2") == "FAILED"
        assert controller.states("x-digits-2")[-5:] == [
            "PROBATION", "ROLLING_BACK", "VERIFYING_ROLLBACK", "CLEANUP", "FAILED",
        ]  # fmt: skip
        assert serving.active == {"digits": one}
        assert device.slots.current("model:digits") == device.slots.committed("model:digits") == one
        fault = controller.reports[max(controller.reports, key=lambda key: int(key.split("/")[1]))]["fault"]
        assert fault.phase == "PROBATION"
        codes = {"errors": "error_rate", "probe": "probe_failed", "crash": "does_not_stay_up"}
        assert fault.code == codes[kind]
        updates.offer(controller.assignment(3, controller.item(two, 3)))
        assert await device.ended("x-digits-3") == "REJECTED"
        assert controller.states("x-digits-3") == ["OFFERED", "CLEANUP", "REJECTED"]
    assert not (device.root / "builds/model/digits" / two).exists()


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"passed": False, "reason": "it hangs"}, "trial_failed"),
        ({"difference": 0.5}, "wrong_outputs"),
        ({"peak_memory_bytes": 2**40}, "too_much_memory"),
        ({"p95_ms": 500.0}, "too_slow"),
    ],
)
async def test_a_build_that_fails_its_trial_never_serves(
    device: Any, controller: Any, serving: Any, trial_result: Any, changes: dict[str, Any], code: str
) -> None:
    one, two = controller.publish(1), controller.publish(2)
    await settle(device, controller, one, 1)
    serving.trials[two] = trial_result(**changes)
    async with device.running() as updates:
        updates.offer(controller.assignment(2, controller.item(two, 2)))
        assert await device.ended("x-digits-2") == "FAILED"
    assert controller.reports["x-digits-2/8"]["fault"].code == code
    assert f"activate {two}" not in serving.calls
    assert f"load {two}" not in serving.calls
    assert serving.active == {"digits": one}


async def test_a_deadline_that_is_shorter_than_a_trial_does_not_convict_the_build(
    device: Any, controller: Any, serving: Any, trial_result: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def slow(_directory: Path, _memory: int, deadline: float) -> Any:
        await asyncio.sleep(deadline - 0.05)
        return trial_result(passed=False, reason="no verdict in time")

    build = controller.publish(1)
    async with device.running() as updates:
        with monkeypatch.context() as patch:
            patch.setattr(updates._effects.live, "_trial", slow)
            updates.offer(controller.assignment(1, controller.item(build, 1, policy=Policy(install_deadline=0.3))))
            assert await device.ended("x-digits-1") == "FAILED"
        assert controller.reports["x-digits-1/8"]["fault"].code == "deadline"
        updates.offer(controller.assignment(2, controller.item(build, 2)))
        assert await device.ended("x-digits-2") == "SUCCEEDED"


async def test_probes_that_a_dying_serving_process_left_unanswered_do_not_convict_the_build(
    device: Any, controller: Any, serving: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = controller.publish(1)
    probe, deaths = serving.probe, 2

    async def probe_dying(model: str, build: str) -> Any:
        nonlocal deaths
        if deaths:
            deaths -= 1
            serving.restart()
        return await probe(model, build)

    monkeypatch.setattr(serving, "probe", probe_dying)
    async with device.running() as updates:
        updates.offer(controller.assignment(1, controller.item(one, 1)))
        assert await device.ended("x-digits-1") == "SUCCEEDED"


async def test_a_first_build_that_fails_is_removed(device: Any, controller: Any, serving: Any) -> None:
    one = controller.publish(1)
    serving.bad[one] = "probe"
    async with device.running() as updates:
        updates.offer(controller.assignment(1, controller.item(one, 1)))
        assert await device.ended("x-digits-1") == "FAILED"
    assert serving.active == {}
    assert device.slots.current("model:digits") is None


async def test_no_acknowledgement_means_no_commit_unless_the_policy_says_so(
    device: Any, controller: Any, serving: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_BACK_SECONDS", 0.2)
    one, two = controller.publish(1), controller.publish(2)
    controller.acknowledges = False
    strict = Policy(probation=0, probation_deadline=0.2)
    async with device.running() as updates:
        updates.offer(controller.assignment(1, controller.item(one, 1, policy=strict)))
        assert await device.ended("x-digits-1") == "FAILED"
        fault = controller.reports["x-digits-1/10"]["fault"]
        assert fault.code == "deadline"
        assert "acknowledged" in fault.message
        updates.offer(controller.assignment(2, controller.item(two, 2, policy=Policy(probation=0, offline_ok=True))))
        assert await device.ended("x-digits-2") == "SUCCEEDED"
        serving.traffic = True
        updates.offer(controller.assignment(3, controller.item(one, 3)))  # not the build's fault: not on the list
        await device.until(lambda: "PROBATION" in controller.states("x-digits-3"))
        assert device.slots.committed("model:digits") == two
        controller.acknowledges = True
        assert await device.ended("x-digits-3") == "SUCCEEDED"


async def test_the_whole_soak_is_served_before_the_commit(device: Any, controller: Any) -> None:
    begun = time.monotonic()
    async with device.running() as updates:
        policy = Policy(probation=0.3)
        updates.offer(controller.assignment(1, controller.item(controller.publish(1), 1, policy=policy)))
        assert await device.ended("x-digits-1") == "SUCCEEDED"
    assert time.monotonic() - begun >= 0.3


@pytest.mark.parametrize("wish", ["CANCELED", "SUPERSEDED"])
@pytest.mark.parametrize("where", ["OFFERED", "WARMING", "PROBATION", "DEFERRED"])
async def test_a_wish_is_honoured_within_seconds(
    device: Any, controller: Any, serving: Any, where: str, wish: str
) -> None:
    one, two, three = (controller.publish(n) for n in (1, 2, 3))
    other = controller.item(None, 1, "model:faces")
    await settle(device, controller, one, 1)
    policy = Policy(probation=0)
    if where == "OFFERED":
        controller.gate = threading.Event()
    elif where == "WARMING":
        serving.hang = f"trial {two}"
    elif where == "PROBATION":
        policy = Policy(probation=60)
    else:
        serving.down = True
    async with device.running() as updates:
        updates.offer(controller.assignment(2, controller.item(two, 2, policy=policy)))
        await device.until(lambda: where in controller.states("x-digits-2"))
        begun = time.monotonic()
        items = [other] if wish == "CANCELED" else [other, controller.item(three, 3)]
        updates.offer(controller.assignment(3, *items))
        if where == "DEFERRED":
            assert await device.ended("x-digits-2") == wish
            serving.down = False
        if controller.gate is not None:
            controller.gate.set()
        assert await device.ended("x-digits-2", 5) == wish
        assert time.monotonic() - begun < 5
        assert device.slots.committed("model:digits") == one
        if wish == "SUPERSEDED":
            assert await device.ended("x-digits-3") == "SUCCEEDED"
        else:
            assert serving.active == {"digits": one}
        assert await device.ended("x-faces-1") == "SKIPPED"


@pytest.mark.parametrize("wish", ["CANCELED", "SUPERSEDED"])
async def test_a_wish_after_the_proof_changes_nothing(
    device: Any, controller: Any, serving: Any, monkeypatch: pytest.MonkeyPatch, wish: str
) -> None:
    monkeypatch.setattr(effects, "_RETRY_SECONDS", 0.01)
    one, two, three = (controller.publish(n) for n in (1, 2, 3))
    await settle(device, controller, one, 1)
    switch_link, full = durable.switch_link, True

    def refuse(link: Path, target: str | Path, point: str) -> None:
        if full and point == "slots.committed":
            raise DeviceError("the disk is full", "disk_full")
        switch_link(link, target, point)

    monkeypatch.setattr(durable, "switch_link", refuse)
    faces = controller.item(None, 1, "model:faces")
    async with device.running() as updates:
        updates.offer(controller.assignment(2, controller.item(two, 2)))
        await device.until(lambda: "COMMITTING" in controller.states("x-digits-2"))
        updates.offer(controller.assignment(3, *([faces] if wish == "CANCELED" else [controller.item(three, 3)])))
        full = False
        assert await device.ended("x-digits-2") == "SUCCEEDED"
        if wish == "SUPERSEDED":
            assert await device.ended("x-digits-3") == "SUCCEEDED"
        else:
            assert list(serving.loaded["digits"]) == [two]  # cleaned up as ever


async def test_a_withdrawn_build_leaves_nothing_behind(device: Any, controller: Any, serving: Any) -> None:
    one, two = controller.publish(1), controller.publish(2)
    await settle(device, controller, one, 1)
    before = {path.relative_to(device.root) for path in device.root.rglob("*") if path.is_file()}
    async with device.running() as updates:
        updates.offer(controller.assignment(2, controller.item(two, 2, policy=Policy(probation=60))))
        await device.until(lambda: "PROBATION" in controller.states("x-digits-2"))
        updates.cancel("model:digits")
        assert await device.ended("x-digits-2") == "CANCELED"
        assert list(serving.loaded["digits"]) == [one]
    assert {path.relative_to(device.root) for path in device.root.rglob("*") if path.is_file()} == before


async def test_a_withdrawn_build_whose_way_back_fails_is_inconsistent(
    device: Any, controller: Any, serving: Any
) -> None:
    one, two = controller.publish(1), controller.publish(2)
    await settle(device, controller, one, 1)
    async with device.running() as updates:
        updates.offer(controller.assignment(2, controller.item(two, 2, policy=Policy(probation=60))))
        await device.until(lambda: "PROBATION" in controller.states("x-digits-2"))
        serving.bad[one] = "probe"
        updates.cancel("model:digits")
        assert await device.ended("x-digits-2") == "INCONSISTENT"


async def test_components_take_turns_but_do_not_block_each_other(device: Any, controller: Any, serving: Any) -> None:
    one, other, third = (controller.publish(1, name) for name in ("digits", "faces", "sounds"))
    serving.hang = f"trial {one}"
    items = [
        controller.item(one, 1), controller.item(other, 1, "model:faces"), controller.item(third, 1, "model:sounds"),
    ]  # fmt: skip
    async with device.running() as updates:
        updates.offer(controller.assignment(1, items[0]))
        await device.until(lambda: "WARMING" in controller.states("x-digits-1"))
        updates.offer(controller.assignment(2, *items))
        await device.until(lambda: "WAITING" in controller.states("x-faces-1"))
        updates.cancel("model:digits")
        assert await device.ended("x-digits-1") == "CANCELED"
        assert await device.ended("x-faces-1") == await device.ended("x-sounds-1") == "SUCCEEDED"
        assert serving.active == {"faces": other, "sounds": third}


async def test_a_queue_of_offers_ends_with_the_newest(device: Any, controller: Any, serving: Any) -> None:
    builds = [controller.publish(n) for n in range(4)]
    async with device.running() as updates:
        for number, build in enumerate(builds, start=1):
            updates.offer(controller.assignment(number, controller.item(build, number)))
        assert await device.ended("x-digits-4") == "SUCCEEDED"
        assert [await device.ended(f"x-digits-{n}") for n in (1, 2, 3)] == ["SUPERSEDED"] * 3
    assert serving.active == {"digits": builds[3]}


@pytest.mark.parametrize(
    ("capabilities", "code"),
    [
        (Capabilities("armv7l", {"onnxruntime": "1.23"}), "wrong_arch"),
        (Capabilities("x86_64", {"tflite": "2"}), "no_runtime"),
        (Capabilities("x86_64", {"onnxruntime": "1.9.1"}), "old_runtime"),
    ],
)
async def test_an_unfit_build_is_rejected_before_its_files_are_fetched(
    device: Any, controller: Any, capabilities: Capabilities, code: str
) -> None:
    device.capabilities = capabilities
    async with device.running() as updates:
        updates.offer(controller.assignment(1, controller.item(controller.publish(1), 1)))
        assert await device.ended("x-digits-1") == "REJECTED"
    assert controller.reports["x-digits-1/4"]["fault"].code == code
    assert len(controller.requests) == 1


async def test_a_full_disk_refuses_the_change_and_serving_goes_on(device: Any, controller: Any, serving: Any) -> None:
    one, two = controller.publish(1), controller.publish(2)
    await settle(device, controller, one, 1)
    device.free = 20_000
    async with device.running() as updates:
        updates.offer(controller.assignment(2, controller.item(two, 2)))
        assert await device.ended("x-digits-2") == "FAILED"
        assert controller.reports["x-digits-2/4"]["fault"].code == "disk_full"
        assert serving.active == {"digits": one}
        device.free = 10**9
        updates.offer(controller.assignment(3, controller.item(two, 3)))  # a full disk is not the build's fault
        assert await device.ended("x-digits-3") == "SUCCEEDED"


async def test_a_manifest_of_another_build_is_rejected(device: Any, controller: Any) -> None:
    one, two = controller.publish(1), controller.publish(2)
    item = msgspec.structs.replace(controller.item(one, 1), build=two)
    async with device.running() as updates:
        updates.offer(controller.assignment(1, item))
        assert await device.ended("x-digits-1") == "REJECTED"
    assert controller.reports["x-digits-1/3"]["fault"].code == "other_build"


async def test_a_missing_artifact_fails_and_ends(device: Any, controller: Any) -> None:
    build = controller.publish(1)
    item = controller.item(build, 1)
    for sha256 in [name for name in controller.artifacts if name != item.manifest_sha256]:
        del controller.artifacts[sha256]
    async with device.running() as updates:
        updates.offer(controller.assignment(1, item))
        assert await device.ended("x-digits-1") == "FAILED"
    assert controller.reports["x-digits-1/5"]["fault"].code == "not_found"
    assert len(controller.requests) == 2


async def test_a_restarted_serving_is_given_what_is_committed(device: Any, controller: Any, serving: Any) -> None:
    one = controller.publish(1)
    await settle(device, controller, one, 1)
    async with device.running() as updates:
        serving.restart()
        assert serving.active == {}
        assert await updates.restore() == []
        assert serving.active == {"digits": one}
        calls = len(serving.calls)
        assert await updates.restore() == []
        assert set(serving.calls[calls:]) == {"state"}


async def test_a_damaged_known_good_build_gives_way_to_the_one_before(
    device: Any, controller: Any, serving: Any
) -> None:
    one, two = controller.publish(1), controller.publish(2)
    await settle(device, controller, one, 1)
    await settle(device, controller, two, 2)
    (device.root / "builds/model/digits" / two / "model.onnx").write_bytes(b"")
    serving.restart()
    async with device.running() as updates:
        assert await updates.restore() == []
        assert serving.active == {"digits": one}
        assert device.slots.committed("model:digits") == device.slots.current("model:digits") == one


def rot(path: Path) -> None:
    """Change one byte of the file, and not its size."""
    with path.open("r+b") as file:
        first = file.read(1)
        file.seek(0)
        file.write(bytes([first[0] ^ 1]))


async def test_a_rotten_known_good_build_gives_way_to_the_one_before(
    device: Any, controller: Any, serving: Any
) -> None:
    one, two = controller.publish(1), controller.publish(2)
    await settle(device, controller, one, 1)
    await settle(device, controller, two, 2)
    home = device.root / "builds/model/digits"
    rot(home / two / "model.onnx")
    serving.restart()
    async with device.running() as updates:
        assert await updates.restore() == []
        assert serving.active == {"digits": one}
        assert device.slots.committed("model:digits") == device.slots.current("model:digits") == one
        rot(home / one / "model.onnx")  # now there is no good one: said, and nothing wrong is served
        serving.restart()
        assert await updates.restore() == ["model:digits"]
        assert serving.active == {}
        assert device.slots.committed("model:digits") == one


async def test_what_has_rotted_is_fetched_again(device: Any, controller: Any, serving: Any) -> None:
    one, two = controller.publish(1), controller.publish(2)
    await settle(device, controller, one, 1)
    await settle(device, controller, two, 2)
    rot(device.root / "builds/model/digits" / one / "model.onnx")
    await settle(device, controller, one, 3)
    assert serving.active == {"digits": one}


async def test_a_restore_leaves_a_build_on_probation_alone(device: Any, controller: Any, serving: Any) -> None:
    one, two = controller.publish(1), controller.publish(2)
    await settle(device, controller, one, 1)
    async with device.running() as updates:
        updates.offer(controller.assignment(2, controller.item(two, 2, policy=Policy(probation=60))))
        await device.until(lambda: "PROBATION" in controller.states("x-digits-2"))
        serving.calls.clear()
        assert await updates.restore() == []
        assert serving.active == {"digits": two}
        assert f"activate {one}" not in serving.calls


async def test_what_rots_before_its_trial_is_not_tried_and_not_the_builds_fault(
    device: Any, controller: Any, serving: Any
) -> None:
    build = controller.publish(1)
    serving.hang = f"trial {build}"
    async with device.running() as updates:
        updates.offer(controller.assignment(1, controller.item(build, 1)))
        await device.until(lambda: serving.hang in serving.calls)
    rot(device.root / "builds/model/digits" / build / "model.onnx")
    serving.calls.clear()
    serving.hang = ""
    async with device.running() as updates:
        assert await device.ended("x-digits-1") == "FAILED"
        assert controller.reports["x-digits-1/8"]["fault"].code == "wrong_hash"
        assert f"trial {build}" not in serving.calls
        updates.offer(controller.assignment(2, controller.item(build, 2)))
        assert await device.ended("x-digits-2") == "SUCCEEDED"


async def test_a_restore_that_takes_long_does_not_undo_an_update(
    device: Any, controller: Any, serving: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = controller.publish(1), controller.publish(2)
    await settle(device, controller, one, 1)
    serving.restart()
    serving.calls.clear()
    verify, card_answers = Slots.verify, threading.Event()

    def slow(slots: Slots, component: str, build: str, check: Any = lambda: None) -> Any:
        if build == one:
            assert card_answers.wait(20)
        return verify(slots, component, build, check)

    monkeypatch.setattr(Slots, "verify", slow)
    async with device.running() as updates:  # which restores what is committed
        updates.offer(controller.assignment(2, controller.item(two, 2)))
        await device.until(lambda: "ACTIVATING" in controller.states("x-digits-2"))
        with contextlib.suppress(TimeoutError):  # it waits for the restore, and must not get past it
            await device.ended("x-digits-2", 0.3)
        card_answers.set()
        assert await device.ended("x-digits-2") == "SUCCEEDED"
        await device.until(lambda: f"activate {one}" in serving.calls)
        assert serving.active == {"digits": two}


async def test_a_broken_journal_is_set_aside_and_serving_goes_on(device: Any, controller: Any, serving: Any) -> None:
    one, two = controller.publish(1), controller.publish(2)
    await settle(device, controller, one, 1)
    async with device.running() as updates:
        updates.offer(controller.assignment(2, controller.item(two, 2, policy=Policy(probation=60))))
        await device.until(lambda: "PROBATION" in controller.states("x-digits-2"))
        assert serving.active == {"digits": two}
    journal = device.root / "updates.db"
    journal.write_bytes(b"\xff" * journal.stat().st_size)
    async with device.running() as updates:
        await device.until(lambda: serving.active == {"digits": one})  # what was on trial is unproven
        assert updates.position == (0, 0)
        [item] = updates.reported_items()
        assert item.build == one
        updates.offer(controller.assignment(3, controller.item(two, 3)))
        assert await device.ended("x-digits-3") == "SUCCEEDED"
    assert len(list(device.root.glob("updates.db.broken-*"))) == 1


async def test_a_journal_that_cannot_be_written_stops_changes_and_not_serving(
    device: Any, controller: Any, serving: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_RETRY_SECONDS", 0.01)
    one, two = controller.publish(1), controller.publish(2)
    await settle(device, controller, one, 1)
    commit = durable.commit
    full = True

    def refuse(connection: sqlite3.Connection, point: str) -> None:
        if full and point == "journal.installing":
            connection.rollback()
            raise DeviceError("the disk is full", "disk_full")
        commit(connection, point)

    monkeypatch.setattr(durable, "commit", refuse)
    async with device.running() as updates:
        updates.offer(controller.assignment(2, controller.item(two, 2)))
        await device.until(lambda: "STAGED" in controller.states("x-digits-2"))
        assert serving.active == {"digits": one}
        full = False
        assert await device.ended("x-digits-2") == "SUCCEEDED"


async def test_a_rollback_that_cannot_be_verified_is_called_inconsistent(
    device: Any, controller: Any, serving: Any
) -> None:
    one, two = controller.publish(1), controller.publish(2)
    await settle(device, controller, one, 1)
    serving.bad = {one: "probe", two: "probe"}
    async with device.running() as updates:
        updates.offer(controller.assignment(2, controller.item(two, 2)))
        assert await device.ended("x-digits-2") == "INCONSISTENT"
    assert device.slots.current("model:digits") == one


async def test_a_new_epoch_may_begin_again_with_small_generations(device: Any, controller: Any, serving: Any) -> None:
    one, two = controller.publish(1), controller.publish(2)
    async with device.running() as updates:
        updates.offer(controller.assignment(9, controller.item(one, 7)))
        assert await device.ended("x-digits-7") == "SUCCEEDED"
        updates.offer(controller.assignment(10, controller.item(two, 3)))
        assert controller.states("x-digits-3") == []
        updates.offer(controller.assignment(1, controller.item(two, 3), epoch=2))
        assert await device.ended("x-digits-3") == "SUCCEEDED"
        assert updates.position == (2, 1)


async def test_an_unforeseen_error_fails_one_execution_and_not_the_loop(
    device: Any, controller: Any, serving: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = controller.publish(1), controller.publish(2)
    await settle(device, controller, one, 1)

    async def burst(*_: Any) -> None:
        raise ZeroDivisionError("what is this")

    async with device.running() as updates:
        with monkeypatch.context() as patch:
            patch.setattr(updates._effects.live, "_trial", burst)
            updates.offer(controller.assignment(2, controller.item(two, 2)))
            assert await device.ended("x-digits-2") == "FAILED"
        assert controller.reports["x-digits-2/8"]["fault"].code == "internal"
        updates.offer(controller.assignment(3, controller.item(two, 3)))
        assert await device.ended("x-digits-3") == "SUCCEEDED"


async def run_until(device: Any, condition: Any) -> None:
    """Let the agent run until ``condition`` holds, then end it."""
    async with device.running():
        await device.until(condition)


async def test_an_agent_that_dies_in_every_trial_gives_the_build_up(device: Any, controller: Any, serving: Any) -> None:
    one, two = controller.publish(1), controller.publish(2)
    await settle(device, controller, one, 1)
    serving.hang = f"trial {two}"
    async with device.running() as updates:
        updates.offer(controller.assignment(2, controller.item(two, 2)))
    restarts = 0
    while "FAILED" not in controller.states("x-digits-2"):
        restarts += 1
        assert restarts < 30
        count = len(serving.calls)
        await run_until(
            device,
            lambda count=count: serving.hang in serving.calls[count:] or "FAILED" in controller.states("x-digits-2"),
        )
    assert restarts > 10
    assert serving.active == {"digits": one}
    fault = controller.reports[[key for key in controller.reports if key.startswith("x-digits-2/")][-1]]["fault"]
    assert fault.code == "looped"


async def test_a_restart_goes_on_where_the_table_says(device: Any, controller: Any, serving: Any) -> None:
    serving.down = True
    async with device.running() as updates:
        updates.offer(controller.assignment(1, controller.item(controller.publish(1), 1)))
        await device.until(lambda: "DEFERRED" in controller.states("x-digits-1"))
    serving.down = False
    async with device.running():
        assert await device.ended("x-digits-1") == "SUCCEEDED"
    [installing] = [report for report in controller.reports.values() if report["state"] == "INSTALLING"]
    assert installing["origin"] == "STAGED"


async def test_restarts_during_a_download_do_not_count_against_it(device: Any, controller: Any) -> None:
    one = controller.publish(1)
    controller.gate = threading.Event()
    async with device.running() as updates:
        updates.offer(controller.assignment(1, controller.item(one, 1)))
    for _ in range(40):
        count = len(controller.requests)
        await run_until(device, lambda count=count: len(controller.requests) > count)
    controller.gate.set()
    async with device.running():
        assert await device.ended("x-digits-1") == "SUCCEEDED"


async def test_a_deadline_outlives_restarts(device: Any, controller: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "SPEND_SECONDS", 0.02)
    one = controller.publish(1)
    controller.gate = threading.Event()
    policy = Policy(download_deadline=0.5)
    begun = time.monotonic()
    async with device.running() as updates:
        updates.offer(controller.assignment(1, controller.item(one, 1, policy=policy)))
    while "TIMED_OUT" not in controller.states("x-digits-1"):
        assert time.monotonic() - begun < 5
        end = time.monotonic() + 0.2
        await run_until(
            device, lambda end=end: time.monotonic() > end or "TIMED_OUT" in controller.states("x-digits-1")
        )
    assert time.monotonic() - begun >= 0.5
    assert controller.reports["x-digits-1/2"]["fault"].code == "deadline"
    controller.gate.set()


async def test_serving_that_restarts_during_a_rollback_is_told_the_known_good_build(
    device: Any, controller: Any, serving: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = controller.publish(1), controller.publish(2)
    await settle(device, controller, one, 1)
    serving.bad[two] = "probe"
    probe = serving.probe

    async def probe_once(model: str, build: str) -> Any:
        if build == one:  # the first look after the way back finds it dead
            serving.probe = probe
            serving.restart()
        return await probe(model, build)

    monkeypatch.setattr(serving, "probe", probe_once)
    async with device.running() as updates:
        updates.offer(controller.assignment(2, controller.item(two, 2)))
        assert await device.ended("x-digits-2") == "FAILED"
    assert serving.active == {"digits": one}
