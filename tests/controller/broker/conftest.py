"""A real mosquitto with real certificates, the controller's session beside it, and clients of any kind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiomqtt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from controller.broker.configuration import Listener
from controller.broker.mosquitto import Mosquitto, find_program
from controller.broker.operate import Operator
from controller.broker.session import Broker, Endpoint
from controller.devices.authority import CONTROLLER_NAME, DEVICES, Authority
from controller.devices.revocation import BACKDATED, HOLDS
from wire.messages import ExecutionReport, Facts, Health, Heartbeat, Reply, Reported, State

WAIT = 10.0


@dataclass
class Identity:
    """Certificate and key of one device on disk."""

    name: str
    certificate: Path
    key: Path


@dataclass
class House:
    """The running broker, the controller's session and what it heard.

    taps: topic and payload of everything that the broker gave to the controller, decoded or not.
    """

    authority: Authority
    mosquitto: Mosquitto
    operator: Operator
    folder: Path
    known: set[str] = field(default_factory=set)
    serials: dict[str, str] = field(default_factory=dict)
    heard: list[tuple[str, Any]] = field(default_factory=list)
    taps: list[tuple[str, bytes]] = field(default_factory=list)
    connects: int = 0
    broker: Broker | None = None

    def identity(self, authority: Authority | None = None, device: str | None = None) -> Identity:
        issuer = authority or self.authority
        name = device or issuer.new_device_name()
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = issuer.issue_device(name, "default", key.public_key(), time.time())
        if authority is None:
            self.known.add(name)
            self.serials[name] = certificate.serial
        return self.written(name, certificate.pem + issuer.chain_pem(DEVICES), key, str(id(issuer)))

    def written(self, name: str, chain: str, key: ec.EllipticCurvePrivateKey, stem: str = "x") -> Identity:
        plain = f"{len(list(self.folder.iterdir()))}.{stem}"
        files = Identity(name, self.folder / f"{plain}.pem", self.folder / f"{plain}.key")
        files.certificate.write_text(chain)
        files.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return files

    def context(self, identity: Identity | None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.authority.root_file))
        if identity is not None:
            context.load_cert_chain(identity.certificate, identity.key)
        return context

    def client(self, identity: Identity | None, identifier: str | None = None, **more: Any) -> aiomqtt.Client:
        settings = {"clean_session": False, "timeout": 3} | more
        return aiomqtt.Client(
            "127.0.0.1",
            settings.pop("port", self.mosquitto.port),
            identifier=identifier or (identity.name if identity else "nobody"),
            tls_context=self.context(identity),
            **settings,
        )

    def listener(self, port: int = 0, certificate: Path | None = None) -> Listener:
        return listener(self.authority, port, certificate)

    def revoke(self, *names: str) -> None:
        """Put a device's certificate on the list, as the controller does."""
        held = self.authority.held_list()
        assert held is not None
        serials = held.serials | {self.serials[name] for name in names}
        self.authority.write_list(serials, held.begins + 1, time.time() + HOLDS)
        self.known -= set(names)

    def answer(self, identity: Identity | None, minimum: ssl.TLSVersion | None = None, port: int = 0) -> bytes:
        """Return the broker's first bytes after a CONNECT over TLS; nothing when it ends the connection."""
        context = self.context(identity)
        if minimum is not None:
            context.minimum_version = minimum
        name = (identity.name if identity else "nobody").encode()
        body = b"\x00\x04MQTT\x04\x02\x00\x3c" + len(name).to_bytes(2, "big") + name
        with (
            contextlib.suppress(ssl.SSLError, ConnectionError),
            socket.create_connection(("127.0.0.1", port or self.mosquitto.port), WAIT) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as secure,
        ):
            secure.sendall(bytes([0x10, len(body)]) + body)
            return secure.recv(4)
        return b""

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(WAIT):
            while not condition():
                await asyncio.sleep(0.01)


def listener(authority: Authority, port: int = 0, certificate: Path | None = None) -> Listener:
    server = authority.server_files("mqtt", ["127.0.0.1"], time.time())
    return Listener(
        "127.0.0.1",
        port,
        certificate or server.certificate,
        server.key,
        authority.client_roots,
        authority.list_file,
        authority.operating_root_file,
    )


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    now = time.time()
    authority = Authority(tmp_path / "ca", now)
    authority.write_list((), now - BACKDATED, now + HOLDS)
    mosquitto = Mosquitto(
        find_program(os.environ, tmp_path / "data"), tmp_path / "broker", listener(authority), [CONTROLLER_NAME]
    )
    await mosquitto.start()
    mine = authority.operator_files(now)
    operator = Operator(tmp_path / "broker", authority.root_file, mine.certificate, mine.key)
    house = House(authority, mosquitto, operator, tmp_path)
    own = authority.controller_files(now)

    async def hear(device: str, message: Any) -> None:
        house.heard.append((device, message))

    async def connected() -> None:
        house.connects += 1

    house.broker = Broker(
        lambda: Endpoint("127.0.0.1", mosquitto.port, CONTROLLER_NAME, authority.root_file, own.certificate, own.key),
        lambda device: device in house.known,
        dict.fromkeys((State, Heartbeat, Facts, Reported, ExecutionReport, Health, Reply), hear),
        connected,
    )
    sort = house.broker._sort

    def tap(topic: str, payload: Any) -> None:
        house.taps.append((topic, payload))
        sort(topic, payload)

    house.broker._sort = tap  # type: ignore[method-assign]
    task = asyncio.create_task(house.broker.run())
    try:
        await asyncio.wait_for(house.broker.wait_connected(), WAIT)
        yield house
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await mosquitto.stop()
