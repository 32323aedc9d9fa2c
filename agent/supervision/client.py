"""Speaks the serving protocol over the Unix socket: one method a line of `agent/serving_protocol.py`.

Invariant: every call ends within its time-out and every failure is a ServingError that says what serving answered.
An answer is bounded in size. Does not start or watch the process (`process.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote

import httptools
import msgspec

from agent.errors import ServingError
from agent.serving_protocol import (
    HEADER,
    VERSION,
    BuildRequest,
    LoadedBuild,
    LoadRequest,
    ProbeResult,
    ServingState,
    TunnelRequest,
)

MAX_ANSWER: Final = 4 * 1024**2
QUICK: Final = 10.0
LOAD: Final = 300.0
PROBE: Final = 180.0
DRAIN: Final = 90.0

_T = TypeVar("_T")


class ServingClient:
    """Talks to the serving process at ``path``. One connection a call: calls are rare, and none outlives a restart.

    Every method raises ServingError: code "unreachable" (nobody answers), "protocol" (an incompatible process),
    "timeout", or the code of serving's own refusal; ``status`` of the answer stands in the message.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    async def state(self, seconds: float = QUICK) -> ServingState:
        """Return the state of the whole process."""
        return await self._call("GET", "/control/v1/state", None, ServingState, seconds)

    async def load(self, model: str, build: str, directory: Path | str) -> LoadedBuild:
        """Load ``build`` from ``directory`` beside the active one. Loaded already is well."""
        return await self._model(model, "load", LoadRequest(build=build, directory=str(directory)), LoadedBuild, LOAD)

    async def activate(self, model: str, build: str) -> LoadedBuild:
        """Send requests to ``build`` from now on. Active already is well."""
        return await self._model(model, "activate", BuildRequest(build=build), LoadedBuild, QUICK)

    async def probe(self, model: str, build: str) -> ProbeResult:
        """Run the golden inputs through ``build``."""
        return await self._model(model, "probe", BuildRequest(build=build), ProbeResult, PROBE)

    async def unload(self, model: str, build: str) -> None:
        """Give the memory of ``build`` back. Unloaded already is well; the active build is refused (409)."""
        await self._model(model, "unload", BuildRequest(build=build), dict[str, Any], DRAIN)

    async def remove(self, model: str) -> None:
        """Stop serving ``model``. Removed already is well."""
        await self._model(model, "remove", None, dict[str, Any], DRAIN)

    async def tunnel(self, url: str, credential: str, ca_file: str) -> None:
        """Open the tunnel to ``url``, or renew its credential."""
        request = TunnelRequest(url=url, credential=credential, ca_file=ca_file)
        await self._call("POST", "/control/v1/tunnel", request, dict[str, Any], QUICK)

    async def stop(self) -> None:
        """Ask the process to answer what waits and to end."""
        await self._call("POST", "/control/v1/stop", None, dict[str, Any], QUICK)

    def peer_pid(self) -> int | None:
        """Return the id of the process that listens on the socket, whatever protocol it speaks; None for nobody."""
        with contextlib.suppress(OSError), _Address(self._path) as address, socket.socket(socket.AF_UNIX) as made:
            made.settimeout(QUICK)
            made.connect(address)
            credentials = made.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            pid: int = struct.unpack("3i", credentials)[0]
            return pid
        return None

    async def _model(self, model: str, verb: str, request: object, kind: type[_T], seconds: float) -> _T:
        return await self._call("POST", f"/control/v1/models/{quote(model, safe='')}/{verb}", request, kind, seconds)

    async def _call(self, method: str, path: str, request: object, kind: type[_T], seconds: float) -> _T:
        body = msgspec.json.encode({} if request is None else request)
        try:
            async with asyncio.timeout(seconds):
                status, answer = await self._exchange(method, path, body)
        except TimeoutError as error:
            raise ServingError(f"serving did not answer {path} within {seconds:.0f} s", "timeout") from error
        except (OSError, httptools.HttpParserError) as error:
            raise ServingError(f"serving does not answer at {self._path}: {error}", "unreachable") from error
        if status != 200:
            raise _refusal(status, answer, path)
        try:
            return msgspec.json.decode(answer, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise ServingError(f"serving's answer to {path} cannot be read: {error}", "protocol") from error

    async def _exchange(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        with _Address(self._path) as address:
            reader, writer = await asyncio.open_unix_connection(address)
        try:
            head = (
                f"{method} {path} HTTP/1.1\r\nHost: serving\r\n{HEADER}: {VERSION}\r\nConnection: close\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            writer.write(head.encode() + body)
            await writer.drain()
            collected = _Collected()
            parser = httptools.HttpResponseParser(collected)
            while not collected.complete:
                data = await reader.read(65_536)
                if not data:
                    raise ConnectionError("the connection was closed before the answer was complete")
                parser.feed_data(data)
                if collected.size > MAX_ANSWER:
                    raise ConnectionError(f"an answer of more than {MAX_ANSWER} bytes")
            return parser.get_status_code(), b"".join(collected.parts)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


class _Collected:
    """The body of one answer, as the parser gives it."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.size = 0
        self.complete = False

    def on_body(self, data: bytes) -> None:
        self.parts.append(data)
        self.size += len(data)

    def on_message_complete(self) -> None:
        self.complete = True


class _Address:
    """The socket's address while it is being connected: through its directory, so that a long path fits."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._directory = -1

    def __enter__(self) -> str:
        self._directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return f"/proc/self/fd/{self._directory}/{self._path.name}"

    def __exit__(self, *_: object) -> None:
        os.close(self._directory)


def _refusal(status: int, answer: bytes, path: str) -> ServingError:
    try:
        fields = msgspec.json.decode(answer, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError):
        fields = {}
    reason = str(fields.get("error", "no reason given"))[:2000]
    code = "protocol" if status == 426 else str(fields.get("code", "refused"))
    return ServingError(f"serving refused {path} ({status}): {reason}", code)
