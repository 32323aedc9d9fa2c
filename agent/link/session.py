"""The device's line to the controller: MQTT over mutual TLS, kept up for ever (wire 3, 4.2 to 4.6).

Invariant: after each connect the controller hears that the device is there, then the newest retained values, then
everything in the outbox that it has not acknowledged, in order. Nothing received here changes anything by itself:
payloads are handed to handlers, which verify them. A lost link never ends the agent. Does not decide what is reported.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import random
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import structlog
from aiomqtt import Client, MqttError, ProtocolVersion, Will
from aiomqtt import Message as Received

from agent.errors import AgentError, DeviceError
from agent.link import backoff
from agent.link.outbox import Outbox
from wire import codec, topics
from wire.codec import Message
from wire.errors import WireError
from wire.messages import Ack, Heartbeat, State
from wire.topics import Channel

KEEPALIVE: Final = 15  # seconds
HEARTBEAT_EVERY: Final = 10.0
RESEND_AFTER: Final = 10.0  # wire 4.2; doubled while the controller stays silent, up to RESEND_AT_MOST
RESEND_AT_MOST: Final = 60.0
WINDOW: Final = 64  # messages on their way without the controller's acknowledgement
_BATCH: Final = 8  # messages on their way without the broker's acknowledgement
_STEADY: Final = 10.0  # a connection that lasted so many seconds ends a row of failures
_QUEUE: Final = 1000
_FAREWELL: Final = 1.0
_GLANCE: Final = 0.05

_BROKEN: Final = (MqttError, OSError, DeviceError, RuntimeError)  # RuntimeError: the library lost count of its packets

Handler = Callable[[bytes], Awaitable[None] | None]

_log = structlog.get_logger()
_quiet = logging.getLogger("muster.mqtt")
_quiet.setLevel(logging.CRITICAL)  # the library reports each lost connection several times; this module once


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where the broker is, and who this device is. The files are PEM; the certificate's holds its chain too."""

    device: str
    host: str
    port: int
    ca_file: Path
    certificate_file: Path
    key_file: Path


class Certificates(Protocol):
    """Which certificate to connect with, and how that went (identity/certificates.py)."""

    def for_connection(self) -> Path:
        """Return the certificate with which to connect next."""

    def worked(self, path: Path) -> None:
        """The broker took the certificate in ``path``."""

    def failed(self, path: Path) -> None:
        """No connection came about with the certificate in ``path``."""


