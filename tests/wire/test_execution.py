from __future__ import annotations

from wire.execution import FAILURES, SUCCESSES, TERMINAL, WITHDRAWN, ExecutionState


def test_the_kinds_of_end_do_not_overlap_and_rolling_back_is_none_of_them() -> None:
    assert len(SUCCESSES) + len(FAILURES) + len(WITHDRAWN) == len(TERMINAL)
    assert ExecutionState.ROLLING_BACK not in TERMINAL
    assert ExecutionState.SKIPPED in SUCCESSES
