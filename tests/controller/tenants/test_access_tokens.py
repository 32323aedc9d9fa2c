"""Access tokens: what is ours is read, and whatever was forged, stretched or bent is refused."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from controller.errors import UnauthenticatedError
from controller.tenants.access_tokens import AHEAD, LIFE, MAX_LENGTH, AccessTokens

NOW = 1_800_000_000.75
KEY, OTHER = ed25519.Ed25519PrivateKey.generate(), ed25519.Ed25519PrivateKey.generate()
OURS = AccessTokens(KEY)
GOOD = OURS.make("abcdefghijklmnop", NOW)[0]
HEADER, CLAIMS = jwt.get_unverified_header(GOOD), jwt.decode(GOOD, options={"verify_signature": False})
PEM = KEY.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
RAW = KEY.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


def part(value: Any) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def signed(claims: Any, header: Any = HEADER, key: ed25519.Ed25519PrivateKey = KEY) -> str:
    text = f"{part(header)}.{part(claims)}"
    return f"{text}.{part(key.sign(text.encode()))}"


def by_hmac(secret: bytes, algorithm: str = "HS256") -> str:
    text = f"{part(HEADER | {'alg': algorithm})}.{part(CLAIMS)}"
    return f"{text}.{part(hmac.digest(secret, text.encode(), hashlib.sha256))}"


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in CLAIMS.items() if key != name}


def other_algorithm(key: Any, algorithm: str) -> str:
    return jwt.encode(CLAIMS, key, algorithm=algorithm, headers={"kid": HEADER["kid"], "typ": HEADER["typ"]})


JWK = {"kty": "OKP", "crv": "Ed25519", "x": part(OTHER.public_key().public_bytes_raw())}
FORGED: dict[str, Callable[[], str]] = {
    "alg none": lambda: f"{part(HEADER | {'alg': 'none'})}.{part(CLAIMS)}.",
    "alg None": lambda: f"{part(HEADER | {'alg': 'None'})}.{part(CLAIMS)}.",
    "alg none with our signature": lambda: f"{part(HEADER | {'alg': 'none'})}.{GOOD.split('.', 1)[1]}",
    "no signature": lambda: GOOD.rsplit(".", 1)[0] + ".",
    "two parts": lambda: GOOD.rsplit(".", 1)[0],
    "four parts": lambda: GOOD + ".x",
    "HS256 with the public key as PEM": lambda: by_hmac(PEM),
    "HS256 with the public key's bytes": lambda: by_hmac(RAW),
    "HMAC that says EdDSA": lambda: by_hmac(PEM, "EdDSA"),
    "HS256 with nothing": lambda: by_hmac(b""),
    "another key": lambda: signed(CLAIMS, key=OTHER),
    "another key under its own name": lambda: AccessTokens(OTHER).make("abcdefghijklmnop", NOW)[0],
    "ES256": lambda: other_algorithm(ec.generate_private_key(ec.SECP256R1()), "ES256"),
    "RS256": lambda: other_algorithm(rsa.generate_private_key(65537, 2048), "RS256"),
    "no exp": lambda: signed(without("exp")),
    "no iat": lambda: signed(without("iat")),
    "no aud": lambda: signed(without("aud")),
    "no iss": lambda: signed(without("iss")),
    "no sub": lambda: signed(without("sub")),
    "no jti": lambda: signed(without("jti")),
    "a long life": lambda: signed(CLAIMS | {"exp": CLAIMS["iat"] + LIFE + 1}),
    "begun long ago": lambda: signed(CLAIMS | {"iat": CLAIMS["iat"] - 1}),
    "ends before it begins": lambda: signed(CLAIMS | {"iat": CLAIMS["exp"]}),
    "from the future": lambda: signed(
        CLAIMS | {"iat": int(NOW) + AHEAD + 2, "exp": int(NOW) + AHEAD + LIFE},
    ),
    "exp as a word": lambda: signed(CLAIMS | {"exp": str(CLAIMS["exp"])}),
    "exp true": lambda: signed(CLAIMS | {"exp": True}),
    "exp with a fraction": lambda: signed(CLAIMS | {"exp": CLAIMS["exp"] + 0.5}),
    "exp null": lambda: signed(CLAIMS | {"exp": None}),
    "exp infinite": lambda: signed(CLAIMS | {"exp": float("inf")}),
    "exp of a thousand digits": lambda: signed(CLAIMS | {"exp": 10**200}),
    "another audience": lambda: signed(CLAIMS | {"aud": "muster-gateway"}),
    "a list of audiences": lambda: signed(CLAIMS | {"aud": [CLAIMS["aud"]]}),
    "another issuer": lambda: signed(CLAIMS | {"iss": "https://example.com"}),
    "a list of issuers": lambda: signed(CLAIMS | {"iss": [CLAIMS["iss"]]}),
    "sub as a number": lambda: signed(CLAIMS | {"sub": 1}),
    "jti as a list": lambda: signed(CLAIMS | {"jti": []}),
    "more claims": lambda: signed(CLAIMS | {"role": "admin"}),
    "claims that are no object": lambda: signed([CLAIMS]),
    "claims that are no JSON": lambda: signed(b"\xff{"),
    "another kid": lambda: signed(CLAIMS, HEADER | {"kid": "0" * 16}),
    "no kid": lambda: signed(CLAIMS, {"alg": "EdDSA", "typ": HEADER["typ"]}),
    "kid as a path": lambda: signed(CLAIMS, HEADER | {"kid": "../../../../dev/null"}, OTHER),
    "kid as SQL": lambda: signed(CLAIMS, HEADER | {"kid": "' UNION SELECT 'x"}, OTHER),
    "jku": lambda: signed(CLAIMS, HEADER | {"jku": "https://example.com/keys"}, OTHER),
    "x5u": lambda: signed(CLAIMS, HEADER | {"x5u": "https://example.com/chain"}, OTHER),
    "jwk": lambda: signed(CLAIMS, HEADER | {"jwk": JWK}, OTHER),
    "jwk under our key": lambda: signed(CLAIMS, HEADER | {"jwk": JWK}),
    "crit": lambda: signed(CLAIMS, HEADER | {"crit": ["exp"]}),
    "b64 false": lambda: signed(CLAIMS, HEADER | {"b64": False, "crit": ["b64"]}),
    "another type": lambda: signed(CLAIMS, HEADER | {"typ": "JWT"}),
    "a changed signature": lambda: GOOD[:-4] + ("AAAA" if GOOD[-4:] != "AAAA" else "BBBB"),
    "changed claims": lambda: ".".join((GOOD.split(".")[0], part(CLAIMS | {"sub": "x" * 16}), GOOD.split(".")[2])),
    "nothing": lambda: "..",
    "not ASCII": lambda: GOOD + "é",
    "far too long": lambda: "a" * MAX_LENGTH + ".b.c",
    "deep nesting": lambda: f"{part(b'[' * 400)}.{part(b'[' * 100)}.x",
}


def test_what_is_ours_is_read() -> None:
    text, made = OURS.make("abcdefghijklmnop", NOW)
    assert OURS.read(text, NOW) == made
    assert made.token == "abcdefghijklmnop"
    assert made.expires == int(NOW) + LIFE
    assert OURS.make("abcdefghijklmnop", NOW)[1].id != made.id
    assert AccessTokens(KEY).read(text, NOW) == made, "also after a restart"


def test_the_same_made_by_hand_is_read() -> None:
    """Else the forgeries below might be refused for a slip of this file."""
    assert OURS.read(signed(CLAIMS), NOW).token == CLAIMS["sub"]


@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED)
def test_what_was_forged_is_refused(forge: Callable[[], str]) -> None:
    with pytest.raises(UnauthenticatedError) as told:
        OURS.read(forge(), NOW)
    assert told.value.code == "bad_access_token"


def test_it_ends_after_ten_minutes() -> None:
    assert OURS.read(GOOD, int(NOW) + LIFE - 0.5)
    with pytest.raises(UnauthenticatedError) as told:
        OURS.read(GOOD, int(NOW) + LIFE)
    assert told.value.code == "expired_access_token"
    assert OURS.read(GOOD, NOW - AHEAD), "a clock that was put back a little"
