"""How a device joins (wire 8): the join token, what it pins, the request and the answer.

Invariant: a join token carries a fingerprint of everything that the device will trust, so that nothing is believed on
first contact. Does not decide who may join (controller) nor make keys (agent).
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from wire.codec import Message, encode
from wire.errors import MalformedError
from wire.messages import Name, Text

MAX_BYTES: Final = 64 * 1024
_TOKEN: Final = re.compile(r"^muster-join-1\.([a-z0-9-]{1,63})\.([a-z2-7]{16})\.([a-z2-7]{32})\.([a-z2-7]{52})\Z")
Pem = Annotated[str, Meta(max_length=16_384)]


@dataclass(frozen=True, slots=True)
class JoinToken:
    """tenant: its name; id: public part; secret: shown once; fingerprint: of the trust bundle."""

    tenant: str
    id: str
    secret: str
    fingerprint: str

    def __str__(self) -> str:
        return f"muster-join-1.{self.tenant}.{self.id}.{self.secret}.{self.fingerprint}"

    def __repr__(self) -> str:  # a secret must not end up in a log
        return f"JoinToken(tenant={self.tenant!r}, id={self.id!r})"


class TrustBundle(Message, frozen=True, kw_only=True):
    """What a device pins: the fleet CA, who vouches for assignments (DER keys in base64), who says what is a build.

    tuf_root: root metadata of the tenant's signed repository (wire 10), from which all newer ones descend.
    """

    ca_pem: Pem
    assignment_keys: Annotated[list[str], Meta(min_length=1, max_length=8)]
    tuf_root: Annotated[bytes, Meta(min_length=2, max_length=32_768)]


class EnrolRequest(Message, frozen=True, kw_only=True):
    """token: the join token's id and secret as "ID.SECRET"; csr_pem: a request whose names are ignored (wire 8.3)."""

    token: Text
    csr_pem: Pem
    facts: dict[str, Any] = {}
    name: Annotated[str, Meta(max_length=63)] = ""


class EnrolAnswer(Message, frozen=True, kw_only=True):
    """Who the device is now, and where it finds the fleet. ``chain_pem``: the certificate's issuers, nearest first."""

    device: Annotated[str, Meta(pattern=r"^d-[a-z2-7]{26}\Z")]
    certificate_pem: Pem
    chain_pem: Pem
    mqtt_host: Name
    mqtt_port: Annotated[int, Meta(ge=1, le=65_535)]
    api_url: Text
    gateway_url: Text


class RenewAnswer(Message, frozen=True, kw_only=True):
    """A device's newest certificate (wire 8.6), ``chain_pem`` as in EnrolAnswer.

    roots_pem: the CA certificates from which the fleet's servers may descend from now on, one or several.
    """

    certificate_pem: Pem
    chain_pem: Pem
    roots_pem: Pem


def parse_token(text: str) -> JoinToken:
    """Return the join token in ``text``. Raises MalformedError, without repeating the secret."""
    match = _TOKEN.match(text.strip())
    if match is None:
        raise MalformedError(
            "this is not a join token (muster-join-1.TENANT.ID.SECRET.FINGERPRINT); make one with `muster tokens join`"
        )
    return JoinToken(*match.groups())


def fingerprint(bundle_bytes: bytes) -> str:
    """Return the fingerprint of a trust bundle's bytes as received: base32 of the SHA-256, lower case (wire 8.2)."""
    return base64.b32encode(hashlib.sha256(bundle_bytes).digest()).decode().rstrip("=").lower()


def bundle_bytes(bundle: TrustBundle) -> bytes:
    """Return the bytes under which ``bundle`` is served and fingerprinted."""
    return encode(bundle)


class Challenge(msgspec.Struct, frozen=True, kw_only=True):
    """What a device signs (purpose "device-session") to be known by the HTTP API (wire 8.5)."""

    device: str
    nonce: str
    expires: float


class TunnelCredential(msgspec.Struct, frozen=True, kw_only=True):
    """What a device signs (purpose "tunnel") so that its serving process may open a tunnel (wire 9.1)."""

    device: str
    issued: float
    expires: float
