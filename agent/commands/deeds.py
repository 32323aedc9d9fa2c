"""What this device does when it is told to, by the kind of the command (wire 4.9).

Invariant: each deed ends by itself, and says in a sentence what it did. Does not decide whether it may be done
(`handling.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from agent.commands.handling import Deed
from agent.commands.log_ends import log_ends


class Serving(Protocol):
    """The part of ``agent.supervision.process.ServingProcess`` that is used here."""

    pid: int

    async def restart(self) -> None:
        """End serving, and return once another one answers."""


def deeds(serving: Serving, data: Path) -> Mapping[str, Deed]:
    """Return the deeds of a device with this serving process and data directory."""

    async def restart() -> tuple[str, str]:
        await serving.restart()
        return f"serving runs again, process {serving.pid}", ""

    async def logs() -> tuple[str, str]:
        return "the ends of the logs", await asyncio.to_thread(log_ends, data)

    return {"restart": restart, "logs": logs}
