"""Connects the parts of muster-agent: the only place that does.

Invariant: whatever goes wrong here ends changes and never serving: the serving process is stopped only when this
program was told to end (a signal, its owner's end), not when it fails. One agent a data directory. Decides nothing
itself: what is received goes to those who judge it, what happened goes to those who tell it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final

import msgspec
import structlog

from agent import durable
from agent.builds.fetch import Fetcher
from agent.builds.store import Store
from agent.commands.deeds import deeds
from agent.commands.handling import Commands
from agent.commands.taken import Taken
from agent.errors import AgentError, DeviceError, ServingError, UnreachableError, UsageError
from agent.hardware.description import describe
from agent.health.report import Reporter
from agent.health.sensors import Sensors
from agent.identity.certificates import Certificates
from agent.identity.credentials import Credentials
from agent.identity.enrol import Identity, enrol, load_identity
from agent.identity.renewing import Renewing
from agent.instance import notify, single_instance, watch_owner
from agent.link import backoff
from agent.link.outbox import Outbox
from agent.link.session import Endpoint, Session
from agent.parts import cancel, first_end, until
from agent.serving_protocol import STATUS_NAME, ServingState
from agent.settings import Settings
from agent.status import Status
from agent.supervision.process import ServingProcess
from agent.trial_child import run_trial
from agent.trust.pinned import Pinned
from agent.trust.repository import Repository
from agent.trust.voucher import Voucher
from agent.updates.loop import Updates
from agent.updates.precheck import Capabilities
from wire import topics
from wire.assignment import Refused, judge
from wire.messages import ExecutionReport, Facts, Reported
from wire.version import __version__

PORTS_NAME: Final = "ports.json"
REPOSITORY_NAME: Final = "repository"  # signed metadata as last seen
CREDENTIAL_SECONDS: Final = 3600.0
_LOOK_SECONDS: Final = 1.0
_AGAIN_SECONDS: Final = 5.0
_MISSING_SECONDS: Final = 60.0
_CLOCK_JUMP: Final = 30.0  # seconds, less than which nobody minds

_log = structlog.get_logger()


def enrol_here(settings: Settings, token: str, api_url: str, name: str) -> Identity:
    """Join a fleet with this machine's facts. Blocks. Raises what ``enrol`` raises, and DeviceError ("running")."""
    data = settings.data_directory
    facts = describe(data=data if data.is_dir() else None)["facts"]
    if load_identity(data) is not None:
        return enrol(data, token, api_url, facts, name)
    with single_instance(data):
        return enrol(data, token, api_url, facts, name)


async def run(settings: Settings, join: Callable[[], Identity] | None = None) -> None:
    """Run the agent until SIGTERM, SIGINT or the end of its owner. Raises AgentError when it cannot go on.

    join: enrols (blocking) when this device has no identity yet; tried again while the controller cannot be reached.
    """
    data = settings.data_directory
    end = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end.set)
    owner = asyncio.create_task(watch_owner(settings.owner_pid, end))
    try:
        identity = load_identity(data)
        if identity is None and join is not None:
            identity = await until(end, _join(join))
        if end.is_set():
            return
        if identity is None:
            raise UsageError(
                f"this device has not joined a fleet ({data}): muster-agent enrol --controller URL --token-file FILE",
                "not_enrolled",
            )
        with single_instance(data):
            await Agent(settings, identity).run(end)
    finally:
        owner.cancel()


