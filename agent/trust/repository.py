"""What the agent asks about the signed repository of builds. The asking is done by a child process that ends at once.

Invariant: an answer comes within the deadline, good or bad, and whatever the repository sends reaches the child only;
TUF's library is never imported here. Every error is a TrustError with a code of `refusals.py`; none of them says
anything about what is already installed. One question at a time for a directory.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from agent.durable import CRASH_VARIABLE
from agent.errors import AgentError, TrustError
from agent.trust import clock as clocks
from agent.trust.clock import RELEASED, Clock
from agent.trust.floor import read_floor
from agent.trust.protocol import MAX_ANSWER_BYTES, MAX_PATHS, Answer, Failure, Refreshed, Request, Target

Authorise = Callable[[], str | Awaitable[str]]
MEMORY_BYTES: Final = 256 * 1024**2
_GRACE: Final = 3.0  # seconds that the child has for starting, beyond its deadline
_LOG_TAIL: Final = 2048


class Repository:
    """The repository at ``metadata_url``, of which ``directory`` keeps the metadata last seen.

    root: root metadata, the one thing that is believed from the start (given at enrolment). ca_file: the only CA that
    the server's certificate may descend from; None for the system's. earliest: seconds since 1970, a time that is past
    for certain. authorise: gives the bearer token where the server asks for one; forget: called when it was not
    accepted, so that the next one is a fresh one. deadline: seconds for one question. memory_bytes: what the child may
    take beyond a bare start.
    """

    def __init__(
        self,
        directory: Path,
        metadata_url: str,
        root: bytes,
        *,
        ca_file: Path | None = None,
        earliest: float = RELEASED,
        authorise: Authorise | None = None,
        forget: Callable[[], None] = lambda: None,
        deadline: float = 60.0,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        self._directory = directory
        self._earliest = earliest
        self._authorise = authorise
        self._forget = forget
        self._request = Request(
            directory=str(directory),
            url=metadata_url,
            root=root,
            ca_file=None if ca_file is None else str(ca_file),
            earliest=earliest,
            deadline=deadline,
            memory_bytes=memory_bytes,
        )
        self._lock = asyncio.Lock()

    async def refresh(self, paths: Sequence[str] = ()) -> Refreshed:
        """Bring the metadata up to date and return what holds now, with the targets at ``paths`` in ``found``.

        At most 64 paths. Installs must wait while the answer's ``clock.suspect`` is set. Raises TrustError.
        """
        if len(paths) > MAX_PATHS or any(not 0 < len(path) <= 1024 for path in paths):
            raise TrustError(f"at most {MAX_PATHS} paths of 1 to 1024 characters can be asked for at once", "malformed")
        async with self._lock:
            answer = await self._ask(list(paths))
            if isinstance(answer, Failure) and answer.code == "unauthorised" and self._authorise is not None:
                self._forget()
                answer = await self._ask(list(paths))
        if isinstance(answer, Failure):
            raise TrustError(answer.message, answer.code)
        return answer

    async def _ask(self, paths: list[str]) -> Answer:
        token = None
        if self._authorise is not None:
            try:
                given = self._authorise()
                token = await given if inspect.isawaitable(given) else given
            except AgentError as error:
                raise TrustError(f"the signed repository cannot be asked: {error}", error.code) from error
        return await _run(msgspec.structs.replace(self._request, paths=paths, token=token))

    async def target(self, path: str) -> Target | None:
        """Return what the repository says about the target ``path``, None where it has none. Raises TrustError."""
        return (await self.targets([path]))[path]

    async def targets(self, paths: Sequence[str]) -> dict[str, Target | None]:
        """Return what the repository says about each of ``paths``, all from one state of it. Raises TrustError."""
        return (await self.refresh(paths)).found

    def clock(self, now: float | None = None) -> Clock:
        """Return what to think of this device's clock (``now``), without asking anybody."""
        return clocks.judge(time.time() if now is None else now, max(self._earliest, read_floor(self._directory)))


def _environment() -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if name != CRASH_VARIABLE}  # it counts in the agent
    return ours | {"MALLOC_ARENA_MAX": "1"}


async def _run(request: Request) -> Answer:
    """Run one child to its end. Raises TrustError ("no_verdict")."""
    try:
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "agent.trust.child",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is the agent's business
            limit=MAX_ANSWER_BYTES,
            env=_environment(),
        )
    except OSError as error:
        raise TrustError(f"a refresh cannot be started: {error}; is memory short?", "no_verdict") from error
    try:
        async with asyncio.timeout(request.deadline + _GRACE):
            output, errors = await child.communicate(msgspec.json.encode(request))
    except TimeoutError as error:
        raise TrustError(f"the repository gave no verdict within {request.deadline:g} s", "no_verdict") from error
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        await child.wait()
    try:
        if child.returncode == 0 and len(output) <= MAX_ANSWER_BYTES:
            answer: Answer = msgspec.json.decode(output, type=Answer)
            return answer
    except msgspec.MsgspecError as error:
        raise TrustError(f"a refresh ended without a verdict: {error}", "no_verdict") from error
    tail = errors[-_LOG_TAIL:].decode(errors="replace").strip()
    raise TrustError(
        f"a refresh ended with {child.returncode} and no verdict: {tail or 'it said nothing'}", "no_verdict"
    )
