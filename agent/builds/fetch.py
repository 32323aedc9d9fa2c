"""Blobs by their SHA-256: from mirrors and the controller into the store.

Invariant: a blob enters the store only with the size and SHA-256 that were asked for, whatever the servers send; not
more than one byte beyond the size is ever read (`download.py`, `transfer.py`). Mirrors are asked first and see no
token; the controller is asked last and has the last word. Does not know what it fetches, nor who vouches for it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agent.builds.download import Authorise, Download, Patience, Progress, Source
from agent.builds.store import Store
from agent.trust.origin import parse_origin

__all__ = ["ARTIFACTS", "Fetcher", "Mirror", "Patience", "Progress"]

ARTIFACTS: Final = "/api/v1/artifacts/"
_PATIENCE: Final = Patience()


@dataclass(frozen=True, slots=True)
class Mirror:
    """A server that has blobs at ``url``/SHA256. ca_file: the only CA it may descend from; None for the system's."""

    url: str
    ca_file: Path | None = None


class Fetcher:
    """Fetches blobs by their SHA-256 from ``api_url`` into ``store``.

    api_url: https://HOST:PORT; http is taken for a loopback address only. ca_file: the fleet CA that the server's
    certificate must descend from. authorise: gives the bearer token, asked anew for every attempt. forget: called when
    the controller did not accept the token, so that the next one is a fresh one. mirrors: asked before the controller.
    Raises DeviceError ("bad_address", "bad_ca").
    """

    def __init__(
        self,
        store: Store,
        api_url: str,
        ca_file: Path | None,
        authorise: Authorise,
        *,
        forget: Callable[[], None] = lambda: None,
        mirrors: Sequence[Mirror] = (),
        patience: Patience = _PATIENCE,
        rng: random.Random | None = None,
    ) -> None:
        self._store = store
        self._authorise = authorise
        self._forget = forget
        self._patience = patience
        self._rng = rng or random.Random()
        parse_origin(api_url, ca_file)  # raises now what would fail at each fetch
        self._api_url, self._ca_file = api_url, ca_file
        self._mirrors = [parse_origin(mirror.url, mirror.ca_file) for mirror in mirrors]
        self._busy: dict[str, asyncio.Lock] = {}

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
                part = self._store.part(sha256)
                download = Download(
                    part,
                    {"sha256": sha256},
                    size,
                    self._sources(sha256),
                    name=f"artifact {sha256}",
                    room=self._store.require,
                    patience=self._patience,
                    rng=self._rng,
                )
                await download.run(progress or (lambda _done, _size: None))
                return self._store.adopt(part, sha256)
        finally:
            if not lock.locked():
                self._busy.pop(sha256, None)

    def _sources(self, sha256: str) -> list[Source]:
        origin = parse_origin(self._api_url, self._ca_file)  # the fleet CA may have been replaced meanwhile (wire 8.6)
        controller = Source(origin, ARTIFACTS + sha256, self._authorise, self._forget)
        return [*(Source(origin, f"/{sha256}") for origin in self._mirrors), controller]
