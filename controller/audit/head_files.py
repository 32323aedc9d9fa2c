"""The signed heads of each tenant, in a file beside the database: whoever rewrites the one has not rewritten the other.

Invariant: a head is appended and synced as one line; a line that was torn by a power cut, or that our key did not sign,
counts for nothing. A file is bounded: of many heads the older ones are thinned out, the first and the newest stay.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Final
from urllib.parse import quote

from controller.audit.heads import Head, read, sign
from controller.errors import InvalidError, UnavailableError
from wire.envelope import PrivateKey, encode_public_key, key_id

MOST: Final = 10_000  # heads in one file: more than a year, hour by hour
MAX_LINE: Final = 4096


class HeadFiles:
    """The heads in ``directory``, signed with ``key``. Safe to use from any thread."""

    def __init__(self, directory: Path, key: PrivateKey) -> None:
        self._directory = directory
        self._key = key
        self._keys = {key_id(key.public_key()): key.public_key()}
        self._lock = threading.Lock()

    @property
    def public_key(self) -> str:
        """The public half of the key, in base64."""
        return encode_public_key(self._key.public_key())

    def add(self, head: Head) -> bytes:
        """Sign ``head`` and keep it; return the envelope. Raises UnavailableError."""
        data = sign(head, self._key)
        file = self._file(head.tenant)
        try:
            with self._lock:
                self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                lines = _lines(file)
                if len(lines) >= MOST:
                    self._thin(file, lines)
                with os.fdopen(os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "ab") as output:
                    output.write(b"\n" + data + b"\n")  # a torn line before it ends there
                    output.flush()
                    os.fsync(output.fileno())
        except OSError as error:
            raise UnavailableError(f"{file} cannot be written: {error}", "file_unwritable") from error
        return data

    def of(self, tenant: str) -> list[tuple[Head, bytes]]:
        """Return the tenant's heads with their envelopes, in order of number. Raises UnavailableError."""
        try:
            lines = _lines(self._file(tenant))
        except OSError as error:
            raise UnavailableError(f"{self._file(tenant)} cannot be read: {error}", "file_unreadable") from error
        found: list[tuple[Head, bytes]] = []
        for line in lines:
            try:
                head = read(line, self._keys)
            except InvalidError:
                continue
            if head.tenant == tenant:
                found.append((head, line))
        return sorted(found, key=lambda pair: pair[0].number)

    def _file(self, tenant: str) -> Path:
        return self._directory / f"{quote(tenant, safe='')}.heads"

    def _thin(self, file: Path, lines: list[bytes]) -> None:
        half = len(lines) // 2
        kept = lines[:half:2] + lines[half:]
        fresh = file.with_suffix(".new")
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as output:
            output.writelines(line + b"\n" for line in kept)
            output.flush()
            os.fsync(output.fileno())
        fresh.replace(file)


def _lines(file: Path) -> list[bytes]:
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        return []
    return [line for line in data.split(b"\n") if line and len(line) <= MAX_LINE]
