"""Fetches metadata for TUF's client: small files, one after another, over one connection.

Invariant: an answer ends within its time whatever the far side does, and no more than one byte beyond the limit is read
of it. Follows no redirect, takes no encoded body, knows no proxy, writes nothing to disk. Verifies nothing: whatever it
returns may be anybody's bytes.
"""

from __future__ import annotations

import http.client
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

from tuf.api.exceptions import DownloadError, DownloadHTTPError, DownloadLengthMismatchError
from tuf.ngclient.fetcher import FetcherInterface

from agent.trust.origin import Origin, connect, shut

CEILING: Final = 8 * 1024**2  # bytes of one file, whatever length the metadata above it names
_CHUNK: Final = 64 * 1024
_TICK: Final = 0.1
_NAME: Final = re.compile(r"(?:(?P<version>\d{1,15})\.)?(?P<role>[^/]+)\.json")
_CLOCK_CODES: Final = (9, 10)  # OpenSSL's X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED


class FetchError(DownloadError):
    """The metadata did not come. ``code``: "unreachable", "too_slow", "redirected", "encoded", "bad_ca", "clock"."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Fetched:
    """The last file that was asked for: the role, the version in its address, and its bytes once they came."""

    role: str = ""
    version: int | None = None
    data: bytes = b""


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds and bytes. deadline: for everything. window: in which ``minimum_bytes`` must come, or the file's end."""

    deadline: float = 60.0
    window: float = 10.0
    minimum_bytes: int = 1024


class MetadataFetcher(FetcherInterface):
    """Fetches below ``origin``, with ``token`` where one is given. The clock of ``pace`` runs from now on.

    received: bytes of bodies so far. last: what was asked for last.
    """

    def __init__(self, origin: Origin, base_url: str, pace: Pace = Pace(), token: str | None = None) -> None:
        self._origin = origin
        self._token = token
        self._base_url = base_url
        self._pace = pace
        self._connection: http.client.HTTPConnection | None = None
        self._watch = _Watch(time.monotonic() + pace.deadline)
        self.received = 0
        self.last = Fetched()

    def close(self) -> None:
        """Close the connection and end the watch."""
        self._watch.end()
        self._forget()

    def download_bytes(self, url: str, max_length: int) -> bytes:
        """Return the file's bytes. Raises FetchError, DownloadHTTPError (4xx, 5xx) or DownloadLengthMismatchError."""
        if not url.startswith(self._base_url):
            raise FetchError(f"{url!r} is not below {self._base_url!r}", "unreachable")
        name = _NAME.fullmatch(url.rpartition("/")[2])
        version = name["version"] if name else None
        self.last = Fetched(unquote(name["role"]) if name else url, int(version) if version else None)
        try:
            path = f"{self._origin.prefix}/{url.removeprefix(self._base_url)}"
            data = self._get(path, min(max_length, CEILING))
        except DownloadHTTPError:  # whole, and the connection with it
            raise
        except BaseException:
            self._forget()
            raise
        finally:
            self._watch.rest()
        self.last = Fetched(self.last.role, self.last.version, data)
        return data

    def _fetch(self, url: str) -> Iterator[bytes]:
        """The library's other way in, which its client does not take while ``download_bytes`` is there."""
        yield self.download_bytes(url, CEILING)

    def _get(self, path: str, limit: int) -> bytes:
        reused = self._connection is not None
        try:
            answer = self._ask(path)
        except FetchError as error:
            if not reused or error.code != "unreachable":
                raise
            self._forget()  # the far side may close a connection that has rested; a fresh one says whether it is there
            answer = self._ask(path)
        try:
            if answer.status >= 400:
                self._read(answer, _CHUNK)
            self._judge(answer)
            if answer.length is not None and answer.length > limit:
                raise DownloadLengthMismatchError(f"{answer.length} bytes are announced, {limit} are allowed")
            return self._read(answer, limit)
        finally:
            answer.close()  # else the connection takes no other request
            if answer.will_close:
                self._forget()

    def _ask(self, path: str) -> http.client.HTTPResponse:
        self._watch.allow(self._pace.window)
        headers = {"Accept-Encoding": "identity", "Accept": "application/json, */*;q=0.1"}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        try:
            if self._connection is None:
                self._connection = connect(self._origin, self._watch.hold)
                self._connection.sock.settimeout(self._pace.window)
            self._connection.request("GET", path, headers=headers)
            return self._connection.getresponse()
        except ssl.SSLCertVerificationError as error:
            if error.verify_code in _CLOCK_CODES:
                raise FetchError(f"{self._origin}: {error.verify_message} by this device's clock", "clock") from error
            raise FetchError(f"{self._origin} is not who it should be: {error.verify_message}", "bad_ca") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._broken(error) from error

    def _judge(self, answer: http.client.HTTPResponse) -> None:
        if 300 <= answer.status < 400:
            raise FetchError(f"{self._origin} points elsewhere ({answer.status})", "redirected")
        if answer.status >= 400:
            raise DownloadHTTPError(f"{self._origin} answers {answer.status}", answer.status)
        if answer.status != 200:
            raise FetchError(f"{self._origin} answers {answer.status}, which was not asked for", "unreachable")
        if (answer.getheader("Content-Encoding") or "identity").lower() != "identity":
            raise FetchError(f"{self._origin} sends an encoded body, which was not asked for", "encoded")

    def _read(self, answer: http.client.HTTPResponse, limit: int) -> bytes:
        announced = answer.length
        data, mark = bytearray(), 0
        self._watch.allow(self._pace.window)
        while True:
            try:
                chunk = answer.read1(_CHUNK)
            except (OSError, http.client.HTTPException, ValueError) as error:
                raise self._broken(error) from error
            if not chunk:
                break
            data += chunk
            self.received += len(chunk)
            if len(data) > limit:
                raise DownloadLengthMismatchError(f"more than the {limit} bytes came that are allowed")
            if len(data) - mark >= self._pace.minimum_bytes:
                mark = len(data)
                self._watch.allow(self._pace.window)
        if self._watch.late or (announced is not None and len(data) != announced):
            raise self._broken(OSError(f"it ended after {len(data)} bytes"))
        return bytes(data)

    def _broken(self, error: Exception) -> FetchError:
        if self._watch.late or isinstance(error, TimeoutError):
            return FetchError(f"{self._origin} is too slow", "too_slow")
        return FetchError(f"no answer from {self._origin}: {str(error) or type(error).__name__}", "unreachable")

    def _forget(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class _Watch:
    """Shuts the socket of an answer that is late. A socket's own time-out never ends a slow drip."""

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self._until: float | None = None
        self._socket: socket.socket | None = None
        self._ended = threading.Event()
        self.late = False
        threading.Thread(target=self._run, name="metadata-watch", daemon=True).start()

    def hold(self, held: socket.socket) -> socket.socket:
        self._socket = held
        return held

    def allow(self, seconds: float) -> None:
        """From now on, ``seconds`` more, but never past the deadline."""
        if time.monotonic() >= self._deadline:
            self.late = True
        if self.late:
            raise FetchError("the time for the refresh is over", "too_slow")
        self._until = min(self._deadline, time.monotonic() + seconds)

    def rest(self) -> None:
        """Nothing is waited for."""
        self._until = None

    def end(self) -> None:
        self._ended.set()

    def _run(self) -> None:
        while not self._ended.wait(_TICK):
            until, held = self._until, self._socket
            if until is not None and time.monotonic() > until:
                self.late = True
                if held is not None:
                    shut(held)
