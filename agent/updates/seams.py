"""What the effects of an update need from the rest of the agent, and what they answer. Types only.

Invariant: an effect ends in a ``Result`` or raises ``Stop``; it never decides which state follows (`machine.py`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from agent.builds.fetch import Progress
from agent.serving_protocol import LoadedBuild, ProbeResult, ServingState
from agent.updates.machine import Event
from wire.assignment import Assignment
from wire.manifest import Manifest


class Fetches(Protocol):
    """`agent.builds.fetch.Fetcher`."""

    async def fetch(self, sha256: str, size: int, progress: Progress | None = None) -> Path:
        """Return where the blob lies in the store."""


class Trusts(Protocol):
    """`agent.trust.pinned.Pinned`."""

    def open_assignment(self, data: bytes) -> Assignment:
        """Return the assignment in an envelope."""

    def open_manifest(self, data: bytes, sha256: str) -> tuple[str, Manifest, bytes]:
        """Return the build id, the manifest and its bytes, from an envelope that must have ``sha256``."""


class Vouches(Protocol):
    """`agent.trust.voucher.Voucher`."""

    async def vouch(self, manifest: Manifest, build: str, sha256: str, size: int) -> None:
        """Return when the signed repository and the assignment name the same build."""


class TrialResult(Protocol):
    """What a child with limits found out about a build: golden inputs, time, memory."""

    @property
    def passed(self) -> bool:
        """Whether the golden outputs came within the tolerance."""

    @property
    def reason(self) -> str:
        """Why not."""

    @property
    def difference(self) -> float:
        """The largest absolute difference from the golden outputs."""

    @property
    def p95_ms(self) -> float:
        """Latency of one golden run."""

    @property
    def peak_memory_bytes(self) -> int:
        """The most memory that the child had."""

    @property
    def log_tail(self) -> str:
        """The end of what the child wrote to its error output."""


class Trial(Protocol):
    """`agent.trial_child.run_trial`. Cancelled, it ends the child at once."""

    def __call__(self, directory: Path, memory_bytes: int, deadline: float, /) -> Awaitable[TrialResult]:
        """Try the build in ``directory`` for at most ``deadline`` seconds."""


class Serving(Protocol):
    """`agent.supervision.client.ServingClient`. Everything may be asked twice. Raises AgentError."""

    async def state(self) -> ServingState:
        """Return what runs."""

    async def load(self, model: str, build: str, directory: Path, /) -> LoadedBuild:
        """Load a build beside the active one."""

    async def activate(self, model: str, build: str, /) -> LoadedBuild:
        """Send requests to a loaded build from now on."""

    async def probe(self, model: str, build: str, /) -> ProbeResult:
        """Run the golden inputs, marked as probes."""

    async def unload(self, model: str, build: str, /) -> None:
        """Give a build's memory back."""

    async def remove(self, model: str, /) -> None:
        """Stop serving a model."""


Acked = Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class Result:
    """How a state's work ended. ``figures``: what was measured, for the report."""

    event: Event = Event.DONE
    detail: str = ""
    figures: dict[str, float] = field(default_factory=dict)


class Stop(Exception):  # noqa: N818 -- it carries an event; not every one is an error
    """A state's work ends early with ``event``. ``bad``: through the build's own fault, so it must not come again."""

    def __init__(
        self, code: str, message: str, *, bad: bool = False, event: Event = Event.ERROR, log_tail: str = ""
    ) -> None:
        super().__init__(message)
        self.code = code
        self.bad = bad
        self.event = event
        self.log_tail = log_tail
