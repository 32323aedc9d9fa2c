"""The parts of a program as tasks: all of them run until the program is to end, or until the first of them ends.

Invariant: when one of these functions returns, what it cancelled has ended. Knows no part.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Coroutine
from typing import Any

from agent.errors import DeviceError


async def until(end: asyncio.Event, work: Coroutine[Any, Any, Any]) -> Any:
    """Return what ``work`` returns, or None when ``end`` was set before."""
    task, waiting = asyncio.create_task(work), asyncio.create_task(end.wait())
    try:
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        await cancel([task, waiting])


async def first_end(tasks: Collection[asyncio.Task[None]]) -> None:
    """Raise why the first of ``tasks`` ended: none of them should."""
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        error: BaseException | None = task.exception()
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if error is not None:
            raise error
        raise DeviceError(f"a part of the agent ended: {task.get_name()}; start the agent again", "ended")


async def cancel(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancel ``tasks`` and wait for their end, however they end."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
