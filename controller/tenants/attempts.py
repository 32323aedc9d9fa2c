"""How often an address may try what anybody may send: joining, logging in.

Invariant: bounded in memory by what the window holds; forgets everything at a restart. Does not know what was tried.
"""

from __future__ import annotations

from typing import Final

from limits import RateLimitItem, RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from starlette.requests import HTTPConnection

from controller.errors import TooManyError

PER_MINUTE: Final = 60  # a rack of boards behind one address still gets in; guessing a secret does not


class Attempts:
    """Counts the requests that anybody may send, by the address they come from."""

    def __init__(self, per_minute: int = PER_MINUTE) -> None:
        self._limit: RateLimitItem = RateLimitItemPerMinute(per_minute)
        self._limiter = MovingWindowRateLimiter(MemoryStorage())

    def count(self, purpose: str, connection: HTTPConnection) -> None:
        """Count one request. Raises TooManyError above ``per_minute`` for this purpose and address."""
        address = connection.client.host if connection.client else "unknown"
        if not self._limiter.hit(self._limit, purpose, address):
            raise TooManyError("too many requests from this address: try again in a minute", "too_many")
