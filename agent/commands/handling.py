"""Takes commands, does them one after the other, and replies (wire 4.9).

Invariant: a command is begun at most once, whatever is cut off or sent again; each that was taken is answered exactly
once, by a reply that survives restarts. Nothing that a command does ends the agent. Knows no deed itself: `app.py`
hands them in.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Protocol

import structlog

from agent.commands.taken import Taken
from agent.errors import AgentError, DeviceError
from wire.messages import REPLY_TEXT, Command, Reply, Sequenced

MAX_WAITING: Final = 16
DEED_SECONDS: Final = 120.0
CUT_OFF: Final = "the agent was restarted while it did this; it is not repeated"
Deed = Callable[[], Awaitable[tuple[str, str]]]  # a sentence on what was done, and a longer text

_log = structlog.get_logger()


class Put(Protocol):
    """``agent.link.outbox.Outbox.put``."""

    def __call__(self, message_type: type[Sequenced], fields: dict[str, Any], key: str) -> None: ...


class Commands:
    """``hear`` takes what the link received; ``run`` must run beside it."""

    def __init__(
        self,
        device: str,
        *,
        open_command: Callable[[bytes], Command],
        taken: Taken,
        put: Put,
        deeds: Mapping[str, Deed],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._device = device
        self._open = open_command
        self._taken = taken
        self._put = put
        self._deeds = deeds
        self._clock = clock
        self._waiting: asyncio.Queue[Command] = asyncio.Queue(MAX_WAITING)

    def hear(self, payload: bytes) -> None:
        """Queue the command in ``payload``; the controller sends again what does not fit in. Raises TrustError."""
        command = self._open(payload)
        if command.device != self._device:
            _log.warning("command refused: it is for another device", command=command.id)
            return
        try:
            self._waiting.put_nowait(command)
        except asyncio.QueueFull:
            _log.warning("command dropped: too many wait", command=command.id)

    async def run(self) -> None:
        """Answer for what a restart has cut off, then do what comes, until cancelled."""
        await self._guarded(self._answer_interrupted())
        while True:
            await self._guarded(self._do(await self._waiting.get()))

    async def _answer_interrupted(self) -> None:
        for command in await asyncio.to_thread(self._taken.all):
            # nothing happens for those that were answered: an answer is taken once by its key
            await self._reply(command, "interrupted", CUT_OFF)

    async def _do(self, command: Command) -> None:
        deed = self._deeds.get(command.kind)
        if self._clock() > command.expires:
            return await self._reply(command.id, "expired", "it arrived after its time")
        if deed is None:
            known = ", ".join(sorted(self._deeds))
            return await self._reply(command.id, "refused", f"this agent knows no {command.kind!r}; it knows {known}")
        if not await asyncio.to_thread(self._taken.take, command.id):
            # it was begun before, and nothing runs now: where its answer is missing, it was cut off
            return await self._reply(command.id, "interrupted", CUT_OFF)
        _log.info("command begun", command=command.id, kind=command.kind)
        try:
            async with asyncio.timeout(DEED_SECONDS):
                detail, text = await deed()
        except TimeoutError:
            return await self._reply(command.id, "failed", f"not done within {DEED_SECONDS:.0f} s")
        except (AgentError, OSError) as error:
            return await self._reply(command.id, "failed", str(error))
        return await self._reply(command.id, "done", detail, text)

    async def _reply(self, command: str, outcome: str, detail: str, text: str = "") -> None:
        fields = {
            "at": self._clock(),
            "command": command,
            "outcome": outcome,
            "detail": detail[:4096],
            "text": "".join(map(_plain, text[-REPLY_TEXT:])),
        }
        await asyncio.to_thread(self._put, Reply, fields, f"command-{command}")

    async def _guarded(self, work: Awaitable[None]) -> None:
        try:
            await work
        except DeviceError as error:  # the disk takes nothing now: the controller sends it again
            _log.error("command cannot be taken now", reason=str(error))


def _plain(character: str) -> str:
    """A control character would make a reply six times as long, and a terminal obey it."""
    return character if character.isprintable() or character in "\n\t" else "\N{REPLACEMENT CHARACTER}"
