"""Go, hold, back."""

from __future__ import annotations

from typing import Any

import pytest

from controller.rollouts.gate import Back, Go, Hold, Observations, Seen, judge
from controller.rollouts.model import Stage, StageState
from controller.rollouts.policy import parse_policy

START = 1000.0
WORDS = {
    "ok": Seen.SUCCEEDED,
    "bad": Seen.FAILED,
    "late": Seen.OVERDUE,
    "busy": Seen.PENDING,
    "away": Seen.AWAY,
    "left": Seen.LEFT,
}


def verdict(
    gate: dict[str, Any] | None = None,
    *,
    now: float = START + 10,
    proven: bool = False,
    forgiven: int = 0,
    **counts: int,
) -> Any:
    policy = parse_policy({"gate": gate or {}, "soak": 5.0, "deadline": 100.0})
    standing = {f"{word}{number}": WORDS[word] for word, count in counts.items() for number in range(count)}
    stage = Stage(0, tuple(standing), (), StageState.RUNNING, START, forgiven=forgiven)
    settled = START + 100 if counts.get("late") else START + 1 if counts.get("ok") else None
    return judge(stage, Observations(standing, settled), policy, proven, now)


@pytest.mark.parametrize(
    ("counts", "gate", "kind"),
    [
        ({"ok": 1}, {}, Go),
        ({"bad": 1}, {}, Back),
        ({"ok": 9, "bad": 1}, {}, Go),
        ({"ok": 8, "bad": 2}, {}, Back),
        ({"ok": 8, "late": 2}, {}, Back),
        ({"ok": 8, "late": 2, "busy": 1}, {}, Back),
        ({"ok": 1, "busy": 1}, {}, Hold),
        # a small sample is not judged while others are awaited, and the next stage waits for it
        ({"bad": 1, "busy": 9}, {}, Hold),
        ({"bad": 2, "busy": 2}, {"quorum_percent": 50}, Hold),
        ({"bad": 5, "busy": 5}, {}, Back),
        ({"bad": 1, "busy": 9}, {"min_executed": 1}, Back),
        ({"ok": 99, "bad": 3}, {"max_failed": 2}, Back),
        ({"ok": 99, "bad": 2}, {"max_failed": 2}, Go),
        ({"bad": 1, "busy": 99}, {"max_failed": 0}, Back),
        ({"ok": 5, "busy": 5}, {"quorum_percent": 50}, Go),
        ({"ok": 4, "busy": 6}, {"quorum_percent": 50}, Hold),
        ({"ok": 1, "away": 9}, {}, Go),
        ({"left": 3}, {}, Go),
        ({"away": 3}, {}, Hold),
    ],
)
def test_verdicts(counts: dict[str, int], gate: dict[str, Any], kind: type) -> None:
    found = verdict(gate, **counts)
    assert isinstance(found, kind), found
    assert found.reasons


def test_a_finished_stage_soaks() -> None:
    soaking = verdict(ok=3, now=START + 5)
    assert isinstance(soaking, Hold)
    assert soaking.reasons == ("soaking for 5 s, 4 s so far",)
    assert isinstance(verdict(ok=3, now=START + 6), Go)


def test_the_soak_begins_when_the_last_one_has_lost_its_time() -> None:
    assert isinstance(verdict(ok=98, late=2, now=START + 104), Hold)
    assert isinstance(verdict(ok=98, late=2, now=START + 105), Go)


def test_nobody_there_is_no_proof() -> None:
    assert isinstance(verdict(away=3, now=START + 99), Hold)
    found = verdict(away=3, now=START + 100)
    assert isinstance(found, Back)
    assert "nothing is proven" in found.reasons[0]
    assert isinstance(verdict(away=3, proven=True), Go), "an earlier stage has proven it: nobody is waited for"


def test_forgiven_failures_do_not_count_again() -> None:
    assert isinstance(verdict(bad=1, ok=1), Back)
    assert isinstance(verdict(bad=1, ok=1, forgiven=1), Go)
    assert isinstance(verdict(bad=2, ok=1, forgiven=1), Back)


def test_reasons_name_the_figures_and_the_devices() -> None:
    found = verdict(bad=2, ok=1)
    assert found.reasons[0] == "2 of 3 finished devices failed, at most 10 % may"
