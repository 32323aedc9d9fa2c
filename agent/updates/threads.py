"""Slow work on files, off the event loop, and stopped within one chunk.

Invariant: when ``in_thread`` returns or raises, the thread's work has ended: nobody writes behind the back of whoever
comes next.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

from agent import durable
from agent.builds.store import Check

T = TypeVar("T")


class _StoppedError(Exception):
    """The coroutine that waited was cancelled."""


async def in_thread(work: Callable[..., T]) -> T:
    """Return ``work(check=…)``, run in a thread. Cancelled, it makes ``check`` raise and waits for the thread's end."""
    stopped = threading.Event()

    def check() -> None:
        if stopped.is_set():
            raise _StoppedError

    task = asyncio.ensure_future(asyncio.to_thread(_run, work, check))
    try:
        value, cut = await asyncio.shield(task)
    except asyncio.CancelledError:
        stopped.set()
        await asyncio.wait([task])
        raise
    if cut is not None:
        raise cut
    assert value is not None
    return value[0]


def _run(work: Callable[..., T], check: Check) -> tuple[tuple[T] | None, BaseException | None]:
    try:
        return (work(check=check),), None
    except (Exception, durable.PowerCut) as error:  # as a value: nobody may be left to take it as an exception
        return None, error
