"""How many wrong secrets may be tried for one API token, wherever they come from.

Invariant: beyond the bound a guess is not even compared, so that many addresses together are no better than one; and
nobody is locked out for good by a stranger: this machine and addresses that were right before are counted apart, and
everybody else may try again within a minute of the last guess. Bounded in memory; forgets everything at a restart.
Knows no secrets.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Final

from controller.errors import TooManyError

WINDOW: Final = 60.0  # seconds
MOST: Final = 20  # wrong secrets for one token within the window, from all strangers together
MOST_KNOWN: Final = 20  # from one address that was right before
MAX_TOKENS: Final = 10_000
MAX_KNOWN: Final = 64  # addresses of one token


@dataclass
class _Token:
    strangers: deque[float] = field(default_factory=deque)
    known: OrderedDict[str, deque[float]] = field(default_factory=OrderedDict)


class Guesses:
    """Counts wrong secrets. Safe to use from any thread. Addresses as `attempts.network` gives them."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._tokens: OrderedDict[str, _Token] = OrderedDict()

    def check(self, token: str, address: str) -> None:
        """Raise TooManyError when no secret for ``token`` may be tried from ``address`` now."""
        with self._lock:
            held = self._tokens.get(token)
            if held is None:
                return
            own = held.known.get(address)
            counted, most = (held.strangers, MOST) if own is None else (own, MOST_KNOWN)
            self._forget_old(counted)
            if len(counted) >= most and not _here(address):
                raise TooManyError(
                    "too many wrong secrets were sent for this API token: try again in a minute, from an address that "
                    "used it before, or on the controller's own machine",
                    "too_many_guesses",
                )

    def wrong(self, token: str, address: str) -> None:
        """Count a wrong secret for a token that exists."""
        with self._lock:
            held = self._held(token)
            counted = held.known.get(address, held.strangers)
            self._forget_old(counted)
            if len(counted) < max(MOST, MOST_KNOWN):
                counted.append(self._clock())

    def right(self, token: str, address: str) -> None:
        """Note that ``address`` knows the secret of ``token``."""
        with self._lock:
            known = self._held(token).known
            known[address] = deque()
            known.move_to_end(address)
            if len(known) > MAX_KNOWN:
                known.popitem(last=False)

    def _held(self, token: str) -> _Token:
        held = self._tokens.setdefault(token, _Token())
        self._tokens.move_to_end(token)
        if len(self._tokens) > MAX_TOKENS:
            self._tokens.popitem(last=False)
        return held

    def _forget_old(self, counted: deque[float]) -> None:
        now = self._clock()
        while counted and now - counted[0] >= WINDOW:
            counted.popleft()


def _here(address: str) -> bool:
    try:
        return ip_address(address.partition("/")[0]).is_loopback
    except ValueError:
        return False
