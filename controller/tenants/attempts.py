"""How often an address may try what anybody may send: joining, logging in.

Addresses of IPv6 are counted by their network of 64 bits, for whoever has one address has all of these.

Invariant: bounded in memory by what the window holds; forgets everything at a restart. Does not know what was tried.
"""

from __future__ import annotations

from ipaddress import ip_address, ip_network
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
        if not self._limiter.hit(self._limit, purpose, network(connection)):
            raise TooManyError("too many requests from this address: try again in a minute", "too_many")


def network(connection: HTTPConnection) -> str:
    """Return where a request comes from: an IPv4 address, or the IPv6 network of 64 bits around the address."""
    text = connection.client.host if connection.client else "unknown"
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return text
    if address.version == 4:
        return str(address)
    mapped = address.ipv4_mapped
    if mapped is not None:
        return str(mapped)
    return text if address.is_loopback else str(ip_network((address, 64), strict=False))
