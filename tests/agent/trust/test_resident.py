"""What stays in the agent's memory."""

from __future__ import annotations

import subprocess
import sys


def test_the_agent_does_not_hold_the_library_that_reads_metadata() -> None:
    code = "import sys, agent.app, agent.trust.repository, agent.trust.pinned; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "agent.trust.repository" in modules
    heavy = {"tuf", "securesystemslib", "urllib3", "agent.trust.updater", "agent.trust.metadata_fetcher"}
    assert not heavy & set(modules)
