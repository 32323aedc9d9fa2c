"""What the enrolment answers are made of; `app.py` puts one into the application's state when all ports are known.

Invariant: the trust bundle is served as the bytes that join tokens fingerprint.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from limits import RateLimitItem, RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from starlette.requests import HTTPConnection

from controller.devices.authority import Authority
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


@dataclass(frozen=True)
class Fleet:
    """The fleet as a new device sees it. ``trust_bundle``: `wire.enrolment.bundle_bytes`; URLs without a last "/"."""

    authority: Authority
    trust_bundle: bytes
    mqtt_host: str
    mqtt_port: int
    api_url: str
    gateway_url: str
    attempts: Attempts = field(default_factory=Attempts)


def fleet(connection: HTTPConnection) -> Fleet:
    """Return the application's fleet: a FastAPI dependency."""
    found = connection.app.state.fleet
    assert isinstance(found, Fleet), "app.py sets app.state.fleet before it serves"
    return found
