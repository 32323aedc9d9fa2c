"""A target of the signed repository as a plain file, for people: `muster-agent trust download`.

Invariant: a name appears in the directory at once and whole, and only for bytes of the length and hashes that the
repository vouches for. The agent's own builds go through the store (`fetch.py`).
"""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Final
from urllib.parse import quote

from agent import durable
from agent.builds.download import Download, Patience, Source
from agent.errors import TrustError, UnreachableError
from agent.trust.origin import parse_origin
from agent.trust.protocol import Target

_IN_A_PATH: Final = "/%:@!$&'()*+,;=~"  # a target path is part of a URL already: what is encoded there stays encoded
_PATIENCE: Final = Patience(attempts=3)


async def download(target: Target, base_url: str, ca_file: Path | None, directory: Path, *, seconds: float) -> Path:
    """Return where the target lies in ``directory``, fetched unless it is there already.

    Raises TrustError, ControllerError, DeviceError as `Download.run` does, UnreachableError after ``seconds``.
    """
    name = quote(target.path, safe="")
    if name in (".", "..") or len(name) > 200:
        raise TrustError(f"target {target.path!r} cannot be a file's name; publish it under another", "malformed")
    file = directory / name
    if await asyncio.to_thread(_has, file, target):
        return file
    durable.make_directory(directory, "published.mkdir")
    part = directory / f".{name}.part"
    source = Source(parse_origin(base_url, ca_file), "/" + quote(target.file, safe=_IN_A_PATH))
    fetch = Download(part, target.hashes, target.length, [source], name=f"target {target.path}", patience=_PATIENCE)
    try:
        async with asyncio.timeout(seconds):
            await fetch.run()
    except TimeoutError as error:
        raise UnreachableError(
            f"target {target.path!r} did not come within {seconds:g} s; try again", "too_slow"
        ) from error
    durable.replace(part, file, "published.adopt")
    return file


def _has(file: Path, target: Target) -> bool:
    try:
        if file.stat().st_size != target.length:
            return False
        for algorithm, expected in target.hashes.items():
            with file.open("rb") as opened:
                if hashlib.file_digest(opened, algorithm).hexdigest() != expected:
                    return False
    except OSError:
        return False
    return True
