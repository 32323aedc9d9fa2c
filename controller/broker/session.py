"""The controller's connection to the broker: bytes on topics to wire messages and back.

Invariant: a handler sees only messages that decode, on the topic that belongs to a device the registry knows (wire
3.4); all others are counted and dropped. The session is persistent and re-made for ever. Does not store or decide
anything: handlers do.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiomqtt
import structlog

from controller.broker.inbox import Inbox
from controller.errors import InvalidError, UnavailableError
from wire.codec import Message, decode, encode
from wire.errors import WireError
from wire.topics import Channel, Direction, parse, shard_of, subscription, topic_for

FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0
KEEPALIVE: Final = 20  # seconds
TIMEOUT: Final = 10.0  # for connecting, subscribing and each acknowledged publish
_MAX_UNREAD: Final = 20_000  # messages between the socket and the inbox, which is emptied at once

Handler = Callable[[str, Any], Awaitable[None]]
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the broker is, and with which certificate the controller comes. ``root``: whom it believes."""

    host: str
    port: int
    name: str  # the common name in ``certificate``, also the client id
    root: Path
    certificate: Path
    key: Path


class Broker:
    """One connection, kept up by ``run``.

    endpoint: asked for before each connection. knows: whether a device is enrolled and not revoked. handlers: by
    message type, each ``async (device, message)``; a type without one is counted and dropped. on_connected: awaited
    after each (re)connect beside the reading, so that desired state can be published again.
    counts: "handled", and why others were dropped: "malformed", "too_large", "wrong_shard", "unknown_device",
    "no_handler"; those of a full queue and of failing handlers stand in ``inbox.counts``.
    """

    def __init__(
        self,
        endpoint: Callable[[], Endpoint],
        knows: Callable[[str], bool],
        handlers: Mapping[type[Message], Handler],
        on_connected: Callable[[], Awaitable[None]],
    ) -> None:
        self._endpoint = endpoint
        self._knows = knows
        self._handlers = handlers
        self._on_connected = on_connected
        self._client: aiomqtt.Client | None = None
        self._connected = asyncio.Event()
        self.inbox = Inbox(self._handle)
        self.counts: Counter[str] = Counter()

    @property
    def connected(self) -> bool:
        """Whether messages can be sent now."""
        return self._connected.is_set()

    async def wait_connected(self) -> None:
        """Return as soon as the connection stands."""
        await self._connected.wait()

    async def run(self) -> None:
        """Connect, read, and connect again when the connection is lost, until cancelled."""
        pause = FIRST_PAUSE
        try:
            while True:
                try:
                    await self._one_connection()
                except (aiomqtt.MqttError, OSError, UnavailableError) as error:
                    if self._connected.is_set():
                        pause = FIRST_PAUSE
                    log.warning("no connection to the broker", error=str(error), again_in_s=pause)
                finally:
                    self._connected.clear()
                    self._client = None
                await asyncio.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE)
        finally:
            await self.inbox.close()

    async def publish(self, channel: Channel, device: str, payload: bytes | Message) -> None:
        """Send ``payload`` to ``device`` and wait until the broker has it (QoS 1).

        Raises UnavailableError when the broker is away or does not answer, InvalidError for what must not be sent.
        """
        data = encode(payload) if isinstance(payload, Message) else payload
        if channel.direction is not Direction.DOWN or len(data) > channel.limit:
            raise InvalidError(f"{len(data)} bytes cannot be sent on {channel.name}", "bad_message")
        client = self._client
        if client is None or not self._connected.is_set():
            raise UnavailableError("the broker is away", "broker_away")
        try:
            await client.publish(topic_for(channel, device), data, qos=channel.qos, retain=channel.retained)
        except aiomqtt.MqttError as error:
            raise UnavailableError(f"the broker did not take a message: {error}", "broker_away") from error

    async def _one_connection(self) -> None:
        endpoint = self._endpoint()
        client = aiomqtt.Client(
            endpoint.host,
            endpoint.port,
            identifier=endpoint.name,
            clean_session=False,
            keepalive=KEEPALIVE,
            timeout=TIMEOUT,
            tls_context=_tls(endpoint),
            max_queued_incoming_messages=_MAX_UNREAD,
            logger=_mqtt_log(),
        )
        async with client:
            granted = await client.subscribe(subscription(Direction.UP), qos=1)
            if any((code if isinstance(code, int) else code.value) >= 128 for code in granted):
                raise UnavailableError("the broker refuses the controller's subscription", "broker_refuses")
            self._client = client
            self._connected.set()
            log.info("connected to the broker", host=endpoint.host, port=endpoint.port)
            greeting = asyncio.create_task(self._greet(), name="after broker connect")
            try:
                async for message in client.messages:
                    self._sort(str(message.topic), message.payload)
            finally:
                greeting.cancel()
                await asyncio.gather(greeting, return_exceptions=True)

    async def _greet(self) -> None:
        try:
            await self._on_connected()
        except Exception:
            log.exception("what follows a connection to the broker failed")

    def _sort(self, topic: str, payload: object) -> None:
        try:
            address = parse(topic)
        except WireError:
            self.counts["malformed"] += 1
            return
        channel = address.channel
        if address.shard != shard_of(address.device):
            self.counts["wrong_shard"] += 1
        elif not isinstance(payload, bytes) or channel.direction is not Direction.UP:
            self.counts["malformed"] += 1
        elif len(payload) > channel.limit:
            self.counts["too_large"] += 1
        else:
            self.inbox.put(address.device, channel, payload)

    async def _handle(self, device: str, channel: Channel, payload: bytes) -> None:
        if not await asyncio.to_thread(self._knows, device):
            self.counts["unknown_device"] += 1
            return
        assert channel.message is not None, "every channel upwards carries a message"
        try:
            message = decode(channel.message, payload, channel.limit)
        except WireError as error:
            self.counts["malformed"] += 1
            log.debug("a message does not decode", device=device, channel=channel.name, error=str(error))
            return
        handler = self._handlers.get(channel.message)
        if handler is None:
            self.counts["no_handler"] += 1
            return
        await handler(device, message)
        self.counts["handled"] += 1


def _tls(endpoint: Endpoint) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=str(endpoint.root))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(str(endpoint.certificate), str(endpoint.key))
    return context


def _mqtt_log() -> logging.Logger:
    logger = logging.getLogger("muster.mqtt")
    logger.setLevel(logging.CRITICAL)  # the library logs harmless key errors; what matters arrives as an exception
    return logger
