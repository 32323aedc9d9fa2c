"""Every command that the README and the guide show in a `sh` block is run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.journeys.local_fleet import LocalFleet

pytestmark = pytest.mark.journey
ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROGRAMS = {"muster": "controller", "muster-agent": "agent"}
RUN_ELSEWHERE = {
    "./deploy_edge.sh --local": "tests/journeys/test_first_command.py",
    "tests/run": "the command that runs this very test",
}
BOARD = ROOT / "tests/agent/hardware/boards"


def commands() -> list[tuple[str, str]]:
    """Return every line of every `sh` block that runs one of our programs, with its page."""
    found = []
    for page in PAGES:
        for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                command = line.split(" #")[0].strip()
                ours = command.split(" ")[0] in PROGRAMS or command in RUN_ELSEWHERE
                if command and (ours or page.name in ("README.md", "first-journey.md")):
                    found.append((page.name, command))
    return found


def test_there_are_commands_to_run_and_those_run_elsewhere_are_shown() -> None:
    shown = {command for _, command in commands()}
    assert shown >= set(RUN_ELSEWHERE)
    assert len(shown) > 10


@pytest.mark.parametrize(("page", "command"), commands())
def test_the_command_works(fleet: LocalFleet, tmp_path: Path, page: str, command: str) -> None:
    if command in RUN_ELSEWHERE:
        return
    program, *arguments = shlex.split(command)
    home = tmp_path / "home"
    (home / ".local/share").mkdir(parents=True)
    (home / ".local/share/muster").symlink_to(fleet.data)
    board = next(path for path in sorted(BOARD.rglob("*")) if path.is_dir() and (path / "proc").is_dir())
    (tmp_path / "board").symlink_to(board)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MUSTER_", "XDG_"))}
    done = subprocess.run(
        [sys.executable, "-m", PROGRAMS[program], *(word.replace("~", str(home)) for word in arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
        env=environment | {"HOME": str(home), "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, f"{page}: {command}\n{done.stderr}"
    assert done.stdout.strip() or done.stderr.strip(), "it says something"
