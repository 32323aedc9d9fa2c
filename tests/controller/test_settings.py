"""The controller's settings: which slips are refused, and which variables are somebody else's."""

from __future__ import annotations

import pytest

from controller.errors import InvalidError
from controller.settings import Settings, read_settings


@pytest.mark.parametrize(
    ("name", "meant"), [("MUSTER_API_PROT", "MUSTER_API_PORT"), ("MUSTER_BROKERURL", "MUSTER_BROKER_URL")]
)
def test_a_mistyped_variable_is_named_with_what_was_meant(name: str, meant: str) -> None:
    with pytest.raises(InvalidError, match=f"{name}.*did you mean {meant}"):
        read_settings(None, {name: "1"})


def test_variables_of_other_programs_are_left_alone() -> None:
    theirs = ("MUSTER_SERVING_PORT", "MUSTER_MOSQUITTO", "MUSTER_LOGIN", "MUSTER_CHROMIUM", "MUSTER_CRASH_AT")
    assert read_settings(None, dict.fromkeys(theirs, "x")) == Settings()


def test_a_level_that_there_is_not_is_refused() -> None:
    with pytest.raises(InvalidError, match="log_level"):
        read_settings(None, {"MUSTER_LOG_LEVEL": "verbose"})
