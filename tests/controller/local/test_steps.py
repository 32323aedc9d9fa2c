from __future__ import annotations

import io

import pytest
from rich.console import Console

from controller.local.steps import Steps


def made() -> tuple[Steps, io.StringIO]:
    screen = io.StringIO()
    return Steps(Console(file=screen, width=100)), screen


def test_each_step_is_shown_with_its_time_and_notes_stand_below() -> None:
    steps, screen = made()
    with steps.step("doing it [sic]") as say:
        say("half way")
    steps.note("a remark with [brackets]")
    assert "✓ doing it [sic]" in screen.getvalue()
    assert "a remark with [brackets]" in screen.getvalue()
    assert steps.seconds["doing it [sic]"] >= 0


def test_a_failed_step_is_shown_as_failed_and_its_error_goes_on() -> None:
    steps, screen = made()
    with pytest.raises(ValueError, match="no"), steps.step("trying"):
        raise ValueError("no")
    assert "✗ trying" in screen.getvalue()
    assert "trying" not in steps.seconds
