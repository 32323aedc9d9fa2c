"""TUF's client workflow on this device's terms. The only file that holds the library's client.

Invariant: metadata is taken only when it descends from the root that this device was given, and is written durably
before anything is built upon it; a directory that a power cut or a rotten card left broken is mended from that root and
the repository. Expiry is judged by the clock or by the floor, whichever is later. Fetches no target (`builds/`).

Run it in a process that ends soon (`child.py`): the library and a large repository's metadata stay in memory.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import TargetFile, Targets
from tuf.ngclient import Updater, UpdaterConfig

from agent import durable
from agent.errors import AgentError, DeviceError, TrustError
from agent.trust import clock as clocks
from agent.trust.floor import keep_floor, make_way, read_floor
from agent.trust.metadata_fetcher import Fetched, MetadataFetcher, Pace
from agent.trust.origin import parse_origin
from agent.trust.protocol import Answer, Failure, Refreshed, Request, Target
from agent.trust.refusals import explain

LIMITS: Final = UpdaterConfig(
    max_root_rotations=256,
    max_delegations=32,
    root_max_length=512_000,
    timestamp_max_length=16_384,
    snapshot_max_length=2_000_000,
    targets_max_length=5_000_000,
)
_HISTORY: Final = "root_history"
_LOCK: Final = ".lock"
_HASHES: Final = {"sha256": 64, "sha512": 128}
_LATEST: Final = 253_000_000_000.0  # in the year 9987: beyond it there are no dates


def answer(request: Request, now: float, pace: Pace | None = None) -> Answer:
    """Refresh, look up ``request.paths``, and return what holds; ``now`` is what this device's clock shows.

    Never raises for what the repository, the network or the disk does: that is a Failure.
    """
    directory = Path(request.directory)
    clock = clocks.judge(now, max(request.earliest, read_floor(directory)))
    pace = pace or Pace(deadline=request.deadline)
    fetcher: MetadataFetcher | None = None
    try:
        origin = parse_origin(request.url, Path(request.ca_file) if request.ca_file else None)
        with _alone(directory, pace.deadline):
            mend(directory)
            base_url = request.url if request.url.endswith("/") else f"{request.url}/"
            fetcher = MetadataFetcher(origin, base_url, pace, request.token)
            client = _Client(directory, base_url, fetcher, request.root, clock.reference)
            client.refresh()
            found = {path: client.look_up(path) for path in request.paths}
            return _told(client, fetcher, directory, clock, found)
    except Exception as error:
        return explain(error, Fetched() if fetcher is None else fetcher.last, clock)
    finally:
        if fetcher is not None:
            fetcher.close()


def begin(directory: Path, root: bytes) -> Failure | None:
    """Prepare ``directory`` with the root metadata ``root``, without the network; None when that went well."""
    clock = clocks.judge(0.0, 0.0)
    try:
        with _alone(directory, 5.0):
            mend(directory)
            _Client(directory, "https://unused.invalid/", None, root, 0.0)
            return None
    except Exception as error:
        return explain(error, Fetched(role="root"), clock)


def mend(directory: Path) -> None:
    """Make the directory and remove what a kill left in it. Raises DeviceError."""
    durable.make_directory(directory, "trust.mkdir")
    durable.make_directory(directory / _HISTORY, "trust.mkdir")
    for path in (*directory.glob(".*.json.new"), *(directory / _HISTORY).glob(".*.json.new")):
        durable.remove(path, "trust.sweep")


class _Client(Updater):
    """The library's client, writing durably and judging expiry by ``reference`` (seconds since 1970)."""

    def __init__(
        self, directory: Path, base_url: str, fetcher: MetadataFetcher | None, root: bytes, reference: float
    ) -> None:
        try:
            super().__init__(str(directory), base_url, fetcher=fetcher, config=LIMITS, bootstrap=root)
        except AgentError:
            raise
        except Exception as error:
            raise TrustError(
                f"the root metadata that this device was given is not valid: {error}; enrol the device again",
                "bad_root",
            ) from error
        self._trusted_set.reference_time = datetime.fromtimestamp(min(reference, _LATEST), UTC)

    def look_up(self, path: str) -> Target | None:
        try:
            info = self.get_targetinfo(path)
        except RepositoryError:
            if self._unpublished(path):
                return None
            raise
        return None if info is None else _target(info, bool(self._trusted_set.root.consistent_snapshot))

    def _unpublished(self, path: str) -> bool:
        """Whether a role that ``path`` was given to has not signed anything yet: then nobody vouches for it."""
        top = self._trusted_set.get("targets")
        if not isinstance(top, Targets) or top.delegations is None:
            return False
        names = [name for name, _ in top.delegations.get_roles_for_target(path)]
        return any(f"{name}.json" not in self._trusted_set.snapshot.meta for name in names)

    def trusted(self) -> Any:
        return self._trusted_set

    def _persist_file(self, filename: str, data: bytes) -> None:
        path = Path(filename)
        with contextlib.suppress(OSError):
            if path.read_bytes() == data:  # the root that was given, at each start: spare the flash
                return
        make_way(path)
        durable.write_atomic(path, data, "trust.metadata")

    def _update_root_symlink(self) -> None:
        link = Path(self._dir) / "root.json"
        current = f"{_HISTORY}/{self._trusted_set.root.version}.root.json"
        if not link.is_symlink() or str(link.readlink()) != current:
            make_way(link)
            durable.switch_link(link, current, "trust.root")


