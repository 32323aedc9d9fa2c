"""Whole updates, over real HTTP, a real journal and real files."""

from __future__ import annotations

from typing import Any

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
        assert serving.active == {"digits": build}
        assert device.slots.committed("model:digits") == device.slots.current("model:digits") == build
        assert updates.position == (1, 1)
        [item] = updates.reported_items()
        assert (item.component, item.generation, item.build, item.state) == ("model:digits", 1, build, "SUCCEEDED")
