"""What each state of an execution does, up to the point where a build is whole on the disk, and after it is proven.

Invariant: the work of a state may be stopped at any point and done again from its beginning; nothing here touches what
serves before ACTIVATING. What runs in the serving process is in `live.py`. Does not decide what follows (`machine.py`)
and does not write the journal, but for the count of a probation's starts.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import structlog

from agent.builds.slots import Slots
from agent.builds.store import Store
from agent.errors import AgentError, DeviceError, TrustError
from agent.trust.voucher import NEVER, WAITS
from agent.updates import precheck
from agent.updates.journal import Execution, Journal
from agent.updates.live import Live
from agent.updates.machine import Event
from agent.updates.precheck import Capabilities, Room, Unfit
from agent.updates.seams import Fetches, Result, Stop, Trusts, Vouches
from agent.updates.threads import in_thread
from agent.updates.turn import Turn
from wire.execution import ExecutionState
from wire.manifest import Manifest

S = ExecutionState

NEEDS_TURN: Final = frozenset({S.INSTALLING, S.WARMING, S.ACTIVATING})
MAY_HOLD_TURN: Final = NEEDS_TURN | {S.STAGED, S.WAITING, S.DEFERRED}
_RETRY_SECONDS: Final = 1.0
_LONGEST_RETRY: Final = 30.0


class Effects:
    """The work of one device's executions. ``capabilities`` is asked anew for each precheck."""

    def __init__(
        self,
        *,
        journal: Journal,
        slots: Slots,
        store: Store,
        fetcher: Fetches,
        trust: Trusts,
        voucher: Vouches,
        live: Live,
        capabilities: Callable[[], Capabilities],
    ) -> None:
        self._journal = journal
        self._slots = slots
        self._store = store
        self._fetcher = fetcher
        self._trust = trust
        self._voucher = voucher
        self._capabilities = capabilities
        self.live = live
        self.turn = Turn()
        self.progress: dict[str, tuple[int, int]] = {}
        self._log = structlog.get_logger()
        self._work: dict[ExecutionState, Callable[[Execution], Awaitable[Result]]] = {
            S.OFFERED: self._offered,
            S.PRECHECK: self._precheck,
            S.DOWNLOADING: self._downloading,
            S.VERIFYING: self._verifying,
            S.STAGED: self._staged,
            S.WAITING: self._waiting,
            S.DEFERRED: self._deferred,
            S.INSTALLING: self._installing,
            S.WARMING: live.warm,
            S.ACTIVATING: live.activate,
            S.PROBATION: live.watch,
            S.COMMITTING: self._committing,
            S.ROLLING_BACK: live.roll_back,
            S.VERIFYING_ROLLBACK: live.verify_rollback,
            S.CLEANUP: self._cleanup,
        }

    async def perform(self, row: Execution) -> Result:
        """Do the work of ``row.state``. Raises Stop or AgentError."""
        if row.state in NEEDS_TURN:
            await self.turn.wait(row.component)
        return await self._work[row.state](row)

    # Before anything is touched

    async def _offered(self, row: Execution) -> Result:
        item, component = row.item, row.component
        if item.build is None:
            if self._slots.committed(component) is None and self._slots.current(component) is None:
                return Result(Event.SKIPPED, "the component is not installed")
            return Result()
        current, committed = self._slots.current(component), self._slots.committed(component)
        if current == committed == item.build and self._slots.installed(component, item.build) is not None:
            return Result(Event.SKIPPED, "the build is committed already")
        reason = self._journal.bad_builds().get(item.build)
        if reason is not None:
            message = f"{item.build} failed on this device before: {reason}"
            raise Stop("bad_build", message, event=Event.REJECTED)
        assert item.manifest_sha256 is not None
        assert item.manifest_size is not None
        path = await self._fetcher.fetch(item.manifest_sha256, item.manifest_size)
        try:
            build, manifest, _ = self._trust.open_manifest(_read(path), item.manifest_sha256)
        except TrustError as error:
            raise Stop(error.code, str(error), event=Event.REJECTED) from error
        if build != item.build:
            raise Stop("other_build", f"the manifest is that of {build}, not of {item.build}", event=Event.REJECTED)
        if self._slots.installed(component, item.build) is None:  # else it was vouched for when it came: the way back
            await self._vouch(row, manifest, item.manifest_sha256, item.manifest_size)
        return Result()

    async def _vouch(self, row: Execution, manifest: Manifest, sha256: str, size: int) -> None:
        """Wait until the signed repository has the build (wire 7.4), for as long as the execution has time."""
        assert row.item.build is not None
        pause = _RETRY_SECONDS
        while True:
            try:
                await self._voucher.vouch(manifest, row.item.build, sha256, size)
            except TrustError as error:
                if error.code in NEVER:
                    raise Stop(error.code, str(error), event=Event.REJECTED) from error
                if error.code not in WAITS:
                    raise
                self.live.why[row.component] = str(error)
                self._log.warning("build waits for its signature", build=row.item.build, reason=str(error))
            else:
                return
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_RETRY)

    async def _precheck(self, row: Execution) -> Result:
        if row.item.build is None:
            return Result()
        manifest = self._open(row)[0]
        needed = 0
        if self._slots.installed(row.component, row.item.build) is None:
            missing = {f.sha256: f.size for f in manifest.files if not self._store.has(f.sha256, f.size)}
            needed = sum(missing.values())
        verdict = precheck.check(
            manifest,
            row.model,
            self._capabilities(),
            Room(needed, self._store.free(), self._store.reserve),
        )
        if isinstance(verdict, Unfit):
            event = Event.REJECTED if verdict.lasting else Event.ERROR
            raise Stop(verdict.code, "; ".join(verdict.reasons), event=event)
        return Result(figures={"download_bytes": float(needed)})

    async def _downloading(self, row: Execution) -> Result:
        if row.item.build is None or await self._whole(row):
            return Result()
        manifest = self._open(row)[0]
        begun = time.monotonic()
        total, before = sum(f.size for f in manifest.files), 0
        try:
            for file in manifest.files:
                offset = before
                self.progress[row.component] = (offset, total)

                def tell(done: int, _size: int, offset: int = offset) -> None:
                    self.progress[row.component] = (offset + done, total)

                await self._fetcher.fetch(file.sha256, file.size, tell)
                before += file.size
        finally:
            self.progress.pop(row.component, None)
        return Result(figures={"download_seconds": round(time.monotonic() - begun, 3)})

    async def _verifying(self, row: Execution) -> Result:
        if row.item.build is None or await self._whole(row):
            return Result()
        for file in self._open(row)[0].files:
            try:
                await in_thread(functools.partial(self._store.verify, file.sha256, file.size))
            except TrustError as error:  # what was here from before has rotted; what is fetched was hashed on its way
                self._log.warning("a file is fetched again", build=row.item.build, reason=str(error))
                await self._fetcher.fetch(file.sha256, file.size)
        return Result()

    async def _staged(self, row: Execution) -> Result:
        if not self.turn.take(row.component):
            return Result(Event.WAIT, f"{self.turn.holder} is being updated")
        if await self.live.state() is None:
            return Result(Event.DEFER, "serving does not answer")
        return Result()

    async def _waiting(self, row: Execution) -> Result:
        await self.turn.wait(row.component)
        if await self.live.state() is None:
            return Result(Event.DEFER, "serving does not answer")
        return Result()

    async def _deferred(self, row: Execution) -> Result:
        self.turn.release(row.component)  # others may come first meanwhile
        await self.live.wait_for_serving()
        await self.turn.wait(row.component)
        return Result()

    async def _installing(self, row: Execution) -> Result:
        if row.item.build is None or await self._whole(row):
            return Result()
        manifest, payload, envelope = self._open(row)
        for file in manifest.files:
            await in_thread(functools.partial(self._store.verify, file.sha256, file.size))
        await in_thread(functools.partial(self._slots.install, row.component, manifest, payload, envelope, self._store))
        return Result()

    # After it is proven

    async def _committing(self, row: Execution) -> Result:
        pause = _RETRY_SECONDS
        while True:  # the build is proven and serves: there is only forward, however long the disk takes
            try:
                self._slots.commit(row.component, row.item.build)
            except AgentError as error:
                self._log.error("cannot note a proven build; trying again", build=row.item.build, reason=str(error))
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_RETRY)
            else:
                return Result()

    async def _cleanup(self, row: Execution) -> Result:
        """Best effort: what is left over now is found by the next one."""
        self.progress.pop(row.component, None)
        try:
            await self.live.unload_others(row)
            self._sweep(row)
        except AgentError as error:
            self._log.warning("clean-up is left to the next update", component=row.component, reason=str(error))
        return Result()

    def _sweep(self, row: Execution) -> None:
        """Remove the builds and blobs that nothing needs. Without a pause: nobody may begin something meanwhile."""
        keep: set[str] = set()
        others = [other for other in self._journal.unfinished() if other.id != row.id]
        mine = {other.item.build for other in others if other.component == row.component} - {None}
        self._slots.prune(row.component, {build for build in mine if build is not None})
        for other in others:
            if other.item.manifest_sha256 is not None:
                keep.add(other.item.manifest_sha256)
                try:
                    keep.update(file.sha256 for file in self._open(other)[0].files)
                except (Stop, AgentError):
                    continue  # its manifest is not here yet, so none of its files can be
        for component in self._slots.components():
            for manifest in self._slots.kept(component).values():
                keep.update(file.sha256 for file in manifest.files)
        gone = self._store.sweep(keep)
        self._log.info("cleaned up", component=row.component, blobs_removed=gone)

    # How

    def _open(self, row: Execution) -> tuple[Manifest, bytes, bytes]:
        """Return manifest, signed bytes and envelope from the store, verified again: the disk is not trusted."""
        assert row.item.manifest_sha256 is not None
        envelope = _read(self._store.path(row.item.manifest_sha256))
        build, manifest, payload = self._trust.open_manifest(envelope, row.item.manifest_sha256)
        if build != row.item.build:
            raise Stop("other_build", f"the manifest is that of {build}, not of {row.item.build}")
        return manifest, payload, envelope

    async def _whole(self, row: Execution) -> bool:
        """Return whether the build is installed already with every byte right: going back needs no download."""
        assert row.item.build is not None
        if self._slots.installed(row.component, row.item.build) is None:
            return False
        try:
            await in_thread(functools.partial(self._slots.verify, row.component, row.item.build))
        except TrustError as error:
            self._log.warning("installed build is damaged; fetching it again", build=row.item.build, reason=str(error))
            return False
        return True


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DeviceError(f"cannot read {path}: {error.strerror or error}; check the disk", "unreadable") from error
