"""What the controller does to a running mosquitto beside talking through it: lists loaded again, connections cut.

Invariant: only the mosquitto of this very data directory is signalled. A connection is cut by taking its session over,
at the loopback listener where the client id may be chosen, and ending it: nothing of the session stays behind. Does not
decide whom to cut (devices/revoking.py) and starts no broker (`mosquitto.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from controller.errors import UnavailableError

CONFIGURATION_FILE: Final = "mosquitto.conf"
PID_FILE: Final = "mosquitto.pid"
OPERATOR_PORT_FILE: Final = "operator.port"
TIMEOUT: Final = 5.0  # seconds for one cut
_CONNECT, _CLEAN, _KEEPALIVE = 0x10, 0x02, 10
_ACCEPTED: Final = bytes([0x20, 2, 0, 0])
_DISCONNECT: Final = bytes([0xE0, 0])


@dataclass(frozen=True, slots=True)
class Operator:
    """``directory``: where the broker's files lie; ``root``: whom it is; certificate and key: who we are there."""

    directory: Path
    root: Path
    certificate: Path
    key: Path

    def reload(self) -> None:
        """Have mosquitto load its list of revoked certificates again. Raises UnavailableError when none runs here."""
        try:
            pid = int((self.directory / PID_FILE).read_text())
            handle = os.pidfd_open(pid)
        except (OSError, ValueError) as error:
            raise UnavailableError(f"no broker runs in {self.directory}: {error}", "broker_away") from error
        try:
            if not runs_with(pid, self.directory / CONFIGURATION_FILE):
                raise UnavailableError(f"process {pid} is not the broker of {self.directory}", "broker_away")
            signal.pidfd_send_signal(handle, signal.SIGHUP)
        except ProcessLookupError as error:
            raise UnavailableError("the broker has just ended", "broker_away") from error
        finally:
            os.close(handle)

    async def cut(self, client: str) -> None:
        """End the connection and the session of ``client``, if it has one. Raises UnavailableError.

        A list loaded by a ``reload`` before is in force by then: mosquitto loads it between two looks at its sockets,
        and this takes several.
        """
        try:
            port = int((self.directory / OPERATOR_PORT_FILE).read_text())
            async with asyncio.timeout(TIMEOUT):
                await self._take_over(port, client)
        except (OSError, ValueError, EOFError, TimeoutError) as error:
            raise UnavailableError(f"the broker did not cut {client}: {error!r}", "broker_away") from error

    async def _take_over(self, port: int, client: str) -> None:
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=str(self.root))
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self.certificate, self.key)
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        try:
            writer.write(_connect_packet(client))
            answer = await reader.readexactly(len(_ACCEPTED))
            if answer != _ACCEPTED:
                raise ConnectionError(f"it answered {answer.hex()}")
            writer.write(_DISCONNECT)
            await writer.drain()
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


def runs_with(pid: int, configuration: Path) -> bool:
    """Whether process ``pid`` was started with this configuration file."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return os.fsencode(configuration) in words


def _connect_packet(client: str) -> bytes:
    """An MQTT 3.1.1 CONNECT with a clean session (section 3.1 of the standard)."""
    name = client.encode()
    body = b"\x00\x04MQTT\x04" + bytes([_CLEAN, 0, _KEEPALIVE]) + len(name).to_bytes(2, "big") + name
    if len(body) > 127:
        raise ValueError(f"{client[:40]!r} is too long for a client id")
    return bytes([_CONNECT, len(body)]) + body
