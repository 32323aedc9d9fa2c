"""Samples each tenant's fleet every ten seconds into the series, and lets go of vitals that do not hold any more.

Invariant: a sample that cannot be stored is left out and never ends the sampling. Sums up nothing itself
(`fleet_series.py`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog

from controller.database.connection import Database
from controller.devices import list_store
from controller.errors import UnavailableError
from controller.telemetry.fleet_series import STEP, samples
from controller.telemetry.series import Series
from controller.telemetry.vitals import LatestVitals

log = structlog.get_logger()


class FleetSampler:
    """``run`` samples until cancelled."""

    def __init__(
        self, database: Database, series: Series, latest: LatestVitals, clock: Callable[[], float] = time.time
    ) -> None:
        self._database = database
        self._series = series
        self._latest = latest
        self._clock = clock

    async def run(self) -> None:
        """Sample at each whole ten seconds."""
        while True:
            await asyncio.sleep(STEP - self._clock() % STEP)
            try:
                await asyncio.to_thread(self.sample)
            except UnavailableError as error:
                log.warning("the fleet could not be sampled", error=str(error))

    def sample(self) -> None:
        """Store one sample of each tenant's fleet. Raises UnavailableError."""
        now = self._clock()
        with self._database.read() as connection:
            tenants = list_store.ids_by_tenant(connection)
        for key, windows in samples(tenants, self._latest, now, now - now % STEP):
            self._series.add(key, windows, now)
        self._latest.forget_old(now)
