"""One file, brought here from the first of several sources that gives it.

Invariant: it ends with the whole file on the disk, of the size and hashes that were asked for, or with an error: by the
caller's deadline (`asyncio.timeout`), by an answer that will not get better, or by too many attempts without progress.
A source that failed is followed by the next one; one that gave wrong bytes is not asked again. What came stays on the
disk and is hashed again before it is built upon, whoever sends the rest. Does not know who vouches for the hashes.

The transfer runs in a thread of its own (`transfer.py`) and is stopped from here by closing its socket.
"""

from __future__ import annotations

import asyncio
import inspect
import random
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from agent import durable
from agent.builds.transfer import Refusal, Transfer, Trouble
from agent.errors import AgentError, ControllerError, TrustError, UnreachableError
from agent.trust.origin import Origin

Authorise = Callable[[], str | Awaitable[str]]
Progress = Callable[[int, int], None]
Room = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds and bytes. A transfer is given up that brings less than ``minimum_bytes`` in ``window``.

    attempts: in a row that reached a server and brought no new byte. backoff: the first wait; it doubles up to
    ``longest_wait``, each shortened by up to half at random. excess: the bytes that may cross the line for one file, as
    a multiple of its size, before the link is called hopeless.
    """

    window: float = 20.0
    minimum_bytes: int = 2048
    attempts: int = 10
    backoff: float = 0.5
    longest_wait: float = 60.0
    excess: float = 4.0


@dataclass(frozen=True, slots=True)
class Source:
    """Where the file is: below ``origin`` at ``path``.

    authorise: gives the bearer token, asked anew for every attempt; None for a source that gets none. forget: called
    when the token was not accepted, so that the next one is a fresh one.
    """

    origin: Origin
    path: str
    authorise: Authorise | None = None
    forget: Callable[[], None] = lambda: None


class _Standing:
    """How a source has done in this download; ``out`` once it is not asked again."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.wrong_hashes = 0
        self.unauthorised = 0
        self.out: Trouble | None = None

    def take(self, trouble: Trouble) -> None:
        if trouble.code == "wrong_hash":
            self.wrong_hashes += 1
            if self.wrong_hashes > 1:  # once may be this disk or a cut; twice is the server
                self.out = trouble
        elif trouble.code == "unauthorised":
            self.unauthorised += 1
            self.source.forget()
            if self.unauthorised > 1:
                self.out = trouble
        elif trouble.refusal is not Refusal.RETRY:
            self.out = trouble


