"""How the HTTP API knows a device (wire 8.5): a signed challenge gives a bearer token for ten minutes.

Invariant: nothing is stored; challenge and token are vouched for by an HMAC, and at each use the device must still be
enrolled and not revoked. A challenge is answered once, and by the process that gave it: a signed answer that somebody
recorded opens nothing.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
import threading
import time
from collections.abc import Callable
from typing import Final

import msgspec

from controller.database.connection import Database
from controller.devices import store
from controller.errors import TooManyError, UnauthenticatedError
from controller.tenants.access import DEVICE, Principal
from controller.tenants.guard import DEVICE_TOKEN_PREFIX
from wire.enrolment import Challenge
from wire.envelope import DEVICE_SESSION, Envelope, decode_public_key, key_id, open_envelope
from wire.errors import WireError

CHALLENGE_SECONDS: Final = 60.0
TOKEN_SECONDS: Final = 600.0
MAX_ENVELOPE_BYTES: Final = 8_192
MAX_ANSWERED: Final = 100_000  # challenges within their minute


class _Claims(msgspec.Struct, frozen=True, kw_only=True):
    device: str
    expires: float


class DeviceSessions:
    """Makes and verifies. ``key``: 32 random bytes, the same in every process that verifies."""

    def __init__(self, database: Database, key: bytes, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._key = key
        self._clock = clock
        self._run = secrets.token_hex(16)  # which challenges were answered is not known after a restart
        self._answered: dict[str, float] = {}  # salt to the end of its challenge
        self._lock = threading.Lock()

    def challenge(self, device: str) -> bytes:
        """Return the bytes that ``device`` must sign within ``CHALLENGE_SECONDS``."""
        expires = self._clock() + CHALLENGE_SECONDS
        salt = secrets.token_hex(16)
        nonce = f"{salt}.{self._mac('challenge', self._run, device, salt, repr(expires))}"
        return msgspec.json.encode(Challenge(device=device, nonce=nonce, expires=expires))

    def answer(self, envelope: bytes) -> tuple[str, float]:
        """Return the bearer token for the device that signed its challenge, and when it expires.

        Raises UnauthenticatedError.
        """
        if len(envelope) > MAX_ENVELOPE_BYTES:
            raise UnauthenticatedError("the signed challenge is too large", "bad_challenge")
        try:
            challenge = msgspec.json.decode(msgspec.json.decode(envelope, type=Envelope).payload, type=Challenge)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise UnauthenticatedError("this is not a signed challenge", "bad_challenge") from error
        self._check(challenge)
        with self._database.read() as connection:
            found = store.active_key(connection, challenge.device)
        if found is None:
            raise UnauthenticatedError(f"device {challenge.device[:32]!r} is unknown or revoked", "no_device")
        try:
            key = decode_public_key(found[2])
            open_envelope(envelope, DEVICE_SESSION, {key_id(key): key})
        except WireError as error:
            raise UnauthenticatedError(
                f"the challenge is not signed by the device: {error}", "bad_signature"
            ) from error
        self._spend(challenge)
        expires = self._clock() + TOKEN_SECONDS
        claims = _encode(msgspec.json.encode(_Claims(device=challenge.device, expires=expires)))
        return f"{DEVICE_TOKEN_PREFIX}{claims}.{self._mac('token', claims)}", expires

    def verify(self, text: str) -> Principal:
        """Return the device behind a bearer token. Raises UnauthenticatedError."""
        claims_text, _, mac = text.removeprefix(DEVICE_TOKEN_PREFIX).partition(".")
        if not hmac.compare_digest(mac.encode(), self._mac("token", claims_text).encode()):
            raise UnauthenticatedError("this device token was not made here: sign a new challenge", "bad_session")
        claims = msgspec.json.decode(_decode(claims_text), type=_Claims)
        if claims.expires <= self._clock():
            raise UnauthenticatedError("this device token has expired: sign a new challenge", "expired_session")
        with self._database.read() as connection:
            found = store.active_key(connection, claims.device)
        if found is None:
            raise UnauthenticatedError(f"device {claims.device} is revoked", "no_device")
        return Principal(tenant=found[0], role=DEVICE, id=claims.device, name=found[1])

    def _check(self, challenge: Challenge) -> None:
        salt, _, mac = challenge.nonce.partition(".")
        expected = self._mac("challenge", self._run, challenge.device, salt, repr(challenge.expires))
        if not hmac.compare_digest(mac.encode("utf-8", "surrogatepass"), expected.encode()):
            raise UnauthenticatedError("this challenge was not made here: ask for a new one", "bad_challenge")
        if challenge.expires <= self._clock():
            raise UnauthenticatedError("this challenge has expired: ask for a new one", "expired_challenge")

    def _spend(self, challenge: Challenge) -> None:
        salt, now = challenge.nonce.partition(".")[0], self._clock()
        with self._lock:
            if salt in self._answered:
                raise UnauthenticatedError("this challenge was answered before: ask for a new one", "used_challenge")
            if len(self._answered) >= MAX_ANSWERED:
                self._answered = {one: ends for one, ends in self._answered.items() if ends > now}
            if len(self._answered) >= MAX_ANSWERED:
                raise TooManyError("too many devices sign in at once: try again in a minute", "too_many")
            self._answered[salt] = challenge.expires

    def _mac(self, *parts: str) -> str:
        joined = "\n".join(parts).encode("utf-8", "surrogatepass")
        return hmac.new(self._key, joined, hashlib.sha256).hexdigest()


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _decode(text: str) -> bytes:
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError) as error:
        raise UnauthenticatedError("this device token cannot be read", "bad_session") from error
