"""What the agent and its short-lived child say to each other about the metadata: plain data, JSON (`child.py`).

Invariant: knows nothing of TUF's library, so that the agent can speak it without holding the library in memory.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from agent.trust.clock import Clock

Path = Annotated[str, Meta(min_length=1, max_length=1024)]
MAX_PATHS: Final = 64
MAX_REQUEST_BYTES: Final = 2 * 1024**2
MAX_ANSWER_BYTES: Final = 8 * 1024**2
#: Codes of a Failure with which waiting helps; the others need a person, or a newly signed repository.
TEMPORARY: Final = frozenset({"unreachable", "too_slow", "refused", "busy", "no_verdict", "no_memory", "disk_full"})


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A refresh, and the targets to look up afterwards.

    directory: of the metadata. url: where the metadata lies. root: the root metadata that this device was given, from
    which all newer ones must descend. token: for the server, None where it asks for none. earliest: seconds since 1970,
    a time that is past for certain (0: none is known). deadline: seconds for all of it. memory_bytes: what the child
    may take on top of what it holds at its start; 0 for no limit.
    """

    directory: str
    url: str
    root: bytes
    ca_file: str | None = None
    token: str | None = None
    earliest: float = 0.0
    deadline: float = 60.0
    memory_bytes: int = 0
    paths: Annotated[list[Path], Meta(max_length=MAX_PATHS)] = []


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A file that the repository vouches for.

    path: its name in the repository. length: bytes. hashes: by algorithm, lower-case hexadecimal; ``sha256`` is ""
    where the signer gave another one only. custom: what the signer said about it. file: below which path it is served.
    """

    path: str
    length: int
    sha256: str
    custom: dict[str, Any]
    hashes: dict[str, str]
    file: str


class Refreshed(msgspec.Struct, frozen=True, kw_only=True, tag="refreshed"):
    """What holds after a refresh: the versions of the four top-level roles, and the targets that were asked for.

    expires: seconds since 1970, when the first of the four does. issued: when the timestamp was signed, 0 where it does
    not say. received: bytes of metadata that crossed the line.
    """

    root: int
    timestamp: int
    snapshot: int
    targets: int
    expires: float
    issued: float
    received: int
    clock: Clock
    found: dict[str, Target | None] = {}


class Failure(msgspec.Struct, frozen=True, kw_only=True, tag="failure"):
    """Why nothing new may be installed: a stable ``code`` (`refusals.py`) and a sentence that says what to do."""

    code: str
    message: str


Answer = Refreshed | Failure
