"""Updates of one device: takes assignments, walks each component through the machine, reports every transition.

Invariant: a transition is on the disk before its work begins; components do not wait for each other but for their turn;
a wish to cancel or supersede is honoured within five seconds wherever the machine has a row for it. What cannot be
written down does not happen: then this loop waits, and what serves goes on serving. Decides nothing (`machine.py`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import structlog

from agent.builds.slots import Slots
from agent.builds.store import Store
from agent.errors import AgentError, DeviceError
from agent.updates import machine
from agent.updates.effects import MAY_HOLD_TURN, Effects
from agent.updates.journal import Execution, Journal
from agent.updates.live import Live
from agent.updates.machine import Event
from agent.updates.precheck import Capabilities
from agent.updates.seams import Acked, Fetches, Result, Serving, Stop, Trial, Trusts, Vouches
from wire.assignment import Assignment, Policy
from wire.execution import TERMINAL, ExecutionState
from wire.messages import Fault, ReportedItem

S = ExecutionState
Report = Callable[[dict[str, Any], str], None]

JOURNAL_NAME: Final = "updates.db"
STOP_SECONDS: Final = 5.0  # how long a state's work may take to stop
SPEND_SECONDS: Final = 60.0  # between two notes of how long a state has taken
_BACK_SECONDS: Final = 60.0
_RETRY_SECONDS: Final = 1.0
_LONGEST_RETRY: Final = 30.0


def deadline(state: ExecutionState, policy: Policy) -> float | None:
    """Return how many seconds ``state`` may take, None for as long as it takes."""
    if state in (S.OFFERED, S.DOWNLOADING, S.STAGED, S.WAITING, S.DEFERRED):
        return policy.download_deadline
    if state in (S.PRECHECK, S.VERIFYING, S.INSTALLING, S.WARMING, S.ACTIVATING):
        return policy.install_deadline
    if state is S.PROBATION:
        return max(policy.probation_deadline, policy.probation + _BACK_SECONDS)
    if state in machine.BACK or state is S.CLEANUP:
        return _BACK_SECONDS
    return None


class Updates:
    """The updates of one device. ``report`` puts a report into the outbox, exactly once by its key.

    on_change: called after every transition, when ``reported_items`` has something new to say.
    """

    def __init__(
        self,
        journal: Journal,
        slots: Slots,
        effects: Effects,
        report: Report,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._journal = journal
        self._slots = slots
        self._effects = effects
        self._report = report
        self.on_change = on_change
        self._log = structlog.get_logger()
        self._group: asyncio.TaskGroup | None = None
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._wishes: dict[str, asyncio.Event] = {}
        self._unreported = asyncio.Event()

    @classmethod
    def open(
        cls,
        data: Path,
        *,
        store: Store,
        fetcher: Fetches,
        trust: Trusts,
        voucher: Vouches,
        serving: Serving,
        trial: Trial,
        acked: Acked,
        capabilities: Callable[[], Capabilities],
        report: Report,
        on_change: Callable[[], None] = lambda: None,
        tick: float = 1.0,
        now: Callable[[], float] = time.time,
    ) -> Updates:
        """Return the updates of the device whose data directory is ``data``. Raises DeviceError.

        tick: seconds between two looks at serving during a probation.
        """
        slots = Slots(data / "builds")
        journal = Journal(data / JOURNAL_NAME, now)
        live = Live(journal=journal, slots=slots, serving=serving, trial=trial, acked=acked, tick=tick)
        effects = Effects(
            journal=journal,
            slots=slots,
            store=store,
            fetcher=fetcher,
            trust=trust,
            voucher=voucher,
            live=live,
            capabilities=capabilities,
        )
        return cls(journal, slots, effects, report, on_change)

    @property
    def position(self) -> tuple[int, int]:
        """The (epoch, number) of the newest assignment taken, for ``wire.assignment.judge``."""
        return self._journal.position()

    def offer(self, assignment: Assignment) -> None:
        """Take an assignment that was opened and judged. Offered twice is offered once. Raises DeviceError.

        A newer generation of a component supersedes what runs for it; a component that is no longer named is canceled,
        and what is committed of it stays.
        """
        position = (assignment.epoch, assignment.number)
        fresh, wishes = [], []
        unfinished = self._journal.unfinished()
        for item in assignment.items:
            newest = self._journal.newest(item.component)
            if newest is not None and (newest.epoch, newest.generation) >= (assignment.epoch, item.generation):
                continue
            if newest is not None and (newest.execution, newest.generation) == (item.execution, item.generation):
                continue  # a new epoch, and nothing new for this component
            fresh.append(item)
            wishes += [(row.id, S.SUPERSEDED) for row in unfinished if row.component == item.component]
        named = {item.component for item in assignment.items}
        wishes += [(row.id, S.CANCELED) for row in unfinished if row.component not in named]
        if position == self._journal.position() and not fresh and not wishes:
            return
        self._journal.take(position, fresh, wishes)
        self._log.info(
            "assignment taken", epoch=assignment.epoch, number=assignment.number, new=[i.component for i in fresh]
        )
        for component in sorted({row.component for row in unfinished} | {item.component for item in fresh}):
            self._nudge(component)
        self.on_change()

    def cancel(self, component: str) -> None:
        """Withdraw whatever runs for ``component``, where the machine still honours it. Raises DeviceError."""
        for row in self._journal.unfinished(component):
            self._journal.wish(row, S.CANCELED)
        self._nudge(component)

    async def run(self) -> None:
        """Bring about what was taken, until cancelled. Raises DeviceError when the journal breaks underneath."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                self._resume()
                group.create_task(self._drain_reports(), name="updates-reports")
                group.create_task(self._restore_at_start(), name="updates-restore")
                for component in sorted({row.component for row in self._journal.unfinished()}):
                    self._nudge(component)
        finally:
            self._group = None
            self._tasks.clear()

    async def restore(self) -> list[str]:
        """Make serving run what is committed, after it restarted. Returns the components that could not be restored.

        Raises AgentError when serving does not answer.
        """
        return await self._effects.live.restore()

    def reported_items(self) -> list[ReportedItem]:
        """Return every component as it stands: what requests go to, and how far its newest work is."""
        found = []
        for component in sorted({*self._slots.components(), *self._journal.components()}):
            running = self._journal.unfinished(component)
            row = running[0] if running else self._journal.newest(component)
            build = self._slots.current(component)
            if row is None and build is None:
                continue
            found.append(
                ReportedItem(
                    component=component,
                    generation=row.generation if row is not None else 0,
                    build=build,
                    state=row.state.value if row is not None else S.SUCCEEDED.value,
                    since=row.since if row is not None else 0.0,
                )
            )
        return found[:256]

    def progress(self) -> dict[str, tuple[int, int]]:
        """Return for each component that is being downloaded how many bytes of how many are here."""
        return dict(self._effects.progress)

    def close(self) -> None:
        """Close the journal. Only when ``run`` has ended."""
        self._journal.close()

    # One component

    def _resume(self) -> None:
        for row in self._journal.unfinished():
            if row.state is not S.IDLE:
                self._journal.resumed(row, machine.RESUME[row.state])
                self._log.info("update goes on after a restart", execution=row.execution, state=row.state.value)

    def _nudge(self, component: str) -> None:
        """Let the component's task look at the journal: now, if it works; else there is one from now on."""
        if self._group is None:
            return
        self._wishes.setdefault(component, asyncio.Event()).set()
        task = self._tasks.get(component)
        if task is None or task.done():
            self._tasks[component] = self._group.create_task(self._work(component), name=f"updates-{component}")

    async def _work(self, component: str) -> None:
        pause = _RETRY_SECONDS
        while True:
            try:
                rows = self._journal.unfinished(component)
                if not rows:
                    return
                await self._advance(rows[0])
                pause = _RETRY_SECONDS
            except DeviceError as error:
                if error.code == "database_broken":
                    raise
                self._log.error("update waits: its next step cannot be written down", reason=str(error), pause=pause)
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_RETRY)

    async def _advance(self, row: Execution) -> None:
        """Do the work of the row's state and go to the next one."""
        event, fault, result, bad = await self._outcome_of_work(row)
        state = machine.step(row.state, event)
        outcome = machine.outcome(row.outcome, row.state, event)
        following = self._journal.transition(
            row, state, outcome, fault=fault, detail=result.detail, figures=result.figures, bad=bad
        )
        if state not in MAY_HOLD_TURN:
            self._effects.turn.release(row.component)
        if state in TERMINAL:
            self._wishes.pop(row.component, None)
        self._log.info(
            "update transition",
            execution=row.execution,
            component=row.component,
            before=row.state.value,
            state=state.value,
            event_name=event.value,
            fault=following.fault.message if fault is not None and following.fault is not None else None,
        )
        self._unreported.set()
        self.on_change()

    async def _outcome_of_work(self, row: Execution) -> tuple[Event, Fault | None, Result, str | None]:
        """Return what happens to ``row`` next, why, what was measured, and why its build is bad, if it is."""
        if row.wish is not None and machine.honours(row.state, row.wish):
            return Event(row.wish.value), _fault(row, row.wish.value.lower(), _WISHES[row.wish]), Result(), None
        if row.state is S.IDLE:
            return Event.OFFERED, None, Result(), None
        if machine.looped(row.state, row.count):
            return Event.LOOPED, _fault(row, "looped", f"{row.count} transitions without an end"), Result(), None
        event, fault, result, bad = await self._attempt(row)
        if row.state is S.CLEANUP:  # tidying up never changes how an execution ended
            return machine.conclusion(row.outcome), None, result, None
        return event, fault, result, bad

    async def _attempt(self, row: Execution) -> tuple[Event, Fault | None, Result, str | None]:
        try:
            result = await self._perform(row)
        except Stop as stop:
            fault = _fault(row, stop.code, str(stop), stop.log_tail)
            return stop.event, fault, Result(), str(stop) if stop.bad else None
        except AgentError as error:
            fault = _fault(row, error.code, str(error))
        except Exception as error:
            self._log.exception("an update's work failed in a way that was not foreseen", execution=row.execution)
            fault = _fault(row, "internal", f"{type(error).__name__}: {error}")
        else:
            return result.event, None, result, None
        return Event.ERROR, fault, Result(), None

    async def _perform(self, row: Execution) -> Result:
        """Run the state's work until it ends, its deadline passes or a wish arrives. Raises Stop or AgentError."""
        limit = deadline(row.state, row.item.policy)
        wished = self._wishes.setdefault(row.component, asyncio.Event())
        wished.clear()
        self._effects.live.why.pop(row.component, None)
        begun = time.monotonic() - (row.spent if limit is not None else 0.0)
        work = asyncio.create_task(self._effects.perform(row))
        try:
            while True:
                spent = time.monotonic() - begun
                if limit is not None and spent >= limit:
                    reason = self._effects.live.why.get(row.component, "its work was not done")
                    raise Stop(
                        "deadline", f"{row.state.value} took longer than {limit:g} s: {reason}", event=Event.TIMED_OUT
                    )
                wish = asyncio.create_task(wished.wait())
                pause = SPEND_SECONDS if limit is None else min(SPEND_SECONDS, limit - spent)
                try:
                    await asyncio.wait({work, wish}, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    wish.cancel()
                if work.done():
                    return work.result()
                if wished.is_set():
                    wished.clear()
                    now = self._journal.refresh(row).wish
                    if now is not None and machine.honours(row.state, now):
                        raise Stop(now.value.lower(), _WISHES[now], event=Event(now.value))
                elif limit is not None and time.monotonic() - begun < limit:
                    self._note_spent(row, time.monotonic() - begun)
        finally:
            if not work.done():
                work.cancel()
                _, pending = await asyncio.wait({work}, timeout=STOP_SECONDS)
                if pending:
                    self._log.error("an update's work does not stop", execution=row.execution, state=row.state.value)
            if work.done() and not work.cancelled():
                work.exception()

    def _note_spent(self, row: Execution, seconds: float) -> None:
        try:
            self._journal.spend(row, seconds)
        except DeviceError as error:  # no reason to stop the work itself
            self._log.warning("cannot note how long a state has taken", execution=row.execution, reason=str(error))

    # Beside the components

    async def _drain_reports(self) -> None:
        pause = _RETRY_SECONDS
        while True:
            self._unreported.clear()
            try:
                while transitions := self._journal.unreported():
                    for transition in transitions:
                        self._report(
                            {
                                "at": transition.at,
                                "execution": transition.execution,
                                "component": transition.component,
                                "generation": transition.generation,
                                "origin": transition.origin.value,
                                "state": transition.state.value,
                                "detail": transition.detail,
                                "fault": transition.fault,
                                "figures": transition.figures,
                            },
                            transition.key,
                        )
                    self._journal.reported(transitions)
                pause = _RETRY_SECONDS
            except AgentError as error:
                if error.code == "database_broken":
                    raise
                self._log.error("reports wait: they cannot be written down", reason=str(error), pause=pause)
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_RETRY)
                continue
            await self._unreported.wait()

    async def _restore_at_start(self) -> None:
        await self._effects.live.wait_for_serving()
        try:
            await self.restore()
        except AgentError as error:  # it went away again: whoever restarts it asks for a restore
            self._log.warning("serving could not be restored", reason=str(error))


_WISHES: Final = {S.CANCELED: "withdrawn by the controller", S.SUPERSEDED: "a newer generation was offered"}


def _fault(row: Execution, code: str, message: str, log_tail: str = "") -> Fault:
    return Fault(phase=row.state.value, code=code[:128], message=message[:4096], log_tail=log_tail[-8192:])
