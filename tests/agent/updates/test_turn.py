"""One at a time, in order, and nobody is forgotten."""

from __future__ import annotations

import asyncio

import pytest

from agent.updates.turn import Turn


async def test_the_longest_waiting_comes_next() -> None:
    turn, order = Turn(), []
    assert turn.take("a")
    assert turn.take("a")
    assert not turn.take("b")

    async def wait(name: str) -> None:
        await turn.wait(name)
        order.append(name)
        turn.release(name)

    tasks = [asyncio.create_task(wait(name)) for name in ("b", "c", "d")]
    await asyncio.sleep(0)
    turn.release("b")  # not its holder
    assert turn.holder == "a"
    turn.release("a")
    await asyncio.gather(*tasks)
    assert order == ["b", "c", "d"]
    assert turn.holder is None


async def test_who_gives_up_is_passed_over_even_when_it_was_just_called() -> None:
    turn = Turn()
    turn.take("a")
    early, late, last = (asyncio.create_task(turn.wait(name)) for name in ("b", "c", "d"))
    await asyncio.sleep(0)
    early.cancel()
    await asyncio.sleep(0)
    turn.release("a")
    late.cancel()  # called, and cancelled before it could run
    with pytest.raises(asyncio.CancelledError):
        await late
    await last
    assert turn.holder == "d"


async def test_nobody_overtakes_those_who_wait() -> None:
    turn = Turn()
    turn.take("a")
    waiting = asyncio.create_task(turn.wait("b"))
    await asyncio.sleep(0)
    turn.release("a")
    assert not turn.take("c")
    await waiting
