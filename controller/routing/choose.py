"""Which devices shall answer a request, best first.

Invariant: only devices that the view calls ready for the tenant's model appear; a suspect never stands before a
healthy device, and a full one never before either. The cost does not grow with the fleet: of many devices a few are
drawn and the best of them taken, because the queue of the best of eight random devices is nearly as short as the
shortest of all. Does not send anything, does not know tunnels, and does not decide how long to wait (`attempt.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Final, Protocol

import msgspec

UNMEASURED: Final = 0.001  # seconds of one request, where no device has measured itself
_HEALTHY, _SUSPECT, _FULL = 0, 1, 2
_ORDER: Final = itemgetter(0, 1, 2, 3)
_Row = tuple[int, int, int, float, float, "Standing"]  # tier, class of delay, work, chance, score


class Load(Protocol):
    """How busy one device is, with all its models together. Times are seconds."""

    @property
    def device(self) -> str:
        """The device's id."""

    @property
    def outstanding(self) -> int:
        """Requests sent to this device that have no answer yet."""

    @property
    def limit(self) -> int:
        """How many may be outstanding at once."""

    @property
    def suspect_until(self) -> float:
        """Until when the device is to be asked last; 0 for a healthy one."""


class Standing(Protocol):
    """How one device stands with one model, now."""

    @property
    def live(self) -> Load:
        """The device itself."""

    @property
    def queued(self) -> int:
        """Requests waiting in the device's own queue, as it last said."""

    @property
    def service(self) -> float | None:
        """Median seconds of one request by the device's own clock, None before it has measured."""


class View(Protocol):
    """What ``rank`` needs to know of the fleet."""

    def eligible(self, tenant: str, model: str, version: str | None) -> Sequence[Standing]:
        """Return the ready devices of ``tenant`` for ``model``; without a scan of the fleet."""

    def p99(self, tenant: str, model: str) -> float | None:
        """Return the 99th percentile of recent answers in seconds, None when there were too few."""


class Rng(Protocol):
    """Where chance comes from: `random.Random` fits."""

    def random(self) -> float:
        """Return a number from 0 up to, but not including, 1."""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked. ``version`` None: any version that is ready. ``now``: seconds, the view's clock."""

    tenant: str
    model: str
    version: str | None
    now: float


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """drawn: devices looked at; kept: of many devices, how many are returned; searched: how many more are looked at
    when all drawn are suspect or full; explored: the share of requests, at most, that a device gets first which looks
    slower, so that one which has become fast is found out; exploring_cost: by how much of the expected delay this may
    lengthen it, on average."""

    drawn: int = 8
    kept: int = 5
    searched: int = 64
    explored: float = 1 / 128  # below one in a hundred: the 99th percentile does not notice
    exploring_cost: float = 0.02


class Candidate(msgspec.Struct, frozen=True, gc=False):
    """One device and how it scored: ``score`` is the expected seconds until an answer, lower is better. ``p99``:
    seconds, of the model. ``full``: at its limit, must not be asked.
    """

    device: str
    score: float
    outstanding: int
    queued: int
    suspect: bool
    full: bool
    p99: float | None
    explored: bool = False

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the device stands where it does, in words."""
        words = [f"{self.outstanding} outstanding, {self.queued} queued", f"score {self.score:.4g}"]
        if self.suspect:
            words.append("suspect: it was silent or too slow a short while ago")
        if self.full:
            words.append("full: it has as many requests as it may have")
        if self.explored:
            words.append("first although another looks faster: whether it still is slow shows only when it is asked")
        return tuple(words)


def rank(request: Request, view: View, policy: Policy, rng: Rng) -> tuple[Candidate, ...]:
    """Return candidates, best first: all of few devices, ``policy.kept`` of many; empty when no device is ready.

    The order: healthy before suspect before full; then the expected delay (work in hand times the device's own
    median) in classes that double, so that small differences in speed do not send everything to one device; then
    the work in hand; then chance. Once in a while a healthy device of a slower class comes first (``policy.explored``).
    """
    standings = view.eligible(request.tenant, request.model, request.version)
    count = len(standings)
    if count == 0:
        return ()
    draw, now = rng.random, request.now
    if count <= policy.drawn:
        rows = _weigh(standings, now, draw)
    else:
        drawn = [standings[index] for index in {int(draw() * count) for _ in range(policy.drawn)}]
        rows = _weigh(drawn, now, draw)
        if rows[0][0] != _HEALTHY:
            start = int(draw() * count)
            healthy = _search(standings, now, start, min(policy.searched, count))
            rows = _weigh([*drawn, *healthy], now, draw) if healthy else rows
        del rows[policy.kept :]
    explored = len(rows) > 1 and draw() < policy.explored and _explore(rows, policy, draw)
    p99 = view.p99(request.tenant, request.model)
    candidates: list[Candidate] = []
    for tier, _, _, _, score, standing in rows:
        live = standing.live
        suspect, first = live.suspect_until > now, explored and not candidates
        candidates.append(
            Candidate(live.device, score, live.outstanding, standing.queued, suspect, tier == _FULL, p99, first)
        )
    return tuple(candidates)


def _weigh(standings: Sequence[Standing], now: float, draw: Callable[[], float]) -> list[_Row]:
    """Return a row for each of ``standings``, best first."""
    known = [pace for standing in standings if (pace := standing.service) is not None]
    usual = sum(known) / len(known) if known else UNMEASURED
    works, scores = [], []
    for standing in standings:
        outstanding, queued, pace = standing.live.outstanding, standing.queued, standing.service
        work = (outstanding if outstanding > queued else queued) + 1
        works.append(work)
        scores.append(work * (usual if pace is None else pace))
    best = min(scores)
    rows = []
    for standing, work, score in zip(standings, works, scores, strict=True):
        live = standing.live
        tier = _FULL if live.outstanding >= live.limit else _SUSPECT if live.suspect_until > now else _HEALTHY
        rows.append((tier, int(score / best).bit_length(), work, draw(), score, standing))
    rows.sort(key=_ORDER)
    return rows


def _explore(rows: list[_Row], policy: Policy, draw: Callable[[], float]) -> bool:
    """Put a healthy device of a slower class first, unless that would cost too much; return whether it was done."""
    tier, usual, _, _, score, _ = rows[0]
    slower = [place for place, row in enumerate(rows) if row[0] == tier == _HEALTHY and row[1] > usual]
    if not slower:
        return False
    place = slower[int(draw() * len(slower))]
    longer = rows[place][4] / score - 1  # above 0: it is of a slower class
    if draw() * policy.explored * longer >= policy.exploring_cost:
        return False
    rows.insert(0, rows.pop(place))
    return True


def _search(standings: Sequence[Standing], now: float, start: int, steps: int) -> list[Standing]:
    """Return the first healthy one of the ``steps`` devices from ``start`` on, if there is one."""
    count = len(standings)
    for offset in range(steps):
        standing = standings[(start + offset) % count]
        live = standing.live
        if live.suspect_until <= now and live.outstanding < live.limit:
            return [standing]
    return []
