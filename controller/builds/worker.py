"""The builder: fetches jobs from the API, makes builds, signs them and hands them over.

Invariant: it holds the key that vouches for builds and speaks to the rest only through the HTTP API. A job is worked on
while its lease is ours: signs of life renew it, and when another attempt holds it the work is dropped. Stopping ends
the running step and gives the job back; when that cannot be told, the lease runs out. Does not decide anything about
builds.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

from controller.builds.api import BuilderApi, Job
from controller.builds.child import StepError
from controller.builds.make import Made, Order, describe, make
from controller.builds.publish import Entry, Vouching
from controller.builds.recipe import Optimization
from controller.builds.sign import BuilderKey, builder_key, predecessors
from controller.errors import ConflictError, ControllerError, UnavailableError
from controller.trust import layout
from wire.envelope import PublicKey

IDLE_SECONDS: Final = 1.0
FIRST_RETRY, LONGEST_RETRY = 0.5, 30.0
SIGNS_OF_LIFE: Final = 4  # in the time of one lease
GOODBYE_SECONDS: Final = 3.0
RESULT_SECONDS: Final = 600.0
RENEW_SECONDS: Final = 3600.0  # between two looks at what this builder signed and must sign again

log = structlog.get_logger()


async def run_builder(*, api_url: str, ca_file: Path, token: str, data: Path, stop: asyncio.Event) -> None:
    """Work on jobs until ``stop`` is set. ``data``: the directory that holds the builder's key and its working files.

    Raises InvalidError or UnavailableError when it cannot even start (key, CA file, directory).
    """
    key, earlier = builder_key(data), predecessors(data)
    work = data / "builder" / "work"
    shutil.rmtree(work, ignore_errors=True)  # of a builder that was killed
    work.mkdir(parents=True)
    log.info("builder started", key=key.id, api=api_url)
    async with BuilderApi(api_url, ca_file, token) as api:
        retry, renew_at = FIRST_RETRY, time.monotonic()
        while not stop.is_set():
            try:
                job = await api.lease()
            except ControllerError as error:
                log.warning("no job could be fetched", error=str(error), code=error.code, retry_seconds=retry)
                await _pause(stop, retry)
                retry = min(LONGEST_RETRY, 2 * retry)
                continue
            retry = FIRST_RETRY
            if job is None:
                if time.monotonic() >= renew_at:
                    await _renew(api, key, earlier)
                    renew_at = time.monotonic() + RENEW_SECONDS
                await _pause(stop, IDLE_SECONDS)
                continue
            directory = work / f"{job.id}-{job.attempt}"
            try:
                await _Attempt(api, key, earlier, job, directory, stop).run()
            finally:
                await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)
    log.info("builder stopped")


async def _renew(api: BuilderApi, key: BuilderKey, earlier: list[PublicKey]) -> None:
    """Sign again what this builder vouches for, before it expires: then devices would take none of it any more."""
    try:
        repository = await api.repository()
        for role in repository.roles:
            if role.role in layout.TOP or layout.profile_of_bin(role.role) is not None:
                continue
            if await Vouching(api, key, earlier).renew(repository.tenant, role.role, time.time()):
                log.info("signed again", role=role.role)
    except ControllerError as error:
        log.warning("what was vouched for could not be signed again", error=str(error), code=error.code)


class _Attempt:
    """One attempt at one job."""

    def __init__(
        self,
        api: BuilderApi,
        key: BuilderKey,
        earlier: list[PublicKey],
        job: Job,
        directory: Path,
        stop: asyncio.Event,
    ) -> None:
        self._api, self._key, self._earlier = api, key, earlier
        self._job, self._directory, self._stop = job, directory, stop
        self._doing = "starting"
        self._lost = asyncio.Event()
        self._log = log.bind(job=job.id, attempt=job.attempt, model=job.model, version=job.version)

    async def run(self) -> None:
        """Work until there is a result, the job is lost, or the builder is stopped."""
        self._log.info("job taken", target=self._job.target)
        work = asyncio.create_task(self._work())
        others = [asyncio.create_task(event.wait()) for event in (self._stop, self._lost)]
        signs = asyncio.create_task(self._show_life())
        try:
            await asyncio.wait([work, *others], return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                await _end(work)
                self._log.info("job dropped", doing=self._doing, stopping=self._stop.is_set())
                if not self._lost.is_set():
                    await self._give_back({"error": "the builder was stopped", "stopped": True})
                return
            await self._tell(work.result())
        finally:
            for task in (work, signs, *others):
                await _end(task)

    async def _work(self) -> dict[str, Any]:
        """Return what to tell the API: candidates, or an error."""
        try:
            self._directory.mkdir(parents=True)
            await self._say("downloading the model and its data")
            source, data = self._directory / "source.onnx", self._directory / "data.npz"
            await self._insist(lambda: self._api.download(self._job.source_sha256, source))
            await self._insist(lambda: self._api.download(self._job.data_sha256, data))
            order = _order(self._job)
            made = await make(
                *(order, source, data, self._directory, self._key, self._say),
                now=time.time(),
                seed=int(self._job.id[:8], 16),
            )
            await self._say("uploading")
            candidates = [await self._hand_over(one) for one in made]
            await self._say("vouching")
            await self._insist(lambda: self._vouch(made))
            return {"candidates": candidates}
        except StepError as error:
            self._log.warning("job failed", error=str(error), permanent=error.permanent)
            return {"error": str(error)[:4000], "permanent": error.permanent}
        except (ControllerError, OSError) as error:
            self._log.warning("job failed", error=str(error))
            return {"error": f"{self._doing}: {error}"[:4000]}
        except Exception as error:  # one odd job must not end the builder; the log has the traceback
            self._log.exception("job failed unexpectedly")
            return {"error": f"{self._doing}: {type(error).__name__}: {error}"[:4000]}

    async def _hand_over(self, made: Made) -> dict[str, Any]:
        manifest = None
        if made.sealed is not None:
            for path in (made.model, made.golden):
                sha256 = (await asyncio.to_thread(describe, path, path.name, "data")).sha256
                await self._insist(lambda sha256=sha256, path=path: self._api.upload(sha256, path))  # type: ignore[misc]
            envelope = made.sealed.envelope
            manifest = hashlib.sha256(envelope).hexdigest()
            await self._insist(lambda: self._api.upload(manifest, envelope))
        return {
            "precision": made.precision,
            "verdict": made.verdict,
            "target": msgspec.to_builtins(made.target),
            "figures": msgspec.to_builtins(made.figures),
            "reasons": list(made.reasons),
            "manifest_sha256": manifest,
        }

    async def _vouch(self, made: list[Made]) -> None:
        """Before a build can be assigned the repository has it, so that no device is sent one that it must refuse."""
        entries = [
            Entry(
                profile=one.target.profile,
                model=self._job.model,
                build=one.sealed.build,
                envelope=one.sealed.envelope,
                custom={"version": self._job.version, "precision": one.precision, "size": one.figures.size_bytes},
            )
            for one in made
            if one.sealed is not None
        ]
        for profile in sorted({entry.profile for entry in entries}):
            mine = [entry for entry in entries if entry.profile == profile]
            await Vouching(self._api, self._key, self._earlier).add(self._job.tenant, profile, mine, time.time())

    async def _tell(self, result: dict[str, Any]) -> None:
        try:
            await self._insist(lambda: self._api.result(self._job, result))
        except ControllerError as error:
            self._log.warning("the result was not taken", error=str(error), code=error.code)
            if "candidates" in result and not isinstance(error, ConflictError | UnavailableError):
                await self._give_back({"error": f"the controller refused the result: {error}"[:4000]})
        else:
            self._log.info("job finished", result="failed" if "error" in result else "done")

    async def _say(self, text: str) -> None:
        """Tell progress; that the API is away is no reason to stop working."""
        self._doing = text
        try:
            await self._api.progress(self._job, text)
        except ConflictError:
            self._lost.set()
        except ControllerError as error:
            self._log.info("progress was not taken", error=str(error))

    async def _show_life(self) -> None:
        while True:
            await asyncio.sleep(self._job.lease_seconds / SIGNS_OF_LIFE)
            await self._say(self._doing)

    async def _give_back(self, result: dict[str, Any]) -> None:
        with contextlib.suppress(ControllerError, TimeoutError):
            async with asyncio.timeout(GOODBYE_SECONDS):
                await self._api.result(self._job, result)

    async def _insist(self, call: Callable[[], Awaitable[None]]) -> None:
        """Do ``call`` again while the controller is away, for some minutes. Raises what it raises after that."""
        until, retry = time.monotonic() + RESULT_SECONDS, FIRST_RETRY
        while True:
            try:
                return await call()
            except UnavailableError as error:
                if time.monotonic() + retry > until or self._stop.is_set():
                    raise
                self._log.info("the controller is away", error=str(error), retry_seconds=retry)
            await _pause(self._stop, retry)
            retry = min(LONGEST_RETRY, 2 * retry)


def _order(job: Job) -> Order:
    try:
        return Order(
            tenant=job.tenant,
            model=job.model,
            version=job.version,
            profile=str(job.target["profile"]),
            arch=tuple(str(name) for name in job.target["arch"]),
            optimization=Optimization(job.target["optimization"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise StepError(f"the job's target is not understood: {error}", permanent=True) from error


async def _pause(stop: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stop.wait()


async def _end(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("a part of the builder failed unexpectedly", exc_info=error)
