"""The table of roles, row by row."""

from __future__ import annotations

import pytest

from controller.tenants.access import ACTIONS, ROLES, Allowed, Denied, Principal, allowed


def may(role: str) -> set[str]:
    return {action for action in ACTIONS if allowed(Principal("t", role, "i", "n"), action, "t") == Allowed()}


def test_an_admin_may_do_what_people_do() -> None:
    assert may("operator") | {"tokens.read", "tokens.write", "trust.manage"} == may("admin")
    assert "builds.make" not in may("admin")


def test_a_viewer_changes_nothing_of_the_fleet() -> None:
    assert {action for action in may("viewer") if not action.endswith(".read")} == {"sessions.write"}
    assert "audit.read" not in may("viewer")


def test_machines_are_narrow() -> None:
    assert may("device") == {"artifacts.read", "certificates.renew", "trust.read"}
    building = {"artifacts.read", "artifacts.write", "builds.make", "builds.read", "models.read", "trust.read"}
    assert may("builder") == building
    assert all(action.endswith(".read") for action in may("gateway"))


def test_an_unknown_role_may_nothing() -> None:
    assert may("root") == set()


@pytest.mark.parametrize("role", sorted(ROLES))
def test_nobody_acts_in_another_tenant(role: str) -> None:
    for action in ACTIONS:
        assert isinstance(allowed(Principal("mine", role, "i", "n"), action, "theirs"), Denied)


def test_a_denial_names_who_may() -> None:
    verdict = allowed(Principal("t", "viewer", "i", "n"), "rollouts.write", "t")
    assert isinstance(verdict, Denied)
    assert "operator" in verdict.rule
