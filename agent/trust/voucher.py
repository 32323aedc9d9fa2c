"""Asks the signed repository about a build before anything of it is installed, and says what keeps builds waiting.

Invariant: ``vouch`` returns only after a refresh under a clock that can be believed, with the repository and the
assignment naming the same bytes. Does not retry: the codes in `WAITS` are worth another try, those in `NEVER` are not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from agent.errors import TrustError
from agent.trust.protocol import TEMPORARY
from agent.trust.repository import Repository
from agent.trust.vouching import build_path, require_vouched
from wire.manifest import Manifest

NEVER: Final = frozenset({"not_vouched", "disagree"})
# trouble that passes by itself, or once somebody has signed again or set the clock
WAITS: Final = TEMPORARY | {"not_found", "unauthorised", "expired", "clock_suspect", "read_only", "disk_error"}


class Voucher:
    """The repository as updates ask it. ``on_change`` is told when ``trouble`` changed."""

    def __init__(self, repository: Repository, on_change: Callable[[], None] = lambda: None) -> None:
        self._repository = repository
        self._on_change = on_change
        self.trouble = ""

    async def vouch(self, manifest: Manifest, build: str, sha256: str, size: int) -> None:
        """Return when ``build``, whose manifest's envelope has ``sha256`` and ``size``, may be installed now.

        Raises TrustError with a code of `refusals.py`, or "not_vouched", "disagree" or "clock_suspect".
        """
        path = build_path(manifest.target.profile, manifest.model, build)
        try:
            answer = await self._repository.refresh([path])
            if answer.clock.suspect:
                raise TrustError(answer.clock.reason, "clock_suspect")
        except TrustError as error:
            self._tell(f"new builds wait: {error}")
            raise
        self._tell("")
        require_vouched(path, answer.found[path], sha256, size)

    def look_at_clock(self) -> None:
        """Judge the clock without asking anybody, so that a wrong one is told before an update needs it."""
        clock = self._repository.clock()
        if clock.suspect:
            self._tell(f"new builds wait: {clock.reason}")
        elif self.trouble.endswith("(NTP)"):
            self._tell("")

    def _tell(self, trouble: str) -> None:
        if trouble != self.trouble:
            self.trouble = trouble
            self._on_change()
