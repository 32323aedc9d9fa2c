"""Who may join (wire 8.4): the decision about one enrolment request.

Invariant: nobody joins without the secret of a token that holds; the same token with the same key is the same device,
however often it asks. Does not make names or certificates (`authority.py`).
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Token:
    """A join token as stored. ``expires``: seconds since 1970; ``tags``: given to each device that joins with it."""

    id: str
    tenant: str
    secret_sha256: str
    uses_left: int
    expires: float
    tags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Known:
    """The device that has joined with this very token and key before."""

    device: str
    revoked: bool


@dataclass(frozen=True, slots=True)
class Admit:
    """A new device: one use of the token is spent."""

    tenant: str
    tags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """The device that asked before, whose answer may have been lost: the same name, no use spent."""

    device: str
    tenant: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """Not admitted: a stable code, and a sentence that says what to do."""

    code: str
    reason: str


def split(text: str) -> tuple[str, str]:
    """Return id and secret of the request's token "ID.SECRET" (wire 8.3)."""
    token, _, secret = text.partition(".")
    return token, secret


def decide(token: Token | None, secret: str, known: Known | None, now: float) -> Admit | Repeat | Refuse:
    """Decide about a request with ``secret`` for ``token`` (None: no such id) by a key that is ``known`` or not."""
    another = "make another with `muster tokens join`"
    if token is None:
        return Refuse("token_unknown", f"this join token is not known here: {another}")
    digest = hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
    if not hmac.compare_digest(digest, token.secret_sha256):
        return Refuse("token_wrong", f"the join token's secret does not fit: copy it whole, or {another}")
    if known is not None:
        if known.revoked:
            return Refuse("device_revoked", f"device {known.device} was revoked: it needs a new key and a new token")
        return Repeat(known.device, token.tenant)
    if token.expires <= now:
        return Refuse("token_expired", f"the join token expired {now - token.expires:.0f} s ago: {another}")
    if token.uses_left < 1:
        return Refuse("token_used", f"the join token was used as often as it may be: {another}")
    return Admit(token.tenant, token.tags)
