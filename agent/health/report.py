"""The health report: samples of the sensors and of the served builds, as windows, once each interval.

Invariant: a report goes out once for each window, with what could be read; neither a silent serving process, a full
disk nor a failing sensor ends the reporting. Counts of requests and errors are those that happened in the window, also
over a restart of either process. Decides nothing and sends nothing itself: it hands messages to ``put``.

Series (labels): ``load`` · ``memory_available_bytes`` · ``disk_free_bytes`` · ``temperature_celsius`` (zone) ·
``throttling`` (cause; 1 while it holds) · ``process_cpu``, ``process_rss_bytes``, ``process_pss_bytes`` (process) ·
``serving_up`` · and with the labels model, version, build: ``serving_requests``, ``serving_errors`` (each sample is
what was added since the sample before: their totals are the window's counts), ``serving_queued``, ``serving_p50_ms``,
``serving_p95_ms``, ``serving_p99_ms`` · ``health_dropped`` (samples left out for lack of room).
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

import structlog

from agent.errors import AgentError
from agent.health.sensors import THROTTLING, Readings, Sensors
from agent.health.window import Windows
from agent.serving_protocol import LoadedBuild, ServingState
from wire.messages import Health, Sequenced, Window

SAMPLES: Final = 5  # a window, as far as a second between samples allows
MAX_BUILDS: Final = 32  # whose series are reported: six each, within one window's bound
_SHORTEST: Final = 1.0

_log = structlog.get_logger()


class Put(Protocol):
    """``agent.link.outbox.Outbox.put``."""

    def __call__(self, message_type: type[Sequenced], fields: dict[str, Any], key: str) -> None: ...


class Counts:
    """Turns counts since a build was loaded into counts since the previous sample."""

    def __init__(self) -> None:
        self._process: tuple[int, float] | None = None
        self._seen: dict[str, tuple[int, int]] = {}

    def added(self, state: ServingState) -> list[tuple[LoadedBuild, int, int]]:
        """Return each build of ``state`` with the requests and errors that are new since the call before.

        What a serving process counted before it was first seen here is old; what a later one counted is new.
        """
        process = (state.pid, state.started)
        first = self._process is None
        if process != self._process:
            self._seen.clear()
        rows: list[tuple[LoadedBuild, int, int]] = []
        seen: dict[str, tuple[int, int]] = {}
        for build in state.builds[:MAX_BUILDS]:
            name = f"{build.model}/{build.build}"
            requests, errors = (build.requests, build.errors) if first else self._seen.get(name, (0, 0))
            if build.requests < requests or build.errors < errors:  # loaded anew: it counts from zero
                requests, errors = 0, 0
            seen[name] = (build.requests, build.errors)
            rows.append((build, build.requests - requests, build.errors - errors))
        self._process, self._seen = process, seen
        return rows


class Reporter:
    """Samples, and puts one Health message for each window that is over.

    interval: the window's length in seconds. serving: asks the serving process, raises an AgentError when it is away.
    clock: seconds since 1970; monotonic: seconds that only go forward.
    """

    def __init__(
        self,
        *,
        interval: float,
        sensors: Sensors,
        serving: Callable[[], Awaitable[ServingState]],
        put: Put,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pause = min(interval, max(_SHORTEST, interval / SAMPLES))
        self._sensors = sensors
        self._serving = serving
        self._put = put
        self._clock = clock
        self._monotonic = monotonic
        self._windows = Windows(interval)
        self._counts = Counts()
        self._reported_dropped = 0
        # Keys must differ from those of the agent's earlier lives, which may have reported the same span of time.
        self._life = secrets.token_hex(8)
        self._number = self._samples = 0

    async def run(self) -> None:
        """Sample and report until cancelled."""
        while True:
            await self.sample()
            await self.report()
            await asyncio.sleep(self._pause)

    async def sample(self) -> None:
        """Take one sample of everything into the running window."""
        processes = {"agent": os.getpid()}
        state: ServingState | None = None
        try:
            state = await self._serving()
            processes["serving"] = state.pid
        except AgentError as error:
            _log.debug("serving does not tell its state", error=str(error))
        # In a thread: a sensor behind a slow bus must not hold up the link.
        # The dearest reading is taken once a window: memory moves slowly.
        pss = self._samples % SAMPLES == 0
        self._samples += 1
        readings = await asyncio.to_thread(self._sensors.read, processes, self._monotonic(), pss=pss)
        now = self._clock()
        self._add_readings(readings, now)
        self._windows.add("serving_up", 0.0 if state is None else 1.0, now)
        if state is not None:
            self._add_builds(state, now)
        dropped, self._reported_dropped = self._windows.dropped - self._reported_dropped, self._windows.dropped
        if dropped:
            self._windows.add("health_dropped", dropped, now)

    async def report(self) -> None:
        """Put the windows that are over, if there are any."""
        windows = self._windows.take(self._clock())
        if not windows:
            return
        self._number += 1
        fields: dict[str, list[Window]] = {"windows": list(windows)}
        try:
            # In a thread: a write that is synced to an SD card may take a while.
            await asyncio.to_thread(self._put, Health, fields, f"health-{self._life}-{self._number}")
        except AgentError as error:
            _log.warning("health report lost", windows=len(windows), error=str(error), code=error.code)

    def _add_readings(self, readings: Readings, now: float) -> None:
        self._add("load", readings.load, now)
        self._add("memory_available_bytes", readings.memory_available, now)
        self._add("disk_free_bytes", readings.disk_free, now)
        self._add("temperature_celsius", readings.temperature, now, {"zone": readings.temperature_zone or ""})
        if readings.throttling is not None:
            for cause in THROTTLING:
                self._add("throttling", float(cause in readings.throttling.now), now, {"cause": cause})
        for name, process in readings.processes.items():
            labels = {"process": name}
            self._add("process_cpu", process.cpu, now, labels)
            self._add("process_rss_bytes", process.rss, now, labels)
            self._add("process_pss_bytes", process.pss, now, labels)

    def _add_builds(self, state: ServingState, now: float) -> None:
        for build, requests, errors in self._counts.added(state):
            labels = {"model": build.model, "version": build.version, "build": build.build}
            self._add("serving_requests", requests, now, labels)
            self._add("serving_errors", errors, now, labels)
            self._add("serving_queued", build.queued, now, labels)
            self._add("serving_p50_ms", build.p50_ms, now, labels)
            self._add("serving_p95_ms", build.p95_ms, now, labels)
            self._add("serving_p99_ms", build.p99_ms, now, labels)

    def _add(self, name: str, value: float | None, now: float, labels: dict[str, str] | None = None) -> None:
        if value is not None:
            self._windows.add(name, value, now, labels)
