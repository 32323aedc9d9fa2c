"""No build is touched for which the signed repository does not vouch, and trouble with it costs time only."""

from __future__ import annotations

from typing import Any

import pytest

from agent.errors import TrustError
from agent.updates import effects
from wire.assignment import Policy


async def test_each_new_build_is_vouched_for_before_anything_of_it_is_fetched(device: Any, controller: Any) -> None:
    build = controller.publish(1)
    controller.refusals = [TrustError("the repository has no such build", "not_vouched")]
    async with device.running() as updates:
        updates.offer(controller.assignment(1, controller.item(build, 1)))
        assert await device.ended("x-digits-1") == "REJECTED"
    assert controller.vouched == [build]
    fault = next(report["fault"] for report in controller.reports.values() if report.get("fault"))
    assert (fault.code, fault.message) == ("not_vouched", "the repository has no such build")
    assert len(controller.requests) == 1, "the manifest alone was fetched"
    assert device.slots.current("model:digits") is None


async def test_trouble_with_the_repository_is_waited_out(
    device: Any, controller: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(effects, "_RETRY_SECONDS", 0.01)
    build = controller.publish(1)
    controller.refusals = [
        TrustError("nobody there", "unreachable"),
        TrustError("it expired yesterday", "expired"),
        TrustError("it is 1970 here", "clock_suspect"),
    ]
    async with device.running() as updates:
        updates.offer(controller.assignment(1, controller.item(build, 1)))
        assert await device.ended("x-digits-1") == "SUCCEEDED"
    assert controller.vouched == [build] * 4


async def test_waiting_for_the_repository_ends_with_the_time_of_a_download(
    device: Any, controller: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(effects, "_RETRY_SECONDS", 0.05)
    controller.refusals = [TrustError("it expired yesterday", "expired") for _ in range(1000)]
    item = controller.item(controller.publish(1), 1, policy=Policy(download_deadline=0.3))
    async with device.running() as updates:
        updates.offer(controller.assignment(1, item))
        assert await device.ended("x-digits-1") == "TIMED_OUT"
    fault = next(report["fault"] for report in controller.reports.values() if report.get("fault"))
    assert "it expired yesterday" in fault.message


async def test_a_repository_that_lies_ends_the_update_at_once(device: Any, controller: Any) -> None:
    controller.refusals = [TrustError("older than what was seen", "rollback")]
    async with device.running() as updates:
        updates.offer(controller.assignment(1, controller.item(controller.publish(1), 1)))
        assert await device.ended("x-digits-1") == "FAILED"
    assert len(controller.vouched) == 1


async def test_going_back_to_an_installed_build_needs_no_repository(device: Any, controller: Any) -> None:
    one, two = controller.publish(1), controller.publish(2)
    async with device.running() as updates:
        for number, build in ((1, one), (2, two)):
            updates.offer(controller.assignment(number, controller.item(build, number)))
            assert await device.ended(f"x-digits-{number}") == "SUCCEEDED"
        controller.refusals = [TrustError("it expired yesterday", "expired")]
        updates.offer(controller.assignment(3, controller.item(one, 3)))
        assert await device.ended("x-digits-3") == "SUCCEEDED"
    assert controller.vouched == [one, two]
    assert device.slots.committed("model:digits") == one
