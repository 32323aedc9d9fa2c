"""Agents on this machine, each as a device of its own: a data directory, an identity, a process.

Invariant: an agent is a separate program that is told everything over its command line, as on a real device; nothing of
it is imported here. A join token reaches it over standard input, never over the process list.
"""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from controller.errors import ControllerError
from controller.supervisor import Child

ENROL_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class LocalAgent:
    """One agent. ``name``: as the fleet shows it; ``data``: its data directory."""

    name: str
    data: Path

    @property
    def is_enrolled(self) -> bool:
        """Whether it has an identity from an earlier start."""
        return (self.data / "identity" / "certificate.pem").exists()

    def child(self) -> Child:
        """Return the process to keep alive. It ends by itself when this process is gone."""
        return Child(
            name=self.name,
            command=[sys.executable, "-m", "agent", "run", "--data", str(self.data)],
            log=self.data / "agent.log",
            environment={"MUSTER_SERVING_PORT": "0", "MUSTER_OWNER_PID": str(os.getpid())},
        )


def local_agents(directory: Path, count: int) -> list[LocalAgent]:
    """Return the first ``count`` agents under ``directory``."""
    return [LocalAgent(f"device-{number}", directory / f"device-{number}") for number in range(1, count + 1)]


async def enrol(agent: LocalAgent, api_url: str, join_token: str) -> None:
    """Have ``agent`` enrol with a join token. Raises ControllerError with the agent's own words."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "agent",
        "enrol",
        *("--data", str(agent.data)),
        *("--controller", api_url),
        *("--token-file", "-"),
        *("--name", agent.name),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        _, said = await asyncio.wait_for(process.communicate(join_token.encode() + b"\n"), ENROL_SECONDS)
    except BaseException:
        process.kill()
        await process.wait()
        raise
    if process.returncode != 0:
        raise ControllerError(f"{agent.name} could not enrol: {said.decode(errors='replace').strip()}", "enrol_failed")
