"""One request through the tunnels: asks the decisions, does what they say, tries the next device.

Invariant: a request is with at most one device at a time; whatever happens, each stream that was opened is dropped and
the room of its answer returned. Does not authenticate, does not speak HTTP and does not decide (`choose.py`,
`attempt.py`).
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

import structlog
from starlette.types import Receive

from controller.routing.attempt import MIN_PATIENCE, GiveUp, Outcome, Tried, next_attempt, outcome_of
from controller.routing.choose import Policy, Request, rank
from controller.routing.fleet_view import FleetView
from controller.routing.hub import Hub
from controller.routing.metrics import Metrics
from controller.routing.request import GoneError
from controller.routing.tunnels import Stream
from wire.tunnel import RequestHead

WATCH_AFTER = 0.05  # seconds: requests that are answered sooner need nobody who looks whether the client is there
_SUSPICIOUS = frozenset({Outcome.TIMEOUT, Outcome.BROKEN, Outcome.UNAVAILABLE})

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Order:
    """What a client wants. ``deadline``: loop time."""

    tenant: str
    model: str
    version: str | None
    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    deadline: float


@dataclass(frozen=True, slots=True)
class Delivered:
    """An answer that came. ``stream.release`` is to be called when its body was sent on; ``routed``: seconds between
    the order and the moment when the device that answered was asked."""

    stream: Stream
    device: str
    attempts: int
    routed: float


class ClientWatch:
    """Notices that the client of one request went away, and settles the stream that works for it."""

    def __init__(self, receive: Receive) -> None:
        self.gone = False
        self.stream: Stream | None = None
        self._receive = receive
        self._task: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(WATCH_AFTER, self._start)

    def stop(self) -> None:
        """Look no longer."""
        self._timer.cancel()
        if self._task is not None:
            self._task.cancel()

    def _start(self) -> None:
        self._task = self._loop.create_task(self._wait())

    async def _wait(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        if self.stream is not None:
            self.stream.end(Outcome.LOST, "the client went away")


class Forwarder:
    """Sends orders to the devices of ``hub`` that ``view`` knows."""

    def __init__(self, view: FleetView, hub: Hub, metrics: Metrics, rng: random.Random) -> None:
        self._view = view
        self._hub = hub
        self._metrics = metrics
        self._rng = rng
        self._policy = Policy()

    async def deliver(self, order: Order, watch: ClientWatch) -> Delivered | GiveUp:
        """Return the answer of the first device that gives one, or why there is none. Raises GoneError."""
        now = begun = asyncio.get_running_loop().time()
        request = Request(tenant=order.tenant, model=order.model, version=order.version, now=now)
        ranked = rank(request, self._view, self._policy, self._rng)
        tried: list[Tried] = []
        attempts = 0
        replaced = False
        while True:
            step = next_attempt(tried, ranked, now, order.deadline)
            if isinstance(step, GiveUp):
                return step
            attempts += 1
            asked = now
            outcome, stream = await self._ask(step.device, step.timeout, order, watch)
            now = asyncio.get_running_loop().time()
            self._metrics.attempt(outcome.value)
            if watch.gone:
                if stream is not None:
                    stream.release()
                raise GoneError("the client went away")
            if outcome is Outcome.ANSWERED:
                assert stream is not None
                self._view.standings.record(order.tenant, order.model, now - asked)
                return Delivered(stream, step.device, attempts, asked - begun)
            if stream is not None:
                stream.release()
                self._judge(outcome, stream, now, now - asked)
            if outcome is Outcome.LOST and stream is not None and stream.tunnel.replaced and not replaced:
                replaced = True  # the same device, through its newer tunnel: it is there, only its connection moved
                continue
            tried.append(Tried(step.device, outcome))

    async def _ask(
        self, device: str, seconds: float, order: Order, watch: ClientWatch
    ) -> tuple[Outcome, Stream | None]:
        tunnel = self._hub.get(device)
        if tunnel is None:
            return Outcome.LOST, None
        head = RequestHead(
            method=order.method,
            path=order.path,
            headers=order.headers,
            deadline_ms=max(1, int(seconds * 1000)),
            body_bytes=len(order.body),
        )
        stream = tunnel.open(head, order.body)
        if stream is None:
            return Outcome.SATURATED, None
        timer = asyncio.get_running_loop().call_later(seconds, stream.end, Outcome.TIMEOUT)
        watch.stream = stream
        try:
            outcome = await stream.done
        except asyncio.CancelledError:
            stream.release()
            raise
        finally:
            watch.stream = None
            timer.cancel()
            tunnel.drop(stream)
        if outcome is Outcome.ANSWERED:
            assert stream.head is not None
            outcome = outcome_of(stream.head.status)
            if outcome is Outcome.ANSWERED:
                tunnel.live.answered()
        return outcome, stream

    def _judge(self, outcome: Outcome, stream: Stream, now: float, waited: float) -> None:
        live = stream.tunnel.live
        if outcome not in _SUSPICIOUS or (outcome is Outcome.TIMEOUT and waited < MIN_PATIENCE):
            return  # a client that leaves no time says nothing about the device
        if stream.head is not None and stream.head.status == 504:
            return  # the device kept the deadline that it was given
        if live.suspect_until <= now:
            self._metrics.suspects.inc()
            log.warning("a device is suspect", device=live.device, outcome=outcome.value, detail=stream.detail)
        live.suspect(now)
