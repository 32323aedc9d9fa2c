"""What identity costs: `python -m benchmarks.identity [--devices N] [--json FILE]`.

A controller's API over TLS with its database on disk, and the mosquitto it ships with, on this machine; devices are
plain MQTT connections with certificates of their own. Enrolment is the whole request (TLS connection kept open, key and
signing request made before). Revocation is from the click, the DELETE sent, to the moment when the device's socket ends
and to the first connection that is refused; the device asks every 20 ms. Devices, controller and broker share this
machine's cores, so every rate is that of all together.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import resource
import ssl
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Final

import httpx
import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from benchmarks.table import Figure, json_option, show, spread
from controller.app import Control
from controller.broker.configuration import Listener
from controller.broker.mosquitto import Mosquitto, find_program
from controller.devices.authority import CONTROLLER_NAME
from controller.installation import Installation, prepare
from controller.settings import Settings
from controller.tenants.attempts import Attempts
from wire.codec import decode, encode
from wire.enrolment import EnrolAnswer, EnrolRequest, parse_token

PROMISED: Final = 5.0  # seconds from the click until a device is out
CLIENTS: Final = 4
HANDSHAKES: Final = 400
REVOCATIONS: Final = 5
AT_ONCE: Final = 32
LONGEST: Final = 300.0  # seconds for each part


@dataclasses.dataclass
class Device:
    """One device's identity as a TLS context, and its connection."""

    id: str
    context: ssl.SSLContext
    writer: asyncio.StreamWriter | None = None
    reader: asyncio.StreamReader | None = None

    async def connect(self, port: int) -> bool:
        """Connect as MQTT 3.1.1 wants it; return whether the broker took it."""
        name = self.id.encode()
        body = b"\x00\x04MQTT\x04\x02\x02\x58" + len(name).to_bytes(2, "big") + name
        try:
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", port, ssl=self.context)
            self.writer.write(bytes([0x10, len(body)]) + body)
            return await self.reader.readexactly(4) == b"\x20\x02\x00\x00"
        except (OSError, EOFError):
            self.close()
            return False

    def close(self) -> None:
        """End the connection without a farewell."""
        if self.writer is not None:
            self.writer.transport.abort()
        self.reader = self.writer = None


def enrol_all(installation: Installation, folder: Path, number: int) -> tuple[list[Device], float]:
    """Enrol ``number`` devices over ``CLIENTS`` connections; return them and the requests per second."""
    authority = installation.authority
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(number)]
    requests = [
        x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256()) for key in keys
    ]
    headers = {"Authorization": f"Bearer {installation.admin_token}"}
    context = ssl.create_default_context(cafile=str(authority.root_file))
    answers: list[EnrolAnswer | None] = [None] * number
    with httpx.Client(base_url=installation.local_api_url, verify=context, trust_env=False) as api:
        made = api.post("/api/v1/join-tokens", json={"uses": number}, headers=headers).raise_for_status().json()
    token = parse_token(made["token"])

    def work(first: int) -> None:
        with httpx.Client(base_url=installation.local_api_url, verify=context, trust_env=False, timeout=30) as api:
            for place in range(first, number, CLIENTS):
                csr = requests[place].public_bytes(serialization.Encoding.PEM).decode()
                body = encode(EnrolRequest(token=f"{token.id}.{token.secret}", csr_pem=csr))
                answer = api.post("/api/v1/enrolment", content=body).raise_for_status()
                answers[place] = decode(EnrolAnswer, answer.content)

    threads = [threading.Thread(target=work, args=(first,)) for first in range(CLIENTS)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONGEST)
    rate = number / (time.perf_counter() - began)
    devices = []
    for key, answer in zip(keys, answers, strict=True):
        assert answer is not None, "a device was not enrolled"
        certificate, private = folder / "device.pem", folder / "device.key"
        certificate.write_text(answer.certificate_pem + answer.chain_pem)
        private.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        made_context = ssl.create_default_context(cafile=str(authority.root_file))
        made_context.load_cert_chain(certificate, private)
        devices.append(Device(answer.device, made_context))
    return devices, rate


async def connect_all(devices: list[Device], port: int) -> float:
    """Connect all ``devices``, some at once; return connections per second."""
    limit = asyncio.Semaphore(AT_ONCE)

    async def one(device: Device) -> None:
        async with limit:
            assert await device.connect(port), "the broker refused a device"

    began = time.perf_counter()
    await asyncio.gather(*(one(device) for device in devices))
    return len(devices) / (time.perf_counter() - began)


async def revoke(installation: Installation, device: Device, port: int) -> tuple[float, float]:
    """Revoke a connected device; return the seconds from the click until it was cut off, and until it was refused."""
    context = ssl.create_default_context(cafile=str(installation.authority.root_file))
    headers = {"Authorization": f"Bearer {installation.admin_token}"}
    assert device.reader is not None
    reader = device.reader
    async with httpx.AsyncClient(base_url=installation.local_api_url, verify=context, trust_env=False) as api:
        began = time.perf_counter()
        asked = asyncio.create_task(api.delete(f"/api/v1/devices/{device.id}", headers=headers))
        with contextlib.suppress(OSError):
            while await reader.read(4_096):
                pass
        cut = time.perf_counter() - began
        again = Device(device.id, device.context)
        while await again.connect(port):
            again.close()
            await asyncio.sleep(0.02)
        refused = time.perf_counter() - began
        (await asked).raise_for_status()
    device.close()
    return cut, refused


