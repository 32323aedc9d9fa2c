"""What the device signs to be known: sessions of the HTTP API and credentials of the tunnel (wire 8.5, 9.1).

Invariant: the key signs only for the purposes named here, and a challenge only when it is for this device. A session
token is kept in memory, never on disk or in a log. Does not open the tunnel and downloads nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

import msgspec

from agent.errors import ControllerError
from agent.identity import exchange
from agent.identity.enrol import Identity
from wire import envelope
from wire.enrolment import Challenge, TunnelCredential

CHALLENGE_PATH: Final = "/api/v1/device-sessions/challenge"
SESSION_PATH: Final = "/api/v1/device-sessions"
_EARLY: Final = 60.0  # seconds before its end that a token is no longer used
_AT_MOST: Final = 540.0  # seconds that a token is used whatever this device's clock says
_LIMIT: Final = 16 * 1024


class _Session(msgspec.Struct, frozen=True, kw_only=True):
    token: str
    expires: float


class Credentials:
    """Signs for one identity. May be used from one event loop."""

    def __init__(self, identity: Identity, *, clock: Callable[[], float] = time.time) -> None:
        self._identity = identity
        self._clock = clock
        self._session: _Session | None = None
        self._fetched = 0.0  # monotonic
        self._lock = asyncio.Lock()

    async def session_token(self) -> str:
        """Return a bearer token for the HTTP API, a fresh one when the held one ends within a minute.

        Raises UnreachableError or ControllerError.
        """
        async with self._lock:
            if self._session is None or not self._usable(self._session):
                self._session = await asyncio.to_thread(self._fetch)
                self._fetched = time.monotonic()
            return self._session.token

    def forget_session(self) -> None:
        """Fetch a new token at the next call: the API did not take the held one."""
        self._session = None

    def tunnel_credential(self, now: float, seconds: float = 3600.0) -> bytes:
        """Return the envelope with which the serving process may open a tunnel until ``now + seconds``."""
        credential = TunnelCredential(device=self._identity.device, issued=now, expires=now + seconds)
        return envelope.seal(msgspec.json.encode(credential), envelope.TUNNEL, self._identity.key)

    def _usable(self, session: _Session) -> bool:
        return session.expires - _EARLY > self._clock() and time.monotonic() - self._fetched < _AT_MOST

    def _fetch(self) -> _Session:
        address = exchange.parse_url(self._identity.api_url)
        context = exchange.verified(self._identity.ca_file)
        body = msgspec.json.encode({"device": self._identity.device})
        challenge = exchange.exchange(address, context, "POST", CHALLENGE_PATH, body, limit=_LIMIT)
        try:
            asked = msgspec.json.decode(challenge, type=Challenge).device
            if asked != self._identity.device:
                raise ControllerError(f"{address} asked this device to sign for {asked[:64]!r}", "bad_answer")
            signed = envelope.seal(challenge, envelope.DEVICE_SESSION, self._identity.key)
            answer = exchange.exchange(address, context, "POST", SESSION_PATH, signed, limit=_LIMIT)
            return msgspec.json.decode(answer, type=_Session)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise ControllerError(f"the answer from {address} cannot be used: {error}", "bad_answer") from error
