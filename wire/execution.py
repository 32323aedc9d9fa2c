"""The states of an execution (wire 4.7): the words that both sides use for them.

Invariant: names and kinds only. What follows what on a device stands in the agent's update machine.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class ExecutionState(StrEnum):
    """Where one item of one device's assignment stands."""

    IDLE = "IDLE"
    OFFERED = "OFFERED"
    PRECHECK = "PRECHECK"
    DOWNLOADING = "DOWNLOADING"
    VERIFYING = "VERIFYING"
    STAGED = "STAGED"
    WAITING = "WAITING"
    DEFERRED = "DEFERRED"
    INSTALLING = "INSTALLING"
    WARMING = "WARMING"
    ACTIVATING = "ACTIVATING"
    PROBATION = "PROBATION"
    COMMITTING = "COMMITTING"
    ROLLING_BACK = "ROLLING_BACK"
    VERIFYING_ROLLBACK = "VERIFYING_ROLLBACK"
    CLEANUP = "CLEANUP"
    SUCCEEDED = "SUCCEEDED"
    SKIPPED = "SKIPPED"
    FAILED = "FAILED"
    INCONSISTENT = "INCONSISTENT"
    REJECTED = "REJECTED"
    CANCELED = "CANCELED"
    TIMED_OUT = "TIMED_OUT"
    SUPERSEDED = "SUPERSEDED"


SUCCESSES: Final = frozenset({ExecutionState.SUCCEEDED, ExecutionState.SKIPPED})
FAILURES: Final = frozenset(
    {ExecutionState.FAILED, ExecutionState.INCONSISTENT, ExecutionState.REJECTED, ExecutionState.TIMED_OUT}
)
WITHDRAWN: Final = frozenset({ExecutionState.CANCELED, ExecutionState.SUPERSEDED})
TERMINAL: Final = SUCCESSES | FAILURES | WITHDRAWN
