"""Downloads that survive cuts, bad links and bad servers.

Invariant: a blob enters the store only with the size and SHA-256 that were asked for, whatever the server sends; not
more than one byte beyond the size is ever read; a download ends by itself: by the deadline, by an answer that will not
get better, or by too many attempts without progress. What is on disk is hashed again before it is built upon. Does not
know what it fetches, nor who vouches for it (`agent/trust`).

The transfer runs in a thread of its own (`transfer.py`) and is stopped from here by closing its socket.
"""

from __future__ import annotations

import asyncio
import inspect
import random
import ssl
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import structlog

from agent import durable
from agent.builds.store import Store
from agent.builds.transfer import Refusal, Target, Transfer, Trouble
from agent.errors import AgentError, ControllerError, DeviceError, TrustError, UnreachableError

Authorise = Callable[[], str | Awaitable[str]]
Progress = Callable[[int, int], None]
ARTIFACTS: Final = "/api/v1/artifacts/"


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds and bytes. A transfer is given up that brings less than ``minimum_bytes`` in ``window``.

    attempts: in a row that reached the server and brought no new byte. backoff: the first wait; it doubles up to
    ``longest_wait``, each shortened by up to half at random. excess: the bytes that may cross the line for one blob, as
    a multiple of its size, before the link is called hopeless.
    """

    window: float = 20.0
    minimum_bytes: int = 2048
    attempts: int = 10
    backoff: float = 0.5
    longest_wait: float = 60.0
    excess: float = 4.0


class Fetcher:
    """Fetches blobs by their SHA-256 from ``api_url`` into ``store``.

    api_url: https://HOST:PORT; http is taken for a loopback address only. ca_file: the fleet CA that the server's
    certificate must descend from. authorise: gives the bearer token, asked anew for every attempt. forget: called when
    the controller did not accept the token, so that the next one is a fresh one.
    """

    def __init__(
        self,
        store: Store,
        api_url: str,
        ca_file: Path | None,
        authorise: Authorise,
        *,
        forget: Callable[[], None] = lambda: None,
        patience: Patience = Patience(),
        rng: random.Random | None = None,
    ) -> None:
        self._store = store
        self._authorise = authorise
        self._forget = forget
        self._patience = patience
        self._rng = rng or random.Random()
        self._target = _target(api_url, ca_file)
        self._busy: dict[str, asyncio.Lock] = {}
        self._log = structlog.get_logger()

    async def fetch(self, sha256: str, size: int, progress: Progress | None = None) -> Path:
        """Return where the blob lies, fetched if it is not here. ``progress`` is told (bytes so far, size).

        Set the deadline with ``asyncio.timeout``: cancelled, it stops within a second and keeps what came. Raises
        TrustError ("wrong_hash", "wrong_length", "encoded"), ControllerError ("not_found", "refused", "redirected",
        "unauthorised", "no_progress"), DeviceError ("disk_full", …).
        """
        lock = self._busy.setdefault(sha256, asyncio.Lock())  # two components may want the same file
        try:
            async with lock:
                if self._store.has(sha256, size):
                    return self._store.path(sha256)
                return await self._persist(sha256, size, progress or (lambda _done, _size: None))
        finally:
            if not lock.locked():
                self._busy.pop(sha256, None)

    async def _persist(self, sha256: str, size: int, progress: Progress) -> Path:
        part = self._store.part(sha256)
        fruitless, wrong_hashes, unauthorised, received = 0, 0, 0, 0
        wait = self._patience.backoff
        while True:
            before = _size(part)
            self._store.require(max(0, size - before))
            try:
                token = await self._token()
                received += await self._attempt(part, sha256, size, token, progress)
                return self._store.adopt(part, sha256)
            except Trouble as trouble:
                received += trouble.received
                grown = _size(part) - before >= min(self._patience.minimum_bytes, max(1, size - before))
                if trouble.code == "wrong_hash":
                    wrong_hashes += 1
                    durable.remove(part, "fetch.discard")
                    if wrong_hashes > 1:  # once may be this disk or a cut; twice is the server
                        raise _final(trouble, sha256) from trouble
                elif trouble.code == "unauthorised":
                    unauthorised += 1
                    self._forget()
                    if unauthorised > 1:
                        raise _final(trouble, sha256) from trouble
                elif trouble.refusal is not Refusal.RETRY:
                    if trouble.refusal is Refusal.DISCARD:
                        durable.remove(part, "fetch.discard")
                    raise _final(trouble, sha256) from trouble
                if trouble.reached and not grown:
                    fruitless += 1
                if grown:
                    fruitless, unauthorised, wait = 0, 0, self._patience.backoff
                if fruitless >= self._patience.attempts or received > self._patience.excess * size + 1024 * 1024:
                    raise ControllerError(
                        f"artifact {sha256} could not be fetched: {fruitless} attempts without progress, {received} "
                        f"bytes received for {size}; the last: {trouble}",
                        "no_progress",
                    ) from trouble
                self._log.info("download goes on after a pause", sha256=sha256, code=trouble.code, reason=str(trouble))
                pause = min(max(wait, trouble.retry_after), self._patience.longest_wait * 5)
            except UnreachableError as error:  # no token to be had: the controller is away; only the deadline ends this
                self._log.info("download waits for the controller", sha256=sha256, reason=str(error))
                pause = wait
            await asyncio.sleep(pause * self._rng.uniform(0.5, 1.0))
            wait = min(wait * 2, self._patience.longest_wait)

    async def _attempt(self, part: Path, sha256: str, size: int, token: str, progress: Progress) -> int:
        """Run one transfer in a thread; return the bytes it received. Raises Trouble or DeviceError."""
        loop = asyncio.get_running_loop()
        transfer = Transfer(self._target, ARTIFACTS + sha256, token, part, sha256, size)
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

        threading.Thread(target=work, name=f"fetch-{sha256[:8]}", daemon=True).start()
        try:
            await self._watch(transfer, ended, size, progress)
        finally:
            if not ended.done():
                transfer.stop()
                await asyncio.wait([ended], timeout=0.8)
            if ended.done() and not ended.cancelled():
                ended.exception()  # seen: a stopped transfer's trouble is nobody's business
        return transfer.received

    async def _watch(self, transfer: Transfer, ended: asyncio.Future[None], size: int, progress: Progress) -> None:
        loop = asyncio.get_running_loop()
        tick = min(0.25, self._patience.window / 4)
        mark, marked, told = 0, loop.time(), -1
        while True:
            done, _ = await asyncio.wait([ended], timeout=tick)
            if transfer.at != told:
                told = transfer.at
                progress(told, size)
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

    async def _token(self) -> str:
        answer = self._authorise()
        return await answer if inspect.isawaitable(answer) else answer


def _final(trouble: Trouble, sha256: str) -> AgentError:
    message = f"artifact {sha256}: {trouble}"
    if trouble.code in ("wrong_hash", "wrong_length", "encoded"):
        return TrustError(f"{message}; publish the build again", trouble.code)
    if trouble.code == "unauthorised":
        return ControllerError(f"{message}; is this device still enrolled?", trouble.code)
    return ControllerError(message, trouble.code)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise durable.disk_error(error, path) from error


def _target(api_url: str, ca_file: Path | None) -> Target:
    parts = urlsplit(api_url)
    host = parts.hostname or ""
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as error:
        raise DeviceError(f"{api_url!r} is not the address of a controller: {error}", "bad_address") from error
    if not host or parts.scheme not in ("https", "http"):
        raise DeviceError(f"{api_url!r} is not the address of a controller (https://HOST:PORT)", "bad_address")
    if parts.scheme == "http":
        if host not in ("127.0.0.1", "::1", "localhost"):
            raise DeviceError(f"{api_url!r}: only https goes to another machine", "bad_address")
        return Target(host, port, parts.path.rstrip("/"), None)
    try:
        context = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
    except (OSError, ssl.SSLError) as error:
        raise DeviceError(f"cannot read the fleet CA {ca_file}: {error}; enrol the device again", "bad_ca") from error
    return Target(host, port, parts.path.rstrip("/"), context)
