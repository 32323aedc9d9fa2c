"""What the agent's control does by itself, without a process: the clock, and what could not be brought back."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from agent import app
from agent.app import Agent
from agent.identity.enrol import enrol
from agent.settings import Settings


@pytest.fixture
def agent(far: Any, data: Path, monkeypatch: pytest.MonkeyPatch) -> Agent:
    monkeypatch.setattr(app, "_LOOK_SECONDS", 0.005)
    return Agent(Settings(data=str(data)), enrol(data, far.token, far.url, {}, "bench"))


@contextlib.asynccontextmanager
async def working(part: Coroutine[Any, Any, None]) -> Any:
    task = asyncio.create_task(part)
    try:
        async with asyncio.timeout(10):
            yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@pytest.mark.parametrize("jump", [3.0e8, -7200.0])
async def test_a_clock_that_was_set_renews_what_was_signed_by_the_wrong_time(
    agent: Agent, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    real, ahead, asked = time.time, [0.0], 0

    def clock() -> float:
        nonlocal asked
        asked += 1
        return real() + ahead[0]

    monkeypatch.setattr(app.time, "time", clock)
    async with working(agent._watch_clock()):
        while asked < 5:
            await asyncio.sleep(0.001)
        assert not agent._tunnel.is_set()
        ahead[0] = jump
        await agent._tunnel.wait()  # a fresh credential for the tunnel
        await agent._new_desired.wait()  # what was refused as expired is judged again
        agent._tunnel.clear()
        asked = 0
        while asked < 5:
            await asyncio.sleep(0.001)
        assert not agent._tunnel.is_set()  # once


async def test_what_could_not_be_brought_back_is_tried_again(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "_MISSING_SECONDS", 0.01)
    answers, asked = [["model:digits"], ["model:digits"], []], 0

    class Updates:
        async def restore(self) -> list[str]:
            nonlocal asked
            asked += 1
            return answers[asked - 1]

    monkeypatch.setattr(agent, "_updates", Updates(), raising=False)
    agent._started.set()
    async with working(agent._restore()):
        while asked < 3:
            await asyncio.sleep(0.001)
    assert asked == 3
