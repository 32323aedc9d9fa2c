"""Access tokens of operators: signed, for ten minutes, got for an API token or a console session. All of JWT is here.

Invariant: one algorithm (EdDSA), one key, one issuer, one audience; a token says which API token it stands for and
nothing about what that may do, so that role and revocation are looked up at each use. What names another key or another
way to check it is refused before it is looked at. Reads no database and no clock.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric import ed25519

from controller.errors import UnauthenticatedError
from wire.envelope import key_id

ALGORITHM: Final = "EdDSA"
TYPE: Final = "muster-access+jwt"
ISSUER: Final = "muster"
AUDIENCE: Final = "muster-api"
LIFE: Final = 600  # seconds
AHEAD: Final = 60  # seconds that the clock may have been put back since a token was made
MAX_LENGTH: Final = 1024
_CLAIMS: Final = frozenset({"iss", "aud", "sub", "jti", "iat", "exp"})
_OPTIONS: Final[dict[str, Any]] = {
    "require": sorted(_CLAIMS),
    "verify_signature": True,
    "verify_aud": True,
    "strict_aud": True,
    "verify_iss": True,
    "verify_sub": True,
    "verify_jti": True,
    "verify_exp": False,  # these three below, against a clock that is handed in, and with a bound on their distance
    "verify_iat": False,
    "verify_nbf": False,
}


@dataclass(frozen=True, slots=True)
class Grant:
    """What a good access token says. ``token``: the API token that it stands for; ``id``: its own."""

    token: str
    id: str
    expires: int


class AccessTokens:
    """Makes and reads access tokens under one key."""

    def __init__(self, key: ed25519.Ed25519PrivateKey) -> None:
        self._key = key
        self._public = key.public_key()
        self._header = {"alg": ALGORITHM, "kid": key_id(self._public), "typ": TYPE}

    def make(self, token: str, now: float) -> tuple[str, Grant]:
        """Return an access token that stands for the API token with this id, and what it says."""
        issued = int(now)
        grant = Grant(token=token, id=secrets.token_urlsafe(16), expires=issued + LIFE)
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": grant.token,
            "jti": grant.id,
            "iat": issued,
            "exp": grant.expires,
        }
        return jwt.encode(claims, self._key, algorithm=ALGORITHM, headers=self._header), grant

    def read(self, text: str, now: float) -> Grant:
        """Return what the token ``text`` says. Raises UnauthenticatedError."""
        if len(text) > MAX_LENGTH or not text.isascii():
            raise _refused("too long")
        try:
            if jwt.get_unverified_header(text) != self._header:
                raise _refused("its header is not one of ours")
            claims = jwt.decode(
                text,
                self._public,
                algorithms=[ALGORITHM],
                audience=AUDIENCE,
                issuer=ISSUER,
                options=_OPTIONS,  # type: ignore[arg-type]
            )
        except (jwt.PyJWTError, ValueError, RecursionError) as error:
            raise _refused(str(error)[:200]) from error
        issued, expires = claims["iat"], claims["exp"]
        if claims.keys() != _CLAIMS or type(issued) is not int or type(expires) is not int:
            raise _refused("its claims are not ours")
        if not 0 < expires - issued <= LIFE:
            raise _refused("it holds for longer than any of ours")
        if issued > now + AHEAD:
            raise _refused("it is from the future")
        if expires <= now:
            raise UnauthenticatedError(
                "this access token has expired: get another for your API token", "expired_access_token"
            )
        return Grant(token=claims["sub"], id=claims["jti"], expires=expires)


def _refused(why: str) -> UnauthenticatedError:
    return UnauthenticatedError(f"this access token is not good: {why}", "bad_access_token")