class Session:
    """One device's link. ``handlers`` by channel get the bytes that the controller sent; they may be async.

    connected: set while the link is up. boot: names this start of the machine (wire 4.3).
    """

    def __init__(
        self,
        endpoint: Endpoint,
        outbox: Outbox,
        handlers: Mapping[Channel, Handler],
        *,
        boot: str,
        agent_version: str,
        rng: backoff.Rng | None = None,
        limits: backoff.Limits = backoff.DEFAULT,
        clock: Callable[[], float] = time.time,
        heartbeat_every: float = HEARTBEAT_EVERY,
        resend_after: float = RESEND_AFTER,
        on_change: Callable[[bool, str], None] = lambda connected, reason: None,
        certificates: Certificates | None = None,
    ) -> None:
        self.connected = asyncio.Event()
        self._endpoint = endpoint
        self._outbox = outbox
        self._handlers = handlers
        self._boot = boot
        self._agent_version = agent_version
        self._rng = rng or random.Random()
        self._limits = limits
        self._clock = clock
        self._heartbeat_every = heartbeat_every
        self._resend_after = resend_after
        self._on_change = on_change
        self._retained: dict[Channel, bytes] = {}
        self._unsent: set[Channel] = set()
        self._wake = asyncio.Event()
        self._number = 0
        self._number_used = True
        self._progress = 0  # counts acknowledgements that were news
        self._told = ""
        self._certificates = certificates
        self._again = asyncio.Event()

    def reconnect(self) -> None:
        """Connect once more, in an orderly way and at once: with a newer certificate, say. Nothing is lost by it."""
        self._again.set()

    def retain(self, channel: Channel, message: Message) -> None:
        """Publish ``message`` as the newest value of ``channel``: now, and again after each reconnect."""
        payload = codec.encode(message)
        if len(payload) > channel.limit:
            _log.error("value is too large to be sent", channel=channel.name, bytes=len(payload), limit=channel.limit)
            return
        self._retained[channel] = payload
        self._unsent.add(channel)
        self._wake.set()

    async def run(self) -> None:
        """Keep the link up until cancelled; then say that the device goes, and close it."""
        loop = asyncio.get_running_loop()

        def wake() -> None:
            loop.call_soon_threadsafe(self._wake.set)

        self._outbox.on_put = wake
        attempt = 0
        try:
            while True:
                if self._number_used:
                    self._number, self._number_used = self._next_number(), False
                began = loop.time()
                reason = await self._connect_once()
                _end_if_cancelled()
                was_up = self.connected.is_set()
                self.connected.clear()
                if self._again.is_set() and was_up:
                    self._again.clear()
                    attempt = 0
                    continue
                self._again.clear()
                self._tell(up=False, reason=reason)
                attempt = 0 if was_up and loop.time() - began > _STEADY else attempt + 1
                await asyncio.sleep(backoff.delay(attempt - 1, self._rng, self._limits))
        finally:
            self.connected.clear()
            self._outbox.on_put = lambda: None

    async def _connect_once(self) -> str:
        """Connect, and stay as long as the connection does. Returns why it ended or did not come about."""
        reason = "the broker closed the connection"
        chosen = self._endpoint.certificate_file if self._certificates is None else self._certificates.for_connection()
        try:
            async with self._client(chosen) as client:
                self._number_used = True
                _end_if_cancelled()
                try:
                    await self._converse(client, chosen)
                except asyncio.CancelledError:
                    await self._say_goodbye(client)
                    raise
                except _BROKEN:
                    await _settle(client)
                    raise
        except _BROKEN as error:
            reason = str(error) or reason
        if self._certificates is not None and not self.connected.is_set():
            self._certificates.failed(chosen)
        return reason

    async def _converse(self, client: Client, certificate: Path) -> None:
        """Listen and talk until one of both fails, or ``reconnect`` is called. Raises what it failed with."""
        tasks = [asyncio.create_task(work(client)) for work in (self._receive, self._beat)]
        tasks.append(asyncio.create_task(self._talk(client, certificate)))
        tasks.append(asyncio.create_task(self._wait_for_again()))
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in done:
            task.result()

    async def _wait_for_again(self) -> None:
        await self.connected.wait()
        await self._again.wait()

    async def _talk(self, client: Client, certificate: Path) -> None:
        await self._publish(client, topics.STATE, self._state(online=True))
        await self._subscribe(client)
        if self._certificates is not None:
            await asyncio.to_thread(self._certificates.worked, certificate)
        self.connected.set()
        self._tell(up=True, reason="")
        self._unsent.update(self._retained)
        await self._send(client)

    def _client(self, certificate: Path) -> Client:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_verify_locations(cafile=self._endpoint.ca_file)
            context.load_cert_chain(certificate, self._endpoint.key_file)
        except (OSError, ValueError) as error:
            raise DeviceError(
                f"the device's certificate or key cannot be used: {error}; enrol it again", "bad_identity"
            ) from error
        will = Will(self._topic(topics.STATE), codec.encode(self._state(online=False)), qos=1, retain=True)
        return Client(
            self._endpoint.host,
            self._endpoint.port,
            identifier=self._endpoint.device,
            protocol=ProtocolVersion.V311,
            clean_session=False,
            keepalive=KEEPALIVE,
            will=will,
            tls_context=context,
            logger=_quiet,
            max_queued_incoming_messages=_QUEUE,
        )

    async def _subscribe(self, client: Client) -> None:
        answer = await client.subscribe(topics.device_subscription(self._endpoint.device), qos=1)
        _end_if_cancelled()
        if any(getattr(code, "is_failure", False) for code in answer):
            raise MqttError("the broker refused the subscription to this device's own topics")

    async def _receive(self, client: Client) -> None:
        async for message in client.messages:
            try:
                await self._handle(message)
            except (AgentError, WireError) as error:
                _log.warning("message ignored", topic=str(message.topic), error=str(error))
            except Exception:  # one bad message, retained at the broker, must not end the agent at every start
                _log.exception("message could not be handled", topic=str(message.topic))

    async def _handle(self, message: Received) -> None:
        payload = message.payload
        address = topics.parse(str(message.topic))
        if address.device != self._endpoint.device or not isinstance(payload, bytes) or not payload:
            return
        if len(payload) > address.channel.limit:
            _log.warning("message ignored: too large", channel=address.channel.name, bytes=len(payload))
            return
        if address.channel is topics.ACK:
            ack = codec.decode(Ack, payload, topics.ACK.limit)
            if self._outbox.acknowledge(ack.stream, ack.sequence):
                self._progress += 1
                self._wake.set()
        handler = self._handlers.get(address.channel)
        if handler is not None:
            result = handler(payload)
            if inspect.isawaitable(result):
                await result

    async def _send(self, client: Client) -> None:
        """Send retained values and the outbox; again from its beginning when the controller stays silent."""
        loop = asyncio.get_running_loop()
        stream, position, anew = self._outbox.stream, 0, False
        progress, since, patience = self._progress, loop.time(), self._resend_after
        while True:
            self._wake.clear()
            while self._unsent:
                channel = self._unsent.pop()
                await client.publish(self._topic(channel), self._retained[channel], qos=channel.qos, retain=True)
                _end_if_cancelled()
            if progress != self._progress:
                progress, since, patience = self._progress, loop.time(), self._resend_after
                if stream != self._outbox.stream:
                    stream, position = self._outbox.stream, 0
            outstanding = self._outbox.sent_and_waiting(position)
            if not outstanding:
                since = loop.time()
            rows = self._outbox.waiting(position, min(WINDOW - outstanding, _BATCH), anew=anew)
            if rows:
                # publish() hands its packet over before it first waits, so the tasks keep the order of the rows
                sending = [client.publish(self._topic(row.channel), row.payload, qos=1) for row in rows]
                await asyncio.gather(*sending)
                position, anew = rows[-1].sequence, False
                continue
            try:
                async with asyncio.timeout_at(since + patience if outstanding else None):
                    await self._wake.wait()
            except TimeoutError:
                patience = min(patience * 2, max(RESEND_AT_MOST, self._resend_after))
                position, anew, since = 0, True, loop.time()

    async def _beat(self, client: Client) -> None:
        while True:
            await asyncio.sleep(self._heartbeat_every)
            await self._publish(client, topics.HEARTBEAT, Heartbeat(at=self._clock(), session=self._number))

    async def _say_goodbye(self, client: Client) -> None:
        # an orderly disconnect takes the last will with it, so what the will says must be said before
        try:
            async with asyncio.timeout(_FAREWELL):
                farewell = codec.encode(self._state(online=False))
                await client.publish(self._topic(topics.STATE), farewell, qos=1, retain=True)
        except (MqttError, TimeoutError) as error:
            _log.debug("could not say goodbye", error=str(error))

    async def _publish(self, client: Client, channel: Channel, message: Message) -> None:
        await client.publish(self._topic(channel), codec.encode(message), qos=channel.qos, retain=channel.retained)
        _end_if_cancelled()

    def _topic(self, channel: Channel) -> str:
        return topics.topic_for(channel, self._endpoint.device)

    def _state(self, *, online: bool) -> State:
        return State(online=online, boot=self._boot, session=self._number, agent_version=self._agent_version)

    def _next_number(self) -> int:
        try:
            return self._outbox.begin_session()
        except DeviceError as error:  # a full disk must not take the link away
            _log.warning("number of the session could not be stored", error=str(error))
            return self._number + 1

    def _tell(self, *, up: bool, reason: str) -> None:
        told = "up" if up else reason
        if told == self._told:
            return
        self._told = told
        if up:
            _log.info("link is up", broker=f"{self._endpoint.host}:{self._endpoint.port}", session=self._number)
        else:
            _log.warning("link is down; trying again", reason=reason, waiting=self._outbox.pending())
        self._on_change(up, reason)


def _end_if_cancelled() -> None:
    """Raise the cancellation that ``asyncio.wait_for`` (Python 3.11) forgets when its work was done at that instant."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def _settle(client: Client) -> None:
    """Take note of how the connection ended: asyncio reports an error that nobody looked at."""
    with contextlib.suppress(MqttError, TimeoutError):
        async with asyncio.timeout(_GLANCE):
            async for _ in client.messages:
                pass
