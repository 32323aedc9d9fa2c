"""What follows what in the life of an execution: the tables NEXT, RESUME and OUTCOME, and how they are read.

Invariant: COMMITTING is entered from PROBATION alone, SUCCEEDED from CLEANUP alone, and whatever goes wrong between
INSTALLING and PROBATION passes through ROLLING_BACK. Does nothing itself: `loop.py` walks the tables, `journal.py`
writes each step down before `effects.py` does it.

Where a row lacks an event, that event is not honoured there: a cancellation waits out COMMITTING, for example.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from wire.execution import TERMINAL, ExecutionState

S = ExecutionState

MAX_TRANSITIONS: Final = 28  # of one execution, restarts of risky states included; more is the event LOOPED
MAX_ROLLBACK_TRANSITIONS: Final = 40  # the way back has an allowance of its own on top
MAX_STARTS: Final = 3  # of one probation: more begins, and the build is one that does not stay up


class Event(StrEnum):
    """What happens to an execution. The last eight carry the name of the terminal state that they ask for."""

    OFFERED = "OFFERED"  # its turn has come
    DONE = "DONE"  # the state's work is done
    WAIT = "WAIT"  # another component is being brought about
    DEFER = "DEFER"  # serving cannot take a build just now
    ERROR = "ERROR"  # the state's work failed
    LOOPED = "LOOPED"  # too many transitions
    SUCCEEDED = "SUCCEEDED"
    SKIPPED = "SKIPPED"  # nothing to do: the build is committed already
    FAILED = "FAILED"
    INCONSISTENT = "INCONSISTENT"
    REJECTED = "REJECTED"  # this build must not be installed on this device
    CANCELED = "CANCELED"  # withdrawn
    TIMED_OUT = "TIMED_OUT"  # the state's deadline passed
    SUPERSEDED = "SUPERSEDED"  # a newer generation of the same component was offered


E = Event

_STOPS: Final = (E.ERROR, E.TIMED_OUT, E.CANCELED, E.SUPERSEDED, E.LOOPED)
_AWAY: Final = dict.fromkeys(_STOPS, S.CLEANUP)
_BACK: Final = dict.fromkeys(_STOPS, S.ROLLING_BACK)
_LOST: Final = dict.fromkeys((E.ERROR, E.TIMED_OUT, E.LOOPED), S.CLEANUP)

NEXT: Final[dict[ExecutionState, dict[Event, ExecutionState]]] = {
    S.IDLE:               {E.OFFERED: S.OFFERED,         E.CANCELED: S.CANCELED, E.SUPERSEDED: S.SUPERSEDED},
    S.OFFERED:            {E.DONE: S.PRECHECK,           E.SKIPPED: S.SKIPPED,   E.REJECTED: S.CLEANUP, **_AWAY},
    S.PRECHECK:           {E.DONE: S.DOWNLOADING,        E.REJECTED: S.CLEANUP, **_AWAY},
    S.DOWNLOADING:        {E.DONE: S.VERIFYING,          **_AWAY},
    S.VERIFYING:          {E.DONE: S.STAGED,             **_AWAY},
    S.STAGED:             {E.DONE: S.INSTALLING,         E.WAIT: S.WAITING,      E.DEFER: S.DEFERRED, **_AWAY},
    S.WAITING:            {E.DONE: S.INSTALLING,         E.DEFER: S.DEFERRED, **_AWAY},
    S.DEFERRED:           {E.DONE: S.INSTALLING,         **_AWAY},
    S.INSTALLING:         {E.DONE: S.WARMING,            **_BACK},
    S.WARMING:            {E.DONE: S.ACTIVATING,         **_BACK},
    S.ACTIVATING:         {E.DONE: S.PROBATION,          **_BACK},
    S.PROBATION:          {E.DONE: S.COMMITTING,         **_BACK},
    S.COMMITTING:         {E.DONE: S.CLEANUP,            E.ERROR: S.COMMITTING,   E.LOOPED: S.ROLLING_BACK},
    S.ROLLING_BACK:       {E.DONE: S.VERIFYING_ROLLBACK, **_LOST},
    S.VERIFYING_ROLLBACK: {E.DONE: S.CLEANUP,            **_LOST},
    S.CLEANUP:            {E.SUCCEEDED: S.SUCCEEDED,     E.FAILED: S.FAILED,     E.INCONSISTENT: S.INCONSISTENT,
                           E.REJECTED: S.REJECTED,       E.CANCELED: S.CANCELED, E.TIMED_OUT: S.TIMED_OUT,
                           E.SUPERSEDED: S.SUPERSEDED},
    **{state: {} for state in TERMINAL},
}  # fmt: skip

# Where a restart goes on. The work of every state may be done again from its beginning.
RESUME: Final[dict[ExecutionState, ExecutionState]] = {
    S.IDLE:               S.IDLE,
    S.OFFERED:            S.OFFERED,
    S.PRECHECK:           S.PRECHECK,
    S.DOWNLOADING:        S.DOWNLOADING,         # goes on from the bytes on disk, hashed again
    S.VERIFYING:          S.VERIFYING,
    S.STAGED:             S.STAGED,
    S.WAITING:            S.STAGED,              # whom it waited for is gone as well
    S.DEFERRED:           S.STAGED,
    S.INSTALLING:         S.INSTALLING,          # nothing live was touched
    S.WARMING:            S.WARMING,
    S.ACTIVATING:         S.ACTIVATING,          # finishes the switch
    S.PROBATION:          S.PROBATION,           # a start is counted, and the soak begins anew
    S.COMMITTING:         S.COMMITTING,          # proven: only forward
    S.ROLLING_BACK:       S.ROLLING_BACK,
    S.VERIFYING_ROLLBACK: S.ROLLING_BACK,        # serving may have restarted as well: back to the known good one first
    S.CLEANUP:            S.CLEANUP,
    **{state: state for state in TERMINAL},
}  # fmt: skip

# The states in which the build itself runs or changes what runs: there a restart may be the update's own doing.
BACK: Final = frozenset({S.ROLLING_BACK, S.VERIFYING_ROLLBACK})
RISKY: Final = frozenset({S.INSTALLING, S.WARMING, S.ACTIVATING, S.PROBATION, S.COMMITTING}) | BACK

# Which terminal state a failure before INSTALLING asks for; from there on only what was withdrawn keeps its name.
_EARLY: Final = {E.ERROR: S.FAILED, E.LOOPED: S.FAILED, E.TIMED_OUT: S.TIMED_OUT, E.REJECTED: S.REJECTED,
                 E.CANCELED: S.CANCELED, E.SUPERSEDED: S.SUPERSEDED}  # fmt: skip
_LATE: Final = {E.ERROR: S.FAILED, E.LOOPED: S.FAILED, E.TIMED_OUT: S.FAILED,
                E.CANCELED: S.CANCELED, E.SUPERSEDED: S.SUPERSEDED}  # fmt: skip


def step(state: ExecutionState, event: Event) -> ExecutionState:
    """Return the state that follows ``state`` on ``event``. Raises KeyError for a missing row: a programming error."""
    return NEXT[state][event]


def outcome(held: ExecutionState | None, state: ExecutionState, event: Event) -> ExecutionState | None:
    """Return which terminal state CLEANUP shall lead to after ``event`` in ``state``; ``held`` is what it was so far.

    The first reason stays, with one exception: a way back that failed is INCONSISTENT whatever it began with.
    """
    if state in BACK:
        return held if event is E.DONE else S.INCONSISTENT
    if state is S.COMMITTING and event is E.DONE:
        return S.SUCCEEDED
    if held is not None or (state is S.COMMITTING and event is E.ERROR):
        return held
    return (_LATE if state in RISKY else _EARLY).get(event)


def conclusion(held: ExecutionState | None) -> Event:
    """Return the event that ends CLEANUP. Without a recorded outcome nothing was proven: FAILED."""
    return Event((held or S.FAILED).value)


def honours(state: ExecutionState, wish: ExecutionState) -> bool:
    """Return whether ``wish`` (CANCELED or SUPERSEDED) ends ``state`` early. CLEANUP only concludes."""
    return state is not S.CLEANUP and Event(wish.value) in NEXT[state]


def looped(state: ExecutionState, count: int) -> bool:
    """Return whether ``count`` transitions are too many for ``state``, where it can do something about it."""
    if E.LOOPED not in NEXT[state]:
        return False
    return count >= (MAX_ROLLBACK_TRANSITIONS if state in BACK else MAX_TRANSITIONS)
