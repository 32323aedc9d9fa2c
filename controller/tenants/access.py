"""Who may do what: one table of roles and actions.

Invariant: what the table does not grant is denied, and nobody acts in another tenant. Does not know tokens, requests
or how a principal was recognised.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

ADMIN: Final = "admin"
OPERATOR: Final = "operator"
VIEWER: Final = "viewer"
BUILDER: Final = "builder"
GATEWAY: Final = "gateway"
DEVICE: Final = "device"

_READING: Final = frozenset(
    {
        "artifacts.read",
        "builds.read",
        "devices.read",
        "fleet.read",
        "metrics.read",
        "models.read",
        "releases.read",
        "rollouts.read",
        "sessions.write",  # to open a console session of one's own
        "tenants.read",
        "trust.read",
    }
)
_OPERATING: Final = _READING | {
    "artifacts.write",
    "audit.read",
    "builds.write",  # to ask for a build
    "devices.enrol",  # to make join tokens
    "devices.revoke",
    "devices.write",
    "models.infer",
    "models.write",
    "releases.write",
    "rollouts.write",
}
ROLES: Final[dict[str, frozenset[str]]] = {
    ADMIN: _OPERATING | {"tokens.read", "tokens.write", "trust.manage"},
    OPERATOR: _OPERATING,
    VIEWER: _READING,
    BUILDER: frozenset(
        {"artifacts.read", "artifacts.write", "builds.make", "builds.read", "models.read", "trust.read"}
    ),
    GATEWAY: frozenset({"devices.read", "fleet.read", "models.read", "tenants.read"}),
    DEVICE: frozenset({"artifacts.read", "certificates.renew", "trust.read"}),
}
TOKEN_ROLES: Final = (ADMIN, OPERATOR, VIEWER, BUILDER, GATEWAY)  # a device has no token: it signs with its key
CREDENTIALS: Final = frozenset({"sessions.write", "tokens.write"})  # else a stolen access token would live for ever
AT_THE_GATEWAY: Final = frozenset({"models.infer"})  # it does not know the key of access tokens
ACTIONS: Final = frozenset[str]().union(*ROLES.values())


@dataclass(frozen=True, slots=True)
class Principal:
    """Somebody or something that was recognised. ``id``: of the token or the device; ``name``: for people."""

    tenant: str
    role: str
    id: str
    name: str
    by_access_token: bool = False  # recognised by an access token, which lives shorter than what it stands for

    @property
    def actor(self) -> str:
        """The words under which the audit knows this principal."""
        return f"{self.role}:{self.name}:{self.id}"[:128]


@dataclass(frozen=True, slots=True)
class Allowed:
    """The principal may do that."""


@dataclass(frozen=True, slots=True)
class Denied:
    """The principal may not, by this rule."""

    rule: str


def allowed(principal: Principal, action: str, tenant: str) -> Allowed | Denied:
    """Decide whether ``principal`` may do ``action`` in ``tenant``."""
    if principal.tenant != tenant:
        return Denied(f"a token of tenant {principal.tenant!r} holds in that tenant only")
    if action not in ROLES.get(principal.role, frozenset()):
        able = [role for role, actions in ROLES.items() if action in actions]
        return Denied(f"the role {principal.role!r} may not do {action!r}; these may: {', '.join(able) or 'none'}")
    if principal.by_access_token and action in CREDENTIALS:
        return Denied("an access token makes no other credential: send the API token that it stands for")
    if principal.by_access_token and action in AT_THE_GATEWAY:
        return Denied("the gateway takes API tokens and sessions, and no access tokens: send the API token")
    return Allowed()
