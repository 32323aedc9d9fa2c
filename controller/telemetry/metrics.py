"""The controller's figures as Prometheus text.

Invariant: read when asked, from what is stored; a registry of its own for each answer, so nothing is global and one
tenant never sees another's devices. Message counts are the whole controller's and name no device.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from controller.database.connection import Database
from controller.devices.presence import PresenceState
from controller.telemetry import store

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4


def exposition(database: Database, tenant: str, messages: Mapping[str, int], now: float) -> bytes:
    """Return the metrics of ``tenant``. ``messages``: how many had which fate since the start, by its name."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Figures(database, tenant, messages, now))
    return generate_latest(registry)


class _Figures(Collector):
    def __init__(self, database: Database, tenant: str, messages: Mapping[str, int], now: float) -> None:
        self._database = database
        self._tenant = tenant
        self._messages = messages
        self._now = now

    def collect(self) -> Iterator[Metric]:
        with self._database.read() as connection:
            presence = store.devices_by_presence(connection, self._tenant, self._now)
            rollouts = store.rollouts_by_state(connection, self._tenant)
            executions = store.executions_by_state(connection, self._tenant)
        here = {state.value: presence.get(state.value, 0) for state in PresenceState}
        yield _gauge("muster_devices", "Devices by presence.", "presence", here)
        yield _gauge("muster_rollouts", "Rollouts by state.", "state", rollouts)
        yield _gauge("muster_executions", "Executions by state.", "state", executions)
        family = CounterMetricFamily(
            "muster_messages", "Messages from devices since the start, by their fate.", labels=["fate"]
        )
        for fate, count in sorted(self._messages.items()):
            family.add_metric([fate], count)
        yield family


def _gauge(name: str, text: str, label: str, values: Mapping[str, int]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=[label])
    for value, count in sorted(values.items()):
        family.add_metric([value], count)
    return family
