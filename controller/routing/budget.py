"""The bytes of bodies that the gateway may hold at once, shared among tenants.

Invariant: never more than ``limit`` in all; and no tenant holds more than ``SHARE`` of what the others leave, so that
one whose clients are slow, or whose devices claim much, does not take the gateway from everybody else. Counts only: who
took gives back.
"""

from __future__ import annotations

from typing import Final

SHARE: Final = 0.75


class Budget:
    """``used``: bytes that are reserved now, of all tenants together."""

    __slots__ = ("_held", "limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._held: dict[str, int] = {}

    def take(self, tenant: str, size: int) -> bool:
        """Reserve ``size`` bytes for ``tenant``; False, and nothing reserved, when they do not fit."""
        own = self._held.get(tenant, 0)
        if size and own + size > (self.limit - self.used + own) * SHARE:
            return False
        self.used += size
        self._held[tenant] = own + size
        return True

    def give(self, tenant: str, size: int) -> None:
        """Return ``size`` reserved bytes."""
        self.used -= size
        left = self._held[tenant] = self._held.get(tenant, 0) - size
        if not left:
            del self._held[tenant]
