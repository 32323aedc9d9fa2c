"""How a route below the guard says which permission it needs.

Invariant: fails closed: before `controller/tenants/guard.py` has been handed over by ``require_declared``, every
request is an error. Knows no roles.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, cast

from starlette.requests import HTTPConnection


class Caller(Protocol):
    """What these routes must know of a principal."""

    @property
    def tenant(self) -> str:
        """The caller's tenant."""


class Check(Protocol):
    """The guard: recognises the caller of a request and checks one action, or raises a ControllerError."""

    def __call__(self, action: str, connection: HTTPConnection) -> Caller:
        """Return the caller."""


@dataclass(frozen=True)
class Needs:
    """A FastAPI dependency that asks the guard for ``action`` and gives the caller."""

    action: str

    def __call__(self, connection: HTTPConnection) -> Caller:
        """Return the caller; raises what the guard raises."""
        return cast("Check", connection.app.state.guard)(self.action, connection)
