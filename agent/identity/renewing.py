"""Renews the device's certificate in good time, and asks once a day whether the fleet's CA is replaced (wire 8.6).

Invariant: a failure is tried again with growing pauses for as long as the agent runs; the certificate in use is left
alone until the newer one has proved itself (`certificates.py`). Decides nothing: `renewal.py` says when, the
controller whether.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

import structlog

from agent.errors import AgentError, ControllerError, DeviceError
from agent.identity import exchange, renewal
from agent.identity.certificates import Certificates
from agent.identity.credentials import Credentials
from agent.identity.enrol import Identity
from agent.link import backoff
from wire import codec, enrolment
from wire.enrolment import RenewAnswer
from wire.errors import WireError

RENEW_PATH: Final = "/api/v1/device-certificates"

_log = structlog.get_logger()


class Renewing:
    """``on_renewed`` is called when a newer certificate lies ready: the next connection uses it."""

    def __init__(
        self,
        identity: Identity,
        certificates: Certificates,
        credentials: Credentials,
        on_renewed: Callable[[], None],
        rng: backoff.Rng,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._identity = identity
        self._certificates = certificates
        self._credentials = credentials
        self._on_renewed = on_renewed
        self._rng = rng
        self._clock = clock
        self._place = rng.random()
        self._wake = asyncio.Event()

    def look_again(self) -> None:
        """The clock was set: what was not due may be, and the other way round."""
        self._wake.set()

    async def run(self) -> None:
        """Renew whenever it is time, until cancelled."""
        loop = asyncio.get_running_loop()
        attempt, told, asked = 0, "", loop.time()
        while True:
            self._wake.clear()
            try:
                due = renewal.wait(self._certificates.life(), self._clock(), self._place)
                pause = min(due, renewal.wait_for_roots(loop.time() - asked, self._place))
                if pause <= 0:
                    if not await self._renew() and due <= 0:
                        raise DeviceError(
                            "the controller sees no need for another certificate yet: is this device's clock right?",
                            "not_renewed",
                        )
                    attempt, told, asked, pause = 0, "", loop.time(), renewal.AFTER_FAILURE.least
            except AgentError as error:
                pause, attempt = backoff.delay(attempt, self._rng, renewal.AFTER_FAILURE), attempt + 1
                if str(error) != told:
                    told = str(error)
                    _log.warning("the certificate was not renewed; trying again", reason=told, code=error.code)
            try:
                async with asyncio.timeout(pause):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def _renew(self) -> bool:
        """Ask for the newest certificate; return whether it is another than the one held."""
        try:
            answer = await asyncio.to_thread(self._ask, await self._credentials.session_token())
        except ControllerError:
            self._credentials.forget_session()
            raise
        if await asyncio.to_thread(self._certificates.put_roots, answer.roots_pem):
            _log.info("the fleet's CA certificates were renewed")
        if not await asyncio.to_thread(self._certificates.put, answer.certificate_pem, answer.chain_pem):
            return False
        ends = self._certificates.life().ends
        _log.info("certificate renewed", ends=time.strftime("%Y-%m-%d %H:%M", time.gmtime(ends)))
        self._on_renewed()
        return True

    def _ask(self, token: str) -> RenewAnswer:
        address = exchange.parse_url(self._identity.api_url)
        data = exchange.exchange(
            address,
            exchange.verified(self._identity.ca_file),
            "POST",
            RENEW_PATH,
            b"",
            bearer=token,
            limit=enrolment.MAX_BYTES,
        )
        try:
            return codec.decode(RenewAnswer, data, enrolment.MAX_BYTES)
        except WireError as error:
            raise ControllerError(f"the answer from {address} cannot be used: {error}", "bad_answer") from error
