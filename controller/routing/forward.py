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

from controller.routing.attempt import MIN_PATIENCE, GiveUp, Outcome, Tried, Try, next_attempt, outcome_of
from controller.routing.choose import Policy, Request, rank
from controller.routing.fleet_view import FleetView
from controller.routing.hub import Hub
from controller.routing.metrics import Metrics
from controller.routing.request import GoneError
from controller.routing.streams import Stream
from controller.routing.tunnels import Tunnel
from controller.routing.waiting import ClientWatch, Patience
from wire.tunnel import CHUNK, RequestHead

_SUSPICIOUS = frozenset({Outcome.TIMEOUT, Outcome.BROKEN, Outcome.UNAVAILABLE, Outcome.FAILED})

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
    """An answer that came. ``stream.release`` is to be called when its body was sent on; ``attempts``: how many devices
    were asked; ``routed``: seconds between the order and the moment when the device that answered was asked."""

    stream: Stream
    attempts: int
    routed: float


class Forwarder:
    """Sends orders to the devices of ``hub`` that ``view`` knows."""

    def __init__(self, view: FleetView, hub: Hub, metrics: Metrics, rng: random.Random) -> None:
        self._view = view
        self._hub = hub
        self._metrics = metrics
        self._rng = rng
        self._policy = Policy()
        self._time = asyncio.get_running_loop().time

    async def deliver(self, order: Order, watch: ClientWatch) -> Delivered | GiveUp:
        """Return the answer of the first device that gives one, or why there is none. Raises GoneError."""
        failures: list[Stream] = []  # answers that a device failed; the last one is handed on when nobody does better
        kept: Stream | None = None
        try:
            result = await self._try_on(order, watch, failures)
            kept = result.stream if isinstance(result, Delivered) else None
            return result
        finally:
            for stream in failures:
                if stream is not kept:
                    stream.release()

    async def _try_on(self, order: Order, watch: ClientWatch, failures: list[Stream]) -> Delivered | GiveUp:
        now = begun = asked = self._time()
        request = Request(tenant=order.tenant, model=order.model, version=order.version, now=now)
        ranked = rank(request, self._view, self._policy, self._rng)
        tried: list[Tried] = []
        attempts = 0
        replaced = False
        while True:
            step = next_attempt(tried, ranked, now, order.deadline)
            if isinstance(step, GiveUp):
                return Delivered(failures[-1], attempts, asked - begun) if failures else step
            tunnel = self._hub.get(step.device)
            if tunnel is None:
                tried.append(Tried(step.device, Outcome.AWAY))
                continue
            attempts, asked = attempts + 1, now
            outcome, stream = await self._ask(tunnel, step, order, watch)
            now = self._time()
            self._metrics.attempt(outcome.value)
            if watch.gone:
                if stream is not None:
                    stream.release()
                raise GoneError("the client went away")
            if outcome is Outcome.ANSWERED:
                assert stream is not None
                self._praise(order, stream)
                for failure in failures:  # the request was not at fault
                    self._judge(Outcome.FAILED, failure, now, 0.0)
                return Delivered(stream, attempts, asked - begun)
            if outcome is Outcome.FAILED:
                assert stream is not None
                failures.append(stream)
            elif stream is not None:
                stream.release()
                self._judge(outcome, stream, now, now - asked)
            if outcome is Outcome.LOST and tunnel.replaced and not replaced:
                replaced = True  # the same device, through its newer tunnel: it is there, only its connection moved
                continue
            tried.append(Tried(step.device, outcome))

    async def _ask(self, tunnel: Tunnel, step: Try, order: Order, watch: ClientWatch) -> tuple[Outcome, Stream | None]:
        # the device counts from the head on: the time in which a large body arrives must not be taken from it
        seconds = step.timeout if len(order.body) <= CHUNK else step.limit
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
        patience = Patience(stream, step)
        watch.stream = stream
        try:
            outcome = await stream.done
        except asyncio.CancelledError:
            stream.release()
            raise
        finally:
            watch.stream = None
            patience.stop()
            tunnel.drop(stream)
        if outcome is Outcome.ANSWERED:
            assert stream.head is not None
            outcome = outcome_of(stream.head.status)
        return outcome, stream

    def _praise(self, order: Order, stream: Stream) -> None:
        """The device answered in time; how fast counts only where it did the model's work."""
        stream.tunnel.live.answered()
        assert stream.head is not None
        if order.method == "POST" and stream.head.status == 200 and stream.waited is not None:
            self._view.standings.record(order.tenant, order.model, stream.waited)

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