def _target(info: TargetFile, prefixed: bool) -> Target:
    hashes = {name: info.hashes[name] for name in _HASHES if name in info.hashes}
    if not hashes or any(len(value) != _HASHES[name] for name, value in hashes.items()):
        raise TrustError(
            f"target {info.path!r} has no SHA-256 that could be checked ({', '.join(info.hashes)}); publish it again",
            "malformed",
        )
    directory, slash, name = info.path.rpartition("/")
    file = f"{directory}{slash}{next(iter(hashes.values()))}.{name}" if prefixed else info.path
    return Target(
        path=info.path,
        length=info.length,
        sha256=hashes.get("sha256", ""),
        custom=dict(info.custom or {}),
        hashes=hashes,
        file=file,
    )


def _told(
    client: _Client,
    fetcher: MetadataFetcher,
    directory: Path,
    clock: clocks.Clock,
    found: dict[str, Target | None],
) -> Refreshed:
    trusted = client.trusted()
    expires = {name: trusted[name].expires.timestamp() for name in ("root", "timestamp", "snapshot", "targets")}
    issued = trusted.timestamp.unrecognized_fields.get("issued", 0)
    if isinstance(issued, bool) or not isinstance(issued, int):
        issued = 0
    issued = max(0, min(issued, int(_LATEST)))
    floor = clocks.raised(clock.floor, float(issued), (expires["root"], expires["targets"]))
    if floor > clock.floor:
        keep_floor(directory, floor)
    return Refreshed(
        root=trusted.root.version,
        timestamp=trusted.timestamp.version,
        snapshot=trusted.snapshot.version,
        targets=trusted["targets"].version,
        expires=min(expires.values()),
        issued=float(issued),
        received=fetcher.received,
        clock=clocks.confirm(clock, floor),
        found=found,
    )


@contextlib.contextmanager
def _alone(directory: Path, seconds: float) -> Iterator[None]:
    """Hold the directory for one client. Raises DeviceError ("busy", or for the disk)."""
    durable.make_directory(directory, "trust.mkdir")
    try:
        descriptor = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise durable.disk_error(error, directory / _LOCK) from error
    try:
        until = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= until:
                    raise DeviceError(f"another refresh holds {directory}; it is tried again", "busy") from error
                time.sleep(0.05)
        yield
    finally:
        os.close(descriptor)
