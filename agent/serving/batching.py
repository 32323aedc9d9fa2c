"""Which waiting requests run together, and when.

Invariant: pure. Requests leave in order of arrival among those of equal shapes; a batch never joins requests of unequal
shapes nor exceeds ``max_batch`` rows by joining; a request past its deadline never runs. "Natural batching": what has
gathered while the engine was busy runs as soon as it is free; only with ``max_delay`` does a free engine wait for more.
Does not bound the queue (`admission.py`) nor run anything (`dispatch.py`).
"""

from __future__ import annotations

from collections.abc import Hashable

import msgspec


class Rules(msgspec.Struct, frozen=True):
    """max_batch: rows that may be joined, 1 for never; max_delay: seconds that a free engine waits for a full batch."""

    max_batch: int = 1
    max_delay: float = 0.0


class Waiting(msgspec.Struct, frozen=True):
    """One request in the queue. key: equal for requests that may run together. Instants in seconds of one clock."""

    id: int
    items: int
    bytes: int
    key: Hashable
    arrived: float
    deadline: float


class Queue(msgspec.Struct, frozen=True):
    """The requests that wait, in order of arrival, and their sums."""

    waiting: tuple[Waiting, ...] = ()
    items: int = 0
    bytes: int = 0


class Run(msgspec.Struct, frozen=True):
    """The engine shall run these together now."""

    batch: tuple[Waiting, ...]


class Expired(msgspec.Struct, frozen=True):
    """These are past their deadline and left the queue."""

    requests: tuple[Waiting, ...]


class WakeAt(msgspec.Struct, frozen=True):
    """Nothing to do before this instant, unless a request comes or the engine becomes free."""

    instant: float


Action = Run | Expired | WakeAt


def offer(queue: Queue, request: Waiting) -> Queue:
    """Return ``queue`` with ``request`` at its end."""
    return Queue((*queue.waiting, request), queue.items + request.items, queue.bytes + request.bytes)


def withdraw(queue: Queue, ids: frozenset[int]) -> Queue:
    """Return ``queue`` without the requests ``ids``; the same object when none of them waits."""
    kept = tuple(request for request in queue.waiting if request.id not in ids)
    return queue if len(kept) == len(queue.waiting) else _queue(kept)


def tick(queue: Queue, free: bool, now: float, rules: Rules) -> tuple[Queue, list[Action]]:
    """Return the queue after this instant, and what to do: expired ones first, then at most one Run or WakeAt."""
    actions: list[Action] = []
    if not queue.waiting:
        return queue, actions
    expired = tuple(request for request in queue.waiting if request.deadline <= now)
    if expired:
        queue = withdraw(queue, frozenset(request.id for request in expired))
        actions.append(Expired(expired))
    if not free or not queue.waiting:
        return queue, actions
    batch, items = _gather(queue, rules.max_batch)
    if rules.max_delay and items < rules.max_batch:
        # At most half of what a deadline left at its arrival may be spent on waiting for company.
        patience = min((request.arrived + request.deadline) / 2 for request in batch)
        soonest = min(batch[0].arrived + rules.max_delay, patience)
        if soonest > now:
            actions.append(WakeAt(soonest))
            return queue, actions
    actions.append(Run(batch))
    if len(batch) == len(queue.waiting):
        return Queue(), actions
    return withdraw(queue, frozenset(request.id for request in batch)), actions


def _gather(queue: Queue, max_batch: int) -> tuple[tuple[Waiting, ...], int]:
    first = queue.waiting[0]
    batch, items = [first], first.items
    if items < max_batch:
        for request in queue.waiting[1:]:
            if request.key != first.key:
                continue
            if items + request.items > max_batch:
                break  # the next of this shape does not fit: no later one may overtake it
            batch.append(request)
            items += request.items
    return tuple(batch), items


def _queue(waiting: tuple[Waiting, ...]) -> Queue:
    return Queue(waiting, sum(request.items for request in waiting), sum(request.bytes for request in waiting))