class Agent:
    """All parts of one enrolled device, connected."""

    def __init__(self, settings: Settings, identity: Identity) -> None:
        self._settings = settings
        self._data = settings.data_directory
        self._identity = identity
        with contextlib.suppress(DeviceError):  # a disk that cannot be written is no reason not to serve
            identity.keep_roots()  # before anybody asks for the name of that file
        self._credentials = Credentials(identity)
        self._certificates = Certificates(identity.directory, identity.device, identity.key)
        self._trust = Pinned(identity.bundle)
        self._voucher = self._make_voucher()
        self._renewing: Renewing | None = None
        self._serving = ServingProcess(settings, self._serving_started)
        self._rng = random.Random()
        self._began = time.monotonic()
        self._capabilities = Capabilities(arch="", runtimes={})
        self._http_port = 0
        self._link = "connecting"
        self._desired: bytes | None = None
        self._new_desired, self._changed = asyncio.Event(), asyncio.Event()
        self._started, self._restored, self._tunnel = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def run(self, end: asyncio.Event) -> None:
        """Run all parts until ``end`` is set or one of them fails. Raises AgentError."""
        data, identity = self._data, self._identity
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(DeviceError):  # a disk that cannot be written is no reason not to serve
                durable.remove(data / STATUS_NAME, "agent.status")  # what an earlier life told
            self._outbox = Outbox(data / "outbox.db")
            stack.callback(self._outbox.close)
            self._commands = Commands(
                identity.device,
                open_command=self._trust.open_command,
                taken=Taken(data / "commands"),
                put=self._outbox.put,
                deeds=deeds(self._serving, data),
            )
            store = Store(data / "blobs", self._settings.disk_reserve_bytes)
            self._updates = Updates.open(
                data,
                store=store,
                fetcher=self._fetcher(store),
                trust=self._trust,
                voucher=self._voucher,
                serving=self._serving.client,
                trial=run_trial,
                acked=self._outbox.acked,
                capabilities=lambda: self._capabilities,
                report=lambda fields, key: self._outbox.put(ExecutionReport, fields, key),
                on_change=self._changed.set,
            )
            stack.callback(self._updates.close)
            tasks = [asyncio.create_task(self._serving.run(), name="serving")]
            try:
                description = await asyncio.to_thread(describe, data=data)
                tasks += [asyncio.create_task(part, name=name) for name, part in self._parts(description).items()]
                _log.info("agent started", device=identity.device, profile=description["profile"], data=str(data))
                await until(end, first_end(tasks))
                _log.info("agent ends", reason="asked to, or its owner is gone")
                await cancel(tasks[1:])
                if self._settings.serving_managed:
                    await self._serving.stop()
            finally:
                await cancel(tasks)

    def _fetcher(self, store: Store) -> Fetcher:
        credentials, identity = self._credentials, self._identity
        return Fetcher(
            store,
            identity.api_url,
            identity.ca_file,
            credentials.session_token,
            forget=credentials.forget_session,
        )

    def _make_voucher(self) -> Voucher:
        identity, credentials = self._identity, self._credentials
        repository = Repository(
            self._data / REPOSITORY_NAME,
            f"{identity.api_url}/tuf/{identity.tenant}/metadata",
            identity.bundle.tuf_root,
            ca_file=identity.ca_file,
            authorise=credentials.session_token,
            forget=credentials.forget_session,
        )
        return Voucher(repository, lambda: self._changed.set())

    def _parts(self, description: dict[str, Any]) -> dict[str, Coroutine[Any, Any, None]]:
        facts = description["facts"]
        versions = {row["name"]: row["version"] for row in description["runtimes"] if row["usable"]}
        self._capabilities = Capabilities(
            arch=facts.get("arch") or "",
            runtimes=versions,
            memory_bytes=description["budgets"].get("model_memory_bytes") or 0,
        )
        self._session = Session(
            Endpoint(
                device=self._identity.device,
                host=self._identity.mqtt_host,
                port=self._identity.mqtt_port,
                ca_file=self._identity.ca_file,
                certificate_file=self._identity.certificate_file,
                key_file=self._identity.key_file,
            ),
            self._outbox,
            {topics.DESIRED: self._take_desired, topics.COMMAND: self._commands.hear},
            boot=facts.get("boot_id") or "unknown",
            agent_version=__version__,
            rng=self._rng,
            on_change=self._link_changed,
            certificates=self._certificates,
        )
        self._renewing = Renewing(
            self._identity, self._certificates, self._credentials, self._session.reconnect, self._rng
        )
        self._session.retain(topics.FACTS, _facts_message(description))
        reporter = Reporter(
            interval=self._settings.health_interval,
            sensors=Sensors(data=self._data),
            serving=self._serving.client.state,
            put=self._outbox.put,
        )
        return {
            "link": self._session.run(),
            "renewing": self._renewing.run(),
            "updates": self._updates.run(),
            "commands": self._commands.run(),
            "health": reporter.run(),
            "offer": self._offer(),
            "restore": self._restore(),
            "tunnel": self._keep_tunnel(),
            "tell": self._tell(),
            "watch": self._watch_serving(),
            "clock": self._watch_clock(),
            "ready": self._say_ready(),
        }

    # What the controller wants

    def _take_desired(self, payload: bytes) -> None:
        self._desired = payload
        self._new_desired.set()

    async def _offer(self) -> None:
        """Judge and offer what the controller wants; again later when it cannot be written down now."""
        while True:
            await self._new_desired.wait()
            self._new_desired.clear()
            payload = self._desired
            if payload is None:
                continue
            try:
                assignment = self._trust.open_assignment(payload)
                verdict = judge(assignment, self._identity.device, self._updates.position, time.time())
                if isinstance(verdict, Refused):
                    _log.warning("assignment refused", code=verdict.code, reason=verdict.reason)
                else:
                    self._updates.offer(assignment)
            except DeviceError as error:
                _log.error("assignment cannot be taken now; trying again", reason=str(error))
                asyncio.get_running_loop().call_later(_AGAIN_SECONDS, self._new_desired.set)
            except AgentError as error:
                _log.warning("assignment refused", code=error.code, reason=str(error))

    # What serving needs

    async def _serving_started(self, state: ServingState) -> None:
        self._restored.clear()
        self._http_port = state.http_port
        for event in (self._started, self._tunnel, self._changed):
            event.set()
        try:
            ports = msgspec.json.encode({"serving_port": state.http_port})
            durable.write_atomic(self._data / PORTS_NAME, ports, "agent.ports", mode=0o644)
        except DeviceError as error:  # a full disk must not keep serving from being watched
            _log.warning("ports.json could not be written", reason=str(error))

    async def _restore(self) -> None:
        """After each start of serving: what is committed shall run."""
        attempt = 0
        while True:
            await self._started.wait()
            self._started.clear()
            try:
                missing = await self._updates.restore()
            except AgentError as error:
                _log.warning("serving could not be told what to run; trying again", reason=str(error))
                await asyncio.sleep(backoff.delay(attempt, self._rng))
                attempt += 1
                self._started.set()
                continue
            attempt = 0
            self._restored.set()
            self._changed.set()
            if missing:
                _log.warning("some components could not be brought back; trying again later", components=missing)
                asyncio.get_running_loop().call_later(_MISSING_SECONDS, self._started.set)

    async def _keep_tunnel(self) -> None:
        """Hand serving a credential for its tunnel: after each start, and when half of its life is over."""
        attempt = 0
        while True:
            self._tunnel.clear()
            wait: float | None = None
            if self._serving.pid:
                credential = self._credentials.tunnel_credential(time.time(), CREDENTIAL_SECONDS).decode()
                try:
                    await self._serving.client.tunnel(
                        self._identity.gateway_url, credential, str(self._identity.ca_file)
                    )
                    wait, attempt = CREDENTIAL_SECONDS / 2, 0
                except ServingError as error:
                    wait, attempt = backoff.delay(attempt, self._rng), attempt + 1
                    _log.debug("serving did not take a tunnel credential", reason=str(error))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._tunnel.wait()

    async def _watch_clock(self) -> None:
        """Sign and judge anew when the clock was set, or stood still in a sleep: boards begin with a wrong time."""
        known = time.time() - time.monotonic()
        self._voucher.look_at_clock()
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            now = time.time() - time.monotonic()
            if abs(now - known) > _CLOCK_JUMP:
                _log.info("the clock was set", seconds=round(now - known))
                known = now
                self._voucher.look_at_clock()
                self._tunnel.set()
                self._new_desired.set()
                if self._renewing is not None:
                    self._renewing.look_again()

    # What is told

    def _link_changed(self, up: bool, reason: str) -> None:
        self._link = "up" if up else reason
        self._changed.set()

    def _serving_word(self) -> str:
        if self._serving.pid:
            return "ready" if self._restored.is_set() else "starting"
        return "down" if self._http_port else "starting"

    async def _watch_serving(self) -> None:
        told = ""
        while True:
            word = self._serving_word()
            if word != told:
                told = word
                self._changed.set()
            await asyncio.sleep(_LOOK_SECONDS)

    async def _tell(self) -> None:
        """Publish what really runs whenever it changed, and leave it on the disk for `muster-agent status`."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            epoch, number = self._updates.position
            reported = Reported(
                at=time.time(),
                epoch=epoch,
                number=number,
                items=self._updates.reported_items(),
                serving=self._serving_word(),
                notices=[self._voucher.trouble[:4096]] if self._voucher.trouble else [],
            )
            self._session.retain(topics.REPORTED, reported)
            status = Status(
                pid=os.getpid(),
                device=self._identity.device,
                controller=self._identity.api_url,
                link=self._link,
                reported=reported,
            )
            try:
                await asyncio.to_thread(
                    durable.write_atomic, self._data / STATUS_NAME, msgspec.json.encode(status), "agent.status"
                )
            except DeviceError as error:
                _log.debug("status.json could not be written", reason=str(error))

    async def _say_ready(self) -> None:
        await self._restored.wait()
        notify("READY=1")
        await self._session.connected.wait()
        _log.info("agent is ready", seconds=round(time.monotonic() - self._began, 2), serving_port=self._http_port)
        await asyncio.Event().wait()


def _facts_message(description: dict[str, Any]) -> Facts:
    facts = {**description["facts"], "budgets": description["budgets"], "aliases": description["aliases"]}
    return Facts(
        at=time.time(),
        profile=description["profile"],
        title=description["title"][:4096],
        confidence=description["confidence"],
        evidence=[line[:4096] for line in description["evidence"][:64]],
        facts=facts,
        runtimes=description["runtimes"][:32],
        agent_version=__version__,
    )


async def _join(join: Callable[[], Identity]) -> Identity:
    attempt, rng, told = 0, random.Random(), ""
    while True:
        try:
            return await asyncio.to_thread(join)
        except UnreachableError as error:
            if str(error) != told:
                told = str(error)
                _log.warning("cannot enrol yet; trying again", reason=told)
        await asyncio.sleep(backoff.delay(attempt, rng))
        attempt += 1
