"""The controller's connection to the broker: bytes on topics to wire messages and back.

Invariant: a handler sees only messages that decode, on the topic that belongs to a device the registry knows (wire
3.4); all others are counted and dropped. The session is persistent and re-made for ever. Does not store or decide
anything: handlers do.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import aiomqtt
import structlog

from controller.broker.floods import Floods
from controller.broker.inbox import Inbox
from controller.errors import InvalidError, UnavailableError
from wire.codec import Message, decode, encode
from wire.errors import WireError
from wire.topics import DEVICE_ID, Channel, Direction, parse, shard_of, subscription, topic_for

FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0
KEEPALIVE: Final = 20  # seconds
TIMEOUT: Final = 10.0  # for connecting, subscribing and each acknowledged publish

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
    after each (re)connect beside the reading, so that desired state can be published again. on_flood: called with a
    device so many of whose messages were dropped that the broker drops those of others as well.
    counts: "handled", "floods" (calls of on_flood), and why others were dropped: "malformed", "too_large",
    "wrong_shard", "unknown_device", "no_handler"; those of a full queue and of failing handlers stand in
    ``inbox.counts``.
    """

    def __init__(
        self,
        endpoint: Callable[[], Endpoint],
        knows: Callable[[str], bool],
        handlers: Mapping[type[Message], Handler],
        on_connected: Callable[[], Awaitable[None]],
        on_flood: Callable[[str], None] = lambda device: None,
    ) -> None:
        self._endpoint = endpoint
        self._knows = knows
        self._handlers = handlers
        self._on_connected = on_connected
        self._on_flood = on_flood
        self._floods = Floods()
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
            queue_type=cast("type[asyncio.Queue[aiomqtt.Message]]", lambda maxsize: _Straight(self._sort)),
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
                async for _ in client.messages:  # none comes this way: this waits for the end of the connection
                    pass
            finally:
                greeting.cancel()
                await asyncio.gather(greeting, return_exceptions=True)

    async def _greet(self) -> None:
        try:
            await self._on_connected()
        except Exception:
            log.exception("what follows a connection to the broker failed")

    def _sort(self, topic: str, payload: object) -> None:
        why, device = self._take(topic, payload)
        if why:
            self.counts[why] += 1
        if device and self._floods.dropped(device, time.monotonic()):
            log.error("a device sends more than it may, without end", device=device)
            self.counts["floods"] += 1
            self._on_flood(device)

    def _take(self, topic: str, payload: object) -> tuple[str, str]:
        """Queue a message, or return why not; and the device that sent more than is taken."""
        try:
            address = parse(topic)
        except WireError:
            parts = topic.split("/", 4)  # the broker lets a device write below its own name only (wire 3.4)
            return "malformed", parts[3] if len(parts) == 5 and DEVICE_ID.match(parts[3]) else ""
        channel, device = address.channel, address.device
        if address.shard != shard_of(device):
            return "wrong_shard", device
        if not isinstance(payload, bytes) or channel.direction is not Direction.UP:
            return "malformed", device
        if len(payload) > channel.limit:
            return "too_large", device
        return "", "" if self.inbox.put(device, channel, payload) else device

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


class _Straight(asyncio.Queue[aiomqtt.Message]):
    """Hands each message on the moment it was read.

    A queue for all devices between the socket and the inbox would be filled by one that sends without end, and then the
    messages of all others were lost.
    """

    def __init__(self, sort: Callable[[str, object], None]) -> None:
        super().__init__()
        self._sort = sort

    def put_nowait(self, item: aiomqtt.Message) -> None:
        """Sort ``item``; keep nothing."""
        try:
            self._sort(str(item.topic), item.payload)
        except Exception:  # one message must not end the connection
            log.exception("a message could not be sorted", topic=str(item.topic)[:200])


def _tls(endpoint: Endpoint) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=str(endpoint.root))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(str(endpoint.certificate), str(endpoint.key))
    return context


def _mqtt_log() -> logging.Logger:
    logger = logging.getLogger("muster.mqtt")
    logger.setLevel(logging.CRITICAL)  # the library logs harmless key errors; what matters arrives as an exception
    return logger
