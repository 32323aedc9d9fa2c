"""One attempt to bring one file here over HTTP: blocking, meant for a thread of its own, stopped from another.

Invariant: what it writes to the part file are bytes of the answer's body at their place; it returns only when the whole
file is on the disk with the right hashes, and otherwise raises what was wrong and whether trying again can help. It
follows no redirect and takes no encoded body. Does not wait, retry or set deadlines (`download.py`).
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import re
import socket
import ssl
import threading
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import IO, Any, Final

from agent import durable
from agent.trust.origin import Origin, connect, shut

_READ_SECONDS: Final = 60.0  # the watch in `download.py` is stricter; this only keeps an abandoned thread from staying
_CHUNK: Final = 64 * 1024
_SYNC_EVERY: Final = 8 * 1024 * 1024  # what a power cut costs at most
_TAG: Final = re.compile(r'"[\x21\x23-\x7e]{1,128}"')
_RANGE: Final = re.compile(r"bytes (\d{1,15})-(\d{1,15})/(\d{1,15})")


class Refusal(Enum):
    """What a trouble means for the next attempt."""

    RETRY = "the next attempt may go better"
    FINAL = "it will not get better; what came is good as far as it goes"
    DISCARD = "it will not get better, and what came is worth nothing"


class Trouble(Exception):  # noqa: N818 -- most of them are not errors but the weather
    """Why an attempt ended early. ``reached``: the server answered; ``received``: body bytes of this attempt."""

    def __init__(
        self,
        message: str,
        code: str,
        refusal: Refusal = Refusal.RETRY,
        *,
        reached: bool = True,
        received: int = 0,
        retry_after: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.refusal = refusal
        self.reached = reached
        self.received = received
        self.retry_after = retry_after


class Transfer:
    """One attempt. ``at``: bytes of the file on disk; ``moved``: bytes hashed or received, for whoever watches.

    path: below ``origin``, as it stands in a URL. token: None where nobody asks for one. hashes: what the file must
    have, hexadecimal by the name of the algorithm ("sha256", "sha512"); at least one.
    """

    def __init__(
        self, origin: Origin, path: str, token: str | None, part: Path, hashes: Mapping[str, str], size: int
    ) -> None:
        if not hashes:
            raise ValueError("a file without a hash is not fetched")
        self._origin = origin
        self._path = origin.prefix + path
        self._token = token
        self._part = part
        self._tag_file = part.with_suffix(".tag")
        self._hashes = dict(hashes)
        self._size = size
        self._digests = self._no_bytes()
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._stopped = False
        self.at = 0
        self.moved = 0
        self.received = 0
        self.answered = False

    def stop(self) -> None:
        """End the attempt from another thread: nothing is written to the part file once the thread has seen it."""
        with self._lock:
            self._stopped = True
            if self._socket is not None:
                shut(self._socket)

    def run(self) -> None:
        """Bring the file here. Raises Trouble, or DeviceError for this device's disk."""
        try:
            with self._part.open("a+b") as file:
                self._hash_again(file)
                if self.at < self._size:
                    self._receive(file)
                self._check_stopped()
                durable.sync_file(file, "fetch.part")
        except OSError as error:  # what sockets raise is Trouble by now: this is the disk
            raise durable.disk_error(error, self._part) from error
        for name, digest in self._digests.items():
            if digest.hexdigest() != self._hashes[name]:
                message = f"the bytes have the {name} {digest.hexdigest()}"
                raise self._trouble(message, "wrong_hash", Refusal.DISCARD)
        with contextlib.suppress(OSError):
            self._tag_file.unlink(missing_ok=True)

    def _hash_again(self, file: IO[bytes]) -> None:
        file.seek(0)
        while chunk := file.read(_CHUNK):
            self._check_stopped()
            self._update(chunk)
            self.at += len(chunk)
            self.moved += len(chunk)
        if self.at > self._size:
            self._begin_anew(file)

    def _begin_anew(self, file: IO[bytes]) -> None:
        self._check_stopped()
        file.truncate(0)
        self._digests = self._no_bytes()
        self.at = 0

    def _no_bytes(self) -> dict[str, Any]:
        return {name: hashlib.new(name) for name in self._hashes}

    def _update(self, chunk: bytes) -> None:
        for digest in self._digests.values():
            digest.update(chunk)

    def _receive(self, file: IO[bytes]) -> None:
        connection = self._connect()
        try:
            response = self._ask(connection)
            if response.status == 200 and self.at:  # from the beginning: it cannot resume, or has another file now
                self._begin_anew(file)
            self._copy(response, file)
        finally:
            connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        where = str(self._origin)
        try:
            connection = connect(self._origin, self._hold)
        except ssl.SSLCertVerificationError as error:
            raise self._trouble(f"{where} is not who it should be: {error}", "unreachable") from error
        except OSError as error:
            raise self._trouble(f"cannot reach {where}: {error}", "unreachable") from error
        connection.sock.settimeout(_READ_SECONDS)
        return connection

    def _hold(self, held: socket.socket) -> socket.socket:
        with self._lock:
            self._socket = held
            if not self._stopped:
                return held
        held.close()
        raise self._trouble("stopped", "stopped")

    def _ask(self, connection: http.client.HTTPConnection) -> http.client.HTTPResponse:
        headers = {"Accept-Encoding": "identity"}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        if self.at:
            headers["Range"] = f"bytes={self.at}-"
            if tag := self._read_tag():
                headers["If-Range"] = tag
        try:
            connection.request("GET", self._path, headers=headers)
            response = connection.getresponse()
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._trouble(f"no answer: {type(error).__name__}: {error}", "no_answer") from error
        self.answered = True
        self._judge(response)
        self._write_tag(response.getheader("ETag") or "")
        return response

    def _judge(self, response: http.client.HTTPResponse) -> None:
        """Raise Trouble unless the answer's body is the wanted part of the file."""
        status = response.status
        if status == 401:
            raise self._trouble("this device's token is not accepted (401)", "unauthorised")
        if status == 416:
            raise self._trouble("the file there ends before ours (416)", "wrong_length", Refusal.DISCARD)
        if status in (408, 425, 429) or status >= 500:
            raise self._trouble(f"it is busy ({status})", "busy", retry_after=_seconds(response))
        if 300 <= status < 400:
            raise self._trouble(f"it points elsewhere ({status})", "redirected", Refusal.FINAL)
        if status not in (200, 206):
            code = "not_found" if status in (404, 410) else "refused"
            raise self._trouble(f"it does not give the file ({status})", code, Refusal.FINAL)
        if (response.getheader("Content-Encoding") or "identity").lower() != "identity":
            raise self._trouble("the answer is encoded, which was not asked for", "encoded", Refusal.DISCARD)
        expected = self._size
        if status == 206:
            match = _RANGE.fullmatch(response.getheader("Content-Range") or "")
            if match is None or tuple(map(int, match.groups())) != (self.at, self._size - 1, self._size):
                raise self._trouble("the answer is another part than was asked for", "wrong_length", Refusal.DISCARD)
            expected -= self.at
        if response.length is not None and response.length != expected:
            reason = f"{response.length} bytes are announced, {expected} expected"
            raise self._trouble(reason, "wrong_length", Refusal.DISCARD)

    def _copy(self, response: http.client.HTTPResponse, file: IO[bytes]) -> None:
        synced = self.at
        while True:
            try:
                chunk = response.read1(min(_CHUNK, self._size - self.at) or 1)  # at the end: one byte too many?
            except (OSError, http.client.HTTPException, ValueError) as error:
                raise self._trouble(f"the transfer broke off: {type(error).__name__}: {error}", "cut") from error
            self._check_stopped()
            self.received += len(chunk)
            self.moved += len(chunk)
            if not chunk:
                if self.at < self._size:
                    raise self._trouble(f"the transfer ended after {self.at} of {self._size} bytes", "cut")
                return
            if self.at == self._size:
                raise self._trouble(f"more than {self._size} bytes came", "wrong_length", Refusal.DISCARD)
            file.write(chunk)
            self._update(chunk)
            self.at += len(chunk)
            if self.at - synced >= _SYNC_EVERY:
                durable.sync_file(file, "fetch.part")
                synced = self.at

    def _check_stopped(self) -> None:
        if self._stopped:
            raise self._trouble("stopped", "stopped")

    def _trouble(
        self, message: str, code: str, refusal: Refusal = Refusal.RETRY, *, retry_after: float = 0.0
    ) -> Trouble:
        reached, received = self.answered, self.received
        return Trouble(message, code, refusal, reached=reached, received=received, retry_after=retry_after)

    def _read_tag(self) -> str:
        try:
            origin, _, tag = self._tag_file.read_text("ascii").partition(" ")
        except (OSError, UnicodeDecodeError):
            return ""
        return tag if origin == str(self._origin) and _TAG.fullmatch(tag) else ""

    def _write_tag(self, tag: str) -> None:
        if _TAG.fullmatch(tag) and tag != self._read_tag():  # a weak tag must not be used in If-Range
            self._tag_file.write_text(f"{self._origin} {tag}", "ascii")  # another server's tags mean something else


def _seconds(response: http.client.HTTPResponse) -> float:
    text = (response.getheader("Retry-After") or "").strip()
    return float(text) if text.isascii() and text.isdigit() and len(text) < 6 else 0.0
