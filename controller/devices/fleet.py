"""What the enrolment answers are made of; `app.py` puts one into the application's state when all ports are known.

Invariant: the trust bundle is served as the bytes that join tokens fingerprint.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.requests import HTTPConnection

from controller.devices.authority import Authority
from controller.tenants.attempts import Attempts


@dataclass(frozen=True)
class Fleet:
    """The fleet as a new device sees it. URLs without a last "/".

    trust_bundle: gives the bytes that a tenant's devices pin (`wire.enrolment.bundle_bytes`); raises NotFoundError.
    """

    authority: Authority
    trust_bundle: Callable[[str], bytes]
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