class Download:
    """Brings a file of ``size`` bytes to ``part``. ``name``: what messages call it; ``room``: raises when the disk has
    no place for so many bytes more; ``sources``: at least one, asked in this order.
    """

    def __init__(
        self,
        part: Path,
        hashes: Mapping[str, str],
        size: int,
        sources: Sequence[Source],
        *,
        name: str,
        room: Room = lambda _bytes: None,
        patience: Patience = Patience(),
        rng: random.Random | None = None,
    ) -> None:
        self._part = part
        self._hashes = hashes
        self._bytes = size
        self._standings = [_Standing(source) for source in sources]
        self._name = name
        self._room = room
        self._patience = patience
        self._rng = rng or random.Random()
        self._log = structlog.get_logger()

    async def run(self, progress: Progress = lambda _done, _size: None) -> None:
        """Bring the file here; ``progress`` is told (bytes so far, size).

        Cancelled, it stops within a second and keeps what came. Raises TrustError ("wrong_hash", "wrong_length",
        "encoded"), ControllerError ("not_found", "refused", "redirected", "unauthorised", "no_progress"), DeviceError
        ("disk_full", …).
        """
        fruitless, received, turn, wait = 0, 0, 0, self._patience.backoff
        while True:
            asked = [standing for standing in self._standings if standing.out is None]
            standing = asked[turn % len(asked)]
            before = _size(self._part)
            self._room(max(0, self._bytes - before))
            pause = wait
            try:
                received += await self._attempt(standing.source, progress)
                return
            except Trouble as trouble:
                received += trouble.received
                grown = _size(self._part) - before >= min(self._patience.minimum_bytes, max(1, self._bytes - before))
                standing.take(trouble)
                if trouble.refusal is Refusal.DISCARD:
                    durable.remove(self._part, "fetch.discard")
                if all(standing.out is not None for standing in self._standings):
                    raise self._final() from trouble
                if trouble.reached and not grown:
                    fruitless += 1
                if grown:
                    fruitless, wait = 0, self._patience.backoff
                    standing.unauthorised = 0
                excess = received > self._patience.excess * self._bytes + 1024 * 1024
                if fruitless >= self._patience.attempts * len(asked) or excess:
                    raise ControllerError(
                        f"{self._name} could not be fetched: {fruitless} attempts without progress, {received} "
                        f"bytes received for {self._bytes}; the last: {standing.source.origin}: {trouble}",
                        "no_progress",
                    ) from trouble
                pause = min(max(wait, trouble.retry_after), self._patience.longest_wait * 5)
                self._tell(standing, trouble.code, str(trouble))
            except UnreachableError as error:  # no token to be had: the controller is away
                self._tell(standing, error.code, str(error))
            if standing.out is not None:
                continue  # the next one stands in its place
            turn += 1
            if turn % len(asked) == 0:  # everybody was asked: now wait
                await asyncio.sleep(pause * self._rng.uniform(0.5, 1.0))
                wait = min(wait * 2, self._patience.longest_wait)

    def _tell(self, standing: _Standing, code: str, reason: str) -> None:
        self._log.info(
            "download goes on elsewhere or after a pause",
            file=self._name,
            source=str(standing.source.origin),
            code=code,
            reason=reason,
        )

    def _final(self) -> AgentError:
        """Return what ends the download, once no source is left: what the last of them said, who has the last word."""
        standing = self._standings[-1]
        trouble = standing.out
        assert trouble is not None
        message = f"{self._name} from {standing.source.origin}: {trouble}"
        if trouble.code in ("wrong_hash", "wrong_length", "encoded"):
            return TrustError(f"{message}; publish the build again", trouble.code)
        if trouble.code == "unauthorised":
            return ControllerError(f"{message}; is this device still enrolled?", trouble.code)
        return ControllerError(message, trouble.code)

    async def _attempt(self, source: Source, progress: Progress) -> int:
        """Run one transfer in a thread; return the bytes it received. Raises Trouble, DeviceError, UnreachableError."""
        token = await _token(source)
        loop = asyncio.get_running_loop()
        transfer = Transfer(source.origin, source.path, token, self._part, self._hashes, self._bytes)
        ended: asyncio.Future[None] = loop.create_future()

        def settle(error: BaseException | None) -> None:
            if ended.done():
                return
            if error is None:
                ended.set_result(None)
            else:
                ended.set_exception(error)

        def work() -> None:
            failure: BaseException | None = None
            try:
                transfer.run()
            except BaseException as error:  # whatever it was, the coroutine that waits must hear of it
                failure = error
            if not loop.is_closed():
                loop.call_soon_threadsafe(settle, failure)

        threading.Thread(target=work, name=f"fetch-{self._name[:16]}", daemon=True).start()
        try:
            await self._watch(transfer, ended, progress)
        finally:
            if not ended.done():
                transfer.stop()
                await asyncio.wait([ended], timeout=0.8)
            if ended.done() and not ended.cancelled():
                ended.exception()  # seen: a stopped transfer's trouble is nobody's business
        return transfer.received

    async def _watch(self, transfer: Transfer, ended: asyncio.Future[None], progress: Progress) -> None:
        loop = asyncio.get_running_loop()
        tick = min(0.25, self._patience.window / 4)
        mark, marked, told = 0, loop.time(), -1
        while True:
            done, _ = await asyncio.wait([ended], timeout=tick)
            if transfer.at != told:
                told = transfer.at
                progress(told, self._bytes)
            if done:
                return ended.result()
            if transfer.moved - mark >= self._patience.minimum_bytes:
                mark, marked = transfer.moved, loop.time()
            elif loop.time() - marked > self._patience.window:
                slow = transfer.moved - mark
                raise Trouble(
                    f"{slow} bytes in {self._patience.window:g} s is too slow",
                    "too_slow",
                    reached=transfer.answered,
                    received=transfer.received,
                )


async def _token(source: Source) -> str | None:
    if source.authorise is None:
        return None
    answer = source.authorise()
    return await answer if inspect.isawaitable(answer) else answer


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise durable.disk_error(error, path) from error