async def handshakes(device: Device, port: int) -> float:
    """Return mutual-TLS connections per second that end with the broker's word that the device is in."""
    one_at_a_time = asyncio.Semaphore(AT_ONCE)

    async def once() -> None:
        async with one_at_a_time:
            another = Device(device.id, device.context)
            await another.connect(port)
            another.close()

    began = time.perf_counter()
    await asyncio.gather(*(once() for _ in range(HANDSHAKES)))
    return HANDSHAKES / (time.perf_counter() - began)


async def measure(folder: Path, number: int) -> list[Figure]:
    """Run everything; return the figures."""
    names = ("api_port", "gateway_port", "console_port", "mqtt_port")
    settings = msgspec.structs.replace(Settings(data=str(folder / "data")), **dict.fromkeys(names, 0))
    installation = prepare(settings, time.time())
    authority = installation.authority
    listener = Listener(
        host="127.0.0.1",
        port=installation.mqtt_port,
        certificate=installation.mqtt_files.certificate,
        key=installation.mqtt_files.key,
        roots=authority.client_roots,
        revoked=authority.list_file,
        operator_root=authority.operating_root_file,
    )
    broker = Mosquitto(
        find_program(os.environ, installation.data), installation.broker_directory, listener, [CONTROLLER_NAME]
    )
    await broker.start()
    port = broker.port
    control = Control(installation)
    control.api.state.fleet = dataclasses.replace(control.api.state.fleet, attempts=Attempts(10**9))
    stop = threading.Event()

    async def run() -> None:
        ended = asyncio.Event()
        task = asyncio.create_task(control.run(ended))
        while not stop.is_set() and not task.done():  # noqa: ASYNC110 - the event is another thread's
            await asyncio.sleep(0.05)
        ended.set()
        await task

    server = threading.Thread(target=asyncio.run, args=(run(),))
    server.start()
    try:
        await answering(installation)
        devices, rate = await asyncio.to_thread(enrol_all, installation, folder, number)
        alone = [devices.pop() for _ in range(REVOCATIONS)]
        single = [await timed(installation, device, port) for device in alone]
        connects = await connect_all(devices, port)
        among = [await revoke(installation, devices.pop(), port) for _ in range(REVOCATIONS)]
        standing = sum(device.reader is not None and not device.reader.at_eof() for device in devices)
        assert standing == len(devices), "revoking one device cut another"
        shaken = await handshakes(devices.pop(), port)
        for device in devices:
            device.close()
    finally:
        stop.set()
        await asyncio.to_thread(server.join, 30)
        await broker.stop()
    return [
        Figure(f"enrolments, {number} devices", f"{rate:.0f} a second"),
        *figures("1 connected", single),
        *figures(f"{number - REVOCATIONS:,} connected", among),
        Figure(f"connections of {number - REVOCATIONS:,} devices, mutual TLS", f"{connects:.0f} a second"),
        Figure(f"{HANDSHAKES} handshakes, mutual TLS, {AT_ONCE} at once", f"{shaken:.0f} a second"),
    ]


def figures(who: str, taken: list[tuple[float, float]]) -> list[Figure]:
    """Return the rows of one kind of revocation."""
    cuts, refusals = [cut for cut, _ in taken], [refused for _, refused in taken]
    return [
        Figure(f"revoked: cut off, {who}", spread(cuts, "s", 3), f"at most {PROMISED:.0f} s", max(cuts) <= PROMISED),
        Figure(
            f"revoked: refused, {who}", spread(refusals, "s", 3), f"at most {PROMISED:.0f} s", max(refusals) <= PROMISED
        ),
    ]


async def timed(installation: Installation, device: Device, port: int) -> tuple[float, float]:
    """Connect one device alone and revoke it."""
    assert await device.connect(port), "the broker refused a device"
    return await revoke(installation, device, port)


async def answering(installation: Installation) -> None:
    """Wait until the controller answers and is connected to its broker."""
    context = ssl.create_default_context(cafile=str(installation.authority.root_file))
    async with httpx.AsyncClient(base_url=installation.local_api_url, verify=context, trust_env=False) as api:
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(httpx.HTTPError):
                    if (await api.get("/readyz")).status_code == 200:
                        return
                await asyncio.sleep(0.05)


def main() -> None:
    """Measure, show, and say with the exit code whether what is promised was kept."""
    parser = json_option(__doc__)
    parser.add_argument("--devices", type=int, default=1_000)
    arguments: Any = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # a socket a device, here and in the broker
    with tempfile.TemporaryDirectory(prefix="muster-") as folder:
        rows = asyncio.run(measure(Path(folder), max(arguments.devices, 2 * REVOCATIONS + 1)))
    show("Identity", rows, arguments.json)
    raise SystemExit(any(row.kept is False for row in rows))


if __name__ == "__main__":
    main()
