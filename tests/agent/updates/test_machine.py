"""The tables, read as data: no state is forgotten, none is a dead end, nothing unproven is committed."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.updates import machine
from agent.updates.machine import NEXT, RESUME, RISKY, Event
from wire.execution import TERMINAL, ExecutionState

S = ExecutionState


def reachable(state: ExecutionState) -> set[ExecutionState]:
    found, todo = {state}, [state]
    while todo:
        for following in NEXT[todo.pop()].values():
            if following not in found:
                found.add(following)
                todo.append(following)
    return found


def test_every_state_has_a_row_in_both_tables() -> None:
    assert set(NEXT) == set(RESUME) == set(ExecutionState)


@pytest.mark.parametrize("state", list(ExecutionState))
def test_every_state_reaches_a_terminal_one_also_after_a_restart(state: ExecutionState) -> None:
    assert reachable(state) & TERMINAL
    assert reachable(RESUME[state]) & TERMINAL


def test_terminal_states_end() -> None:
    for state in TERMINAL:
        assert NEXT[state] == {}
        assert RESUME[state] is state


def test_every_state_is_reached_from_idle() -> None:
    assert reachable(S.IDLE) == set(ExecutionState)


def test_committing_comes_from_probation_and_success_from_cleanup_alone() -> None:
    before = {
        state: {s for s, row in NEXT.items() if state in row.values() and s is not state} for state in ExecutionState
    }
    assert before[S.COMMITTING] == {S.PROBATION}
    assert before[S.SUCCEEDED] == {S.CLEANUP}
    assert before[S.SKIPPED] == {S.OFFERED}
    assert before[S.PROBATION] == {S.ACTIVATING}


def test_a_restart_never_goes_forward() -> None:
    order = [
        S.IDLE, S.OFFERED, S.PRECHECK, S.DOWNLOADING, S.VERIFYING, S.STAGED, S.WAITING, S.DEFERRED, S.INSTALLING,
        S.WARMING, S.ACTIVATING, S.PROBATION, S.COMMITTING, S.ROLLING_BACK, S.VERIFYING_ROLLBACK, S.CLEANUP,
    ]  # fmt: skip
    for state in order:
        assert order.index(RESUME[state]) <= order.index(state)


def test_a_restart_does_the_states_work_again_but_where_it_hangs_on_what_is_gone() -> None:
    for state in (S.WAITING, S.DEFERRED):  # the turn, and what was known of serving, were in memory
        assert RESUME[state] is S.STAGED
    for state in machine.BACK:  # nothing is known of serving: the way back begins anew
        assert RESUME[state] is S.ROLLING_BACK
    for state in set(S) - {S.WAITING, S.DEFERRED} - machine.BACK:
        assert RESUME[state] is state


@pytest.mark.parametrize("state", [S.INSTALLING, S.WARMING, S.ACTIVATING, S.PROBATION])
@pytest.mark.parametrize("event", [Event.ERROR, Event.TIMED_OUT, Event.CANCELED, Event.SUPERSEDED, Event.LOOPED])
def test_whatever_goes_wrong_from_installing_on_goes_back(state: ExecutionState, event: Event) -> None:
    assert machine.step(state, event) is S.ROLLING_BACK


def test_cancel_is_honoured_up_to_committing_and_not_after() -> None:
    honoured = set(S) - TERMINAL - {S.COMMITTING, S.ROLLING_BACK, S.VERIFYING_ROLLBACK, S.CLEANUP}
    for wish in (S.CANCELED, S.SUPERSEDED):
        assert {state for state in S if machine.honours(state, wish)} == honoured


def test_a_missing_row_is_a_programming_error() -> None:
    with pytest.raises(KeyError):
        machine.step(S.COMMITTING, Event.CANCELED)


def test_cleanup_concludes_with_every_outcome_that_can_be_recorded() -> None:
    for state, row in NEXT.items():
        for event in row:
            if machine.step(state, event) is S.CLEANUP:
                for held in (None, *TERMINAL - {S.SKIPPED}):
                    found = machine.outcome(held, state, event)
                    assert machine.conclusion(found) in NEXT[S.CLEANUP]


def test_a_failed_way_back_is_inconsistent_whatever_it_began_with() -> None:
    assert machine.outcome(S.CANCELED, S.ROLLING_BACK, Event.ERROR) is S.INCONSISTENT
    assert machine.outcome(S.CANCELED, S.VERIFYING_ROLLBACK, Event.DONE) is S.CANCELED


@settings(max_examples=200, deadline=None)
@given(st.randoms(use_true_random=False))
def test_any_walk_is_proven_before_it_succeeds_and_ends_under_the_cap(rng: random.Random) -> None:
    """SAFETY and LIVENESS of the tables alone: events at random, restarts in between."""
    state, outcome, path, count = S.IDLE, None, [S.IDLE], 0
    while state not in TERMINAL:
        if rng.random() > 0.8:
            count += state in RISKY
            state = RESUME[state]
            continue
        if state is S.CLEANUP:
            event = machine.conclusion(outcome)
        elif machine.looped(state, count):
            event = Event.LOOPED
        else:
            event = rng.choice([e for e in NEXT[state] if e is not Event.LOOPED])
        following = machine.step(state, event)
        outcome = machine.outcome(outcome, state, event)
        if following is S.COMMITTING:
            assert state in (S.PROBATION, S.COMMITTING)
        state = following
        path.append(state)
        count += 1
        assert count <= machine.MAX_ROLLBACK_TRANSITIONS + 6
    if state is S.SUCCEEDED:
        assert {S.ACTIVATING, S.PROBATION, S.COMMITTING} <= set(path)
        assert S.ROLLING_BACK not in path
    if S.COMMITTING not in path:
        assert state is not S.SUCCEEDED
