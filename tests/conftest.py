"""For every test: a skip that nobody allowed is a failure in CI."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ALLOWED = {
    line.split("#")[0].strip()
    for line in (Path(__file__).parent / "allowed_skips.txt").read_text().splitlines()
    if line.split("#")[0].strip()
}
_skipped: list[str] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and report.nodeid not in ALLOWED:
        _skipped.append(report.nodeid)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    is_worker = hasattr(session.config, "workerinput")
    if _skipped and os.environ.get("CI") == "true" and not is_worker:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _skipped and os.environ.get("CI") == "true":
        terminalreporter.section("skipped without leave", red=True)
        for nodeid in _skipped:
            terminalreporter.line(f"{nodeid} is not in tests/allowed_skips.txt")
