"""Where devices dial in: accepts tunnels, keeps one a device, and notices those that fell silent.

Invariant: every open tunnel belongs to a device that is registered and not revoked, as of the newest registry. A newer
tunnel of a device replaces the older one at once. A device that says nothing for ``SUSPECT_AFTER`` is asked last, and
after ``CLOSED_AFTER`` its tunnel is closed. A device that vanished with requests in hand is asked last for a while,
also when it is back at once: one that each request brings down would else be asked first each time. Does not carry
requests (`tunnels.py`) and does not choose devices.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Iterator
from typing import Final

import msgspec
import structlog
from starlette.types import Receive, Scope, Send

from controller.errors import ControllerError, InvalidError, UnauthenticatedError, UnavailableError
from controller.routing.budget import Budget
from controller.routing.credential import admit, claimed_device
from controller.routing.fleet_view import FleetView
from controller.routing.metrics import Metrics
from controller.routing.standings import LiveDevice
from controller.routing.tunnels import MAX_STREAMS, REPLACED, REVOKED, SILENT, Tunnel
from wire.tunnel import SUBPROTOCOL, Status

PATH: Final = "/tunnel"
SUSPECT_AFTER: Final = 1.5  # seconds; a status comes each second (wire 9.4)
CLOSED_AFTER: Final = 3.0
CONTESTED: Final = 3  # times in a row that a tunnel which was well is replaced: no network does that
MAX_VANISHED: Final = 10_000
_TICK: Final = 0.25

log = structlog.get_logger()


class Hub:
    """All open tunnels, by device."""

    def __init__(self, view: FleetView, budget: Budget, metrics: Metrics, *, max_answer: int, max_tunnels: int) -> None:
        self._view = view
        self._budget = budget
        self._metrics = metrics
        self._max_answer = max_answer
        self._max_tunnels = max_tunnels
        self._tunnels: dict[str, Tunnel] = {}
        self._vanished: OrderedDict[str, LiveDevice] = OrderedDict()  # at most MAX_VANISHED, the newest
        view.subscribe(self._close_all_revoked)

    def __len__(self) -> int:
        return len(self._tunnels)

    def __iter__(self) -> Iterator[Tunnel]:
        return iter(tuple(self._tunnels.values()))

    def get(self, device: str) -> Tunnel | None:
        """Return the open tunnel of ``device``."""
        return self._tunnels.get(device)

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one WebSocket connection until it ends."""
        await receive()  # websocket.connect
        try:
            device, tenant = await self._admit(scope)
        except ControllerError as error:
            log.warning("a tunnel was refused", reason=str(error), peer=scope.get("client"))
            return await refuse(send, error)
        now = asyncio.get_running_loop().time()
        tunnel = Tunnel(
            LiveDevice(device, tenant, MAX_STREAMS, now),
            send,
            self._budget,
            max_answer=self._max_answer,
            on_status=self._heard,
            on_close=self._closed,
            on_late=self._metrics.late_answers.inc,
        )
        await send({"type": "websocket.accept", "subprotocol": SUBPROTOCOL, "headers": []})
        older = self._tunnels.get(device)  # from here to its replacement nothing waits: there is never a gap
        before = self._vanished.pop(device, None) if older is None else older.live
        if before is not None:
            tunnel.live.inherit(before)
        if older is not None:
            self._note_contest(older, tunnel, scope, now)
            older.close(REPLACED, "a newer tunnel of this device replaced this one", replaced=True)
        self._tunnels[device] = tunnel
        self._metrics.tunnels.inc()
        if older is not None:
            self._heard(tunnel, older.status)  # until its own first status: the models did not go away
        log.info("tunnel open", device=device, tenant=tenant, peer=scope.get("client"))
        self._close_revoked(tunnel)  # the registry may have changed while the tunnel was being accepted
        await tunnel.run(receive)
        return None

    async def watch(self) -> None:
        """Look for silent devices until cancelled."""
        loop = asyncio.get_running_loop()
        last = awake = loop.time()
        while True:
            await asyncio.sleep(_TICK)
            now = loop.time()
            late, last = now - last > 2 * _TICK, now
            if late:
                awake = now  # this process slept, not the devices: what they said meanwhile takes its time to be read
            for tunnel in self:
                silent = now - max(tunnel.live.last_heard, awake)
                if silent > CLOSED_AFTER:
                    tunnel.close(SILENT, f"nothing was heard for {silent:.1f} s")
                elif silent > SUSPECT_AFTER and tunnel.live.suspect_until <= now:
                    self._metrics.suspects.inc()
                    log.warning("a device fell silent", device=tunnel.live.device, seconds=round(silent, 2))
                    tunnel.live.suspect(now)

    def close_all(self, reason: str) -> None:
        """Close every tunnel; devices connect again elsewhere or later."""
        for tunnel in self:
            tunnel.close(1012, reason)

    async def _admit(self, scope: Scope) -> tuple[str, str]:
        if SUBPROTOCOL not in scope.get("subprotocols", ()):
            raise InvalidError(f"a tunnel speaks the subprotocol {SUBPROTOCOL}", "bad_subprotocol")
        header = next((value for name, value in scope["headers"] if name == b"authorization"), b"").decode("latin-1")
        scheme, _, text = header.partition(" ")
        if scheme.lower() != "bearer":
            raise UnauthenticatedError("send `Authorization: Bearer` and a tunnel credential", "no_credential")
        text = text.strip()
        if not self._view.ready or self._view.device(claimed_device(text)) is None:
            await self._view.looked_again()  # the device may have been enrolled this moment
        device, tenant = admit(text, self._view.device, time.time())
        if len(self._tunnels) >= self._max_tunnels and device not in self._tunnels:
            raise UnavailableError(
                f"this gateway has the {self._max_tunnels} tunnels that it may have: start another one, or raise the "
                "limit of open files under which it runs (ulimit -n)",
                "too_many_tunnels",
            )
        return device, tenant

    def _heard(self, tunnel: Tunnel, status: Status) -> None:
        if not tunnel.closed:
            tunnel.status = status
            self._view.standings.apply(tunnel.live, status)

    def _note_contest(self, older: Tunnel, newer: Tunnel, scope: Scope, now: float) -> None:
        """Tell when two agents take the tunnel from each other, as they do when a device's disk was copied."""
        if now - older.live.last_heard < SUSPECT_AFTER:
            newer.contested = older.contested + 1
        if newer.contested == CONTESTED:
            log.warning(
                "two agents seem to use the identity of one device: was its disk copied? Enrol one of them anew, under "
                "an empty data directory",
                device=newer.live.device,
                peer=scope.get("client"),
            )

    def _closed(self, tunnel: Tunnel) -> None:
        live = tunnel.live
        self._view.standings.remove(live)
        if live.outstanding and tunnel.lost:
            live.suspect(asyncio.get_running_loop().time())
        if live.troubles and not tunnel.replaced:
            self._vanished[live.device] = live
            if len(self._vanished) > MAX_VANISHED:
                self._vanished.popitem(last=False)
        if self._tunnels.get(tunnel.live.device) is tunnel:
            del self._tunnels[tunnel.live.device]
            self._metrics.tunnels.dec()
        log.info("tunnel closed", device=tunnel.live.device, reason=tunnel.close_reason)

    def _close_all_revoked(self) -> None:
        for tunnel in self:
            self._close_revoked(tunnel)

    def _close_revoked(self, tunnel: Tunnel) -> None:
        registered = self._view.device(tunnel.live.device)
        if registered is None or registered.tenant != tunnel.live.tenant:
            tunnel.close(REVOKED, "the registry knows this device no more: enrol it again")
        elif registered.revoked:
            tunnel.close(REVOKED, "the device was revoked: enrol it again")


async def refuse(send: Send, error: ControllerError) -> None:
    """Refuse a tunnel that was not accepted yet, with the status and the words of ``error``."""
    body = msgspec.json.encode({"error": str(error), "code": error.code})
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "websocket.http.response.start", "status": error.status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body})
