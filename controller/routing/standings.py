"""How every device stands with every model now: what `choose.py` ranks.

Invariant: a device is found under (tenant, model) exactly while its tunnel is open, it is not draining and its last
status called that model ready; finding the eligible devices is one dictionary look-up, whatever the fleet's size.
Used by one event loop only. Does not send, does not read the database, does not decide.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from typing import Final

from wire.tunnel import ServedModel, Status

SUSPECT_SECONDS: Final = 5.0  # doubled with each further trouble
SUSPECT_MAX: Final = 60.0
FASTEST: Final = 1e-6  # seconds of one request: who claims to be faster, or slower than this …
SLOWEST: Final = 3600.0  # … has not measured anything, and must not bring down the arithmetic of the ranking
MAX_QUEUED: Final = 1_000_000
MAX_WINDOWS: Final = 10_000
_SAMPLES: Final = 256
_ENOUGH: Final = 20
_EVERY: Final = 16  # answers between two computations of the 99th percentile

_Key = tuple[str, str, str | None]


class LiveDevice:
    """What the gateway knows of one device with an open tunnel. ``last_heard``: seconds of the loop's clock."""

    __slots__ = ("device", "last_heard", "limit", "models", "outstanding", "suspect_until", "tenant", "troubles")

    def __init__(self, device: str, tenant: str, limit: int, now: float) -> None:
        self.device = device
        self.tenant = tenant
        self.limit = limit
        self.outstanding = 0
        self.suspect_until = 0.0
        self.troubles = 0
        self.last_heard = now
        self.models: dict[tuple[str, str], ModelStanding] = {}

    def suspect(self, now: float) -> None:
        """Ask this device last for a while: longer each time, until it answers again."""
        if self.suspect_until <= now:
            self.troubles += 1
        self.suspect_until = now + min(SUSPECT_SECONDS * 2 ** min(self.troubles - 1, 8), SUSPECT_MAX)

    def inherit(self, older: LiveDevice) -> None:
        """Take over how the same device stood before it connected anew: that alone proves nothing."""
        self.troubles, self.suspect_until = older.troubles, older.suspect_until

    def answered(self) -> None:
        """Note that the device has answered in time."""
        if self.troubles:
            self.troubles, self.suspect_until = 0, 0.0


class ModelStanding:
    """One device with one model; fits ``choose.Standing``."""

    __slots__ = ("live", "queued", "service", "version")

    def __init__(self, live: LiveDevice, served: ServedModel) -> None:
        self.live = live
        self.version = served.version
        self.queued = 0
        self.service: float | None = None
        self.update(served)

    def update(self, served: ServedModel) -> None:
        """Take over what the device says now; a figure that makes no sense counts as not measured."""
        self.queued = min(max(0, served.queued), MAX_QUEUED)
        p50 = served.p50_ms
        self.service = p50 / 1000 if p50 is not None and FASTEST <= p50 / 1000 <= SLOWEST else None

    @property
    def device(self) -> str:
        """The device's id."""
        return self.live.device


class Standings:
    """All devices with an open tunnel, indexed by what they can answer."""

    def __init__(self) -> None:
        self._pools: dict[_Key, _Pool] = {}
        self._windows: OrderedDict[tuple[str, str], LatencyWindow] = OrderedDict()

    def eligible(self, tenant: str, model: str, version: str | None) -> Sequence[ModelStanding]:
        """Return the ready devices; the list must not be changed nor kept across an await."""
        pool = self._pools.get((tenant, model, version))
        return pool.members if pool is not None else ()

    def p99(self, tenant: str, model: str) -> float | None:
        """Return the 99th percentile of recent answers in seconds, None when there were too few."""
        window = self._windows.get((tenant, model))
        return window.p99 if window is not None else None

    def record(self, tenant: str, model: str, seconds: float) -> None:
        """Count one answer in time."""
        key = (tenant, model)
        window = self._windows.get(key)
        if window is None:
            if len(self._windows) >= MAX_WINDOWS:
                self._windows.popitem(last=False)
            window = self._windows[key] = LatencyWindow()
        else:
            self._windows.move_to_end(key)  # the one that was used least recently makes room
        window.add(seconds)

    def apply(self, live: LiveDevice, status: Status) -> None:
        """Take over what a device says of itself: cheap when only figures changed."""
        wanted: Mapping[tuple[str, str], ServedModel] = (
            {} if status.draining else {(one.name, one.version): one for one in status.models if one.ready}
        )
        for name in [name for name in live.models if name not in wanted]:
            self._drop(live, name, live.models.pop(name))
        for name, served in wanted.items():
            standing = live.models.get(name)
            if standing is None:
                self._put(live, name, served)
            else:
                standing.update(served)

    def remove(self, live: LiveDevice) -> None:
        """Forget a device whose tunnel has closed."""
        for name, standing in live.models.items():
            self._drop(live, name, standing)
        live.models = {}

    def _put(self, live: LiveDevice, name: tuple[str, str], served: ServedModel) -> None:
        standing = live.models[name] = ModelStanding(live, served)
        for key in _keys(live, name):
            self._pools.setdefault(key, _Pool()).add(standing)

    def _drop(self, live: LiveDevice, name: tuple[str, str], standing: ModelStanding) -> None:
        for key in _keys(live, name):
            pool = self._pools[key]
            pool.discard(standing)
            if not pool.members:
                del self._pools[key]


class LatencyWindow:
    """The last answers of one model."""

    __slots__ = ("_added", "_samples", "p99")

    def __init__(self) -> None:
        self._samples: deque[float] = deque(maxlen=_SAMPLES)
        self._added = 0
        self.p99: float | None = None

    def add(self, seconds: float) -> None:
        """Count one answer; the percentile follows every few."""
        self._samples.append(seconds)
        self._added += 1
        if self._added >= _ENOUGH and self._added % _EVERY == 0:
            ordered = sorted(self._samples)
            self.p99 = ordered[math.ceil(len(ordered) * 0.99) - 1]


class _Pool:
    """A list to draw from, with constant-time removal: the last member takes the place of the removed one."""

    __slots__ = ("members", "places")

    def __init__(self) -> None:
        self.members: list[ModelStanding] = []
        self.places: dict[ModelStanding, int] = {}

    def add(self, standing: ModelStanding) -> None:
        self.places[standing] = len(self.members)
        self.members.append(standing)

    def discard(self, standing: ModelStanding) -> None:
        place = self.places.pop(standing)
        last = self.members.pop()
        if last is not standing:
            self.members[place] = last
            self.places[last] = place


def _keys(live: LiveDevice, name: tuple[str, str]) -> tuple[_Key, _Key]:
    return (live.tenant, name[0], None), (live.tenant, name[0], name[1])
