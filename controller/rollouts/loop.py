"""The loop of the rollouts: wait, read, ask the plan, do, publish.

Invariant: whatever was committed gets published, also after a crash or a broker's restart (unsent assignments are
marked in the database); one rollout that cannot be planned never stops the others. Decides nothing itself.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import structlog

from controller.database.connection import Database
from controller.errors import ControllerError, UnavailableError
from controller.rollouts import desired_store, store
from controller.rollouts.assign import RENEW_BEFORE, reissue
from controller.rollouts.effects import carry_out
from controller.rollouts.fleet_store import FleetReader
from controller.rollouts.look import fleet_of, open_rollouts, with_claims, with_executions
from controller.rollouts.model import CONCLUDED, Fleet, Rollout, Wanted
from controller.rollouts.plan import advance
from controller.rollouts.steps import Assign, Step, Withdraw
from wire.envelope import PrivateKey
from wire.topics import DESIRED, Channel

TICK: Final = 1.0  # seconds between looks when nothing happens: deadlines and soaks pass without a message
MAX_TURNS: Final = 64  # of one rollout in one pass
PUBLISH_BATCH: Final = 200
RENEW_EVERY: Final = 600.0
RENEW_BATCH: Final = 500

Publish = Callable[[Channel, str, bytes], Awaitable[Any]]

log = structlog.get_logger()


class RolloutLoop:
    """Drives all rollouts of all tenants.

    publish: sends bytes to a device, retained where the channel says so. tend_seconds: how often devices are looked
    for that came after a rollout had succeeded.
    """

    def __init__(
        self,
        database: Database,
        key: PrivateKey,
        publish: Publish,
        clock: Callable[[], float] = time.time,
        tend_seconds: float = 5.0,
    ) -> None:
        self._database = database
        self._key = key
        self._publish = publish
        self._clock = clock
        self._reader = FleetReader()
        self._tend_seconds = tend_seconds
        self._tended = -tend_seconds
        self._troubled: dict[str, str] = {}
        self._renewed = 0.0
        self._wake = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        database.subscribe(self.wake)

    def wake(self) -> None:
        """Look again soon. May be called from any thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake.set)

    async def run(self) -> None:
        """Work until cancelled."""
        self._loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            began = time.monotonic()
            try:
                await self.turn()
            except UnavailableError as error:
                log.warning("rollouts could not be looked at", error=str(error))
            # Leave the processor to others: during a large rollout every report is a reason to look again.
            await asyncio.sleep(min(TICK, 0.02 + 2 * (time.monotonic() - began)))
            try:
                await asyncio.wait_for(self._wake.wait(), TICK)
            except TimeoutError:
                continue

    async def turn(self) -> None:
        """Look once at everything, do what is due, and publish what is unsent. Raises UnavailableError."""
        await asyncio.to_thread(self._plan_all)
        await self._publish_unsent()

    async def republish_all(self) -> None:
        """Send every device's newest assignment again: the broker may have lost what it retained."""
        await asyncio.to_thread(self._forget_published)
        self.wake()

    def _forget_published(self) -> None:
        with self._database.begin() as connection:
            desired_store.publish_all_again(connection)

    def _plan_all(self) -> None:
        if not 0 <= self._clock() - self._renewed < RENEW_EVERY:  # below 0 the clock was put back
            self._renew(self._clock())
        with self._database.read() as connection:
            found, unreadable = open_rollouts(connection)
        for rollout, error in unreadable.items():
            self._mark(rollout, error)
        tending = time.monotonic() - self._tended >= self._tend_seconds
        for tenant in dict.fromkeys(each.tenant for each in found):
            of_tenant = [each for each in found if each.tenant == tenant]
            if tending or any(_under_way(rollout) for rollout in of_tenant):
                self._plan_tenant(tenant, of_tenant)
        if tending:
            self._tended = time.monotonic()

    def _plan_tenant(self, tenant: str, rollouts: Sequence[Rollout]) -> None:
        fleet: Fleet | None = None
        for rollout in rollouts:
            try:
                for _ in range(MAX_TURNS):
                    now = self._clock()
                    with self._database.read() as connection:
                        fleet = fleet or fleet_of(connection, self._reader, tenant, rollouts, now)
                        current = with_executions(connection, rollout)
                    steps = advance(current, with_claims(fleet, current, rollouts), now)
                    if not steps:
                        break
                    self._carry_out(current, steps, now)
                    if any(isinstance(step, Assign | Withdraw) for step in steps):
                        fleet = None  # what others may take has changed
            except UnavailableError:
                raise  # the database is away for all of them
            except Exception as error:
                self._mark(rollout.id, error)
            else:
                self._troubled.pop(rollout.id, None)

    def _carry_out(self, rollout: Rollout, steps: Sequence[Step], now: float) -> None:
        with self._database.begin() as connection:
            row = store.find_rollout(connection, rollout.tenant, rollout.id)
            if row is None or (row.state, row.wanted) != (rollout.state, rollout.wanted):
                return  # an operator was quicker: the next turn looks again
            carry_out(connection, rollout, steps, key=self._key, new_id=new_id, now=now)
        kinds = Counter(type(step).__name__ for step in steps)
        log.info("rollout advanced", rollout=rollout.id, **kinds)

    def _mark(self, rollout: str, error: Exception) -> None:
        words = f"could not be planned: {error}"[:500]
        if self._troubled.get(rollout) == words:
            return
        self._troubled[rollout] = words
        log.error("a rollout could not be planned", rollout=rollout, exc_info=error)
        try:
            with self._database.begin() as connection:
                store.mark_trouble(connection, rollout, words, self._clock())
        except ControllerError as trouble:
            log.warning("the trouble could not be noted", rollout=rollout, error=str(trouble))

    def _renew(self, now: float) -> None:
        while True:
            with self._database.begin() as connection:
                devices = desired_store.expiring(connection, now + RENEW_BEFORE, RENEW_BATCH)
                reissued = reissue(connection, devices, self._key, now)
            if reissued < RENEW_BATCH:
                break
        self._renewed = now

    async def _publish_unsent(self) -> None:
        while True:
            waiting = await asyncio.to_thread(self._unsent)
            outcomes = await asyncio.gather(
                *(self._publish(DESIRED, device, envelope) for device, _, envelope in waiting), return_exceptions=True
            )
            results = zip(waiting, outcomes, strict=True)
            sent = [(entry[0], entry[1]) for entry, outcome in results if not isinstance(outcome, BaseException)]
            troubles = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
            if troubles:
                log.warning("assignments wait to be sent", waiting=len(troubles), error=str(troubles[0]))
            if sent:
                await asyncio.to_thread(self._mark_sent, sent)
            if len(sent) < PUBLISH_BATCH:
                return

    def _unsent(self) -> list[tuple[str, int, bytes]]:
        with self._database.read() as connection:
            return desired_store.unpublished(connection, PUBLISH_BATCH)

    def _mark_sent(self, sent: Sequence[tuple[str, int]]) -> None:
        with self._database.begin() as connection:
            desired_store.mark_published(connection, sent, self._clock())


def _under_way(rollout: Rollout) -> bool:
    return rollout.state not in CONCLUDED or rollout.wanted is Wanted.ROLLBACK


def new_id(prefix: str) -> str:
    """Return a fresh id."""
    return f"{prefix}-{secrets.token_hex(12)}"
