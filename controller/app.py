"""Connects the parts of the roles `api`, `ingest` and `reconcile`: the only place where they meet.

Invariant: parts know each other only through what is handed over here. Starts no process (`processes.py`) and decides
nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Annotated, Any, Final

import structlog
import uvicorn
from fastapi import Depends, FastAPI
from fastapi.responses import Response

from controller.audit.head_files import HeadFiles
from controller.audit.reason import ReasonHeader
from controller.audit.routes import audit_router
from controller.audit.sealer import seal, sign_heads
from controller.broker.operate import Operator
from controller.broker.session import Broker, Endpoint
from controller.builds import publish_routes
from controller.builds import routes as builds_routes
from controller.builds.artifacts import ArtifactStore
from controller.console import overview, pages
from controller.console.live import Changes, LiveQueries, live_router
from controller.console.playground import Playground, playground_router
from controller.database.connection import Database
from controller.devices import command_routes, command_store
from controller.devices import list_routes as device_list_routes
from controller.devices import routes as devices_routes
from controller.devices.authority import CONTROLLER_NAME
from controller.devices.commands import CommandSender
from controller.devices.fleet import Fleet
from controller.devices.registry import Registry
from controller.devices.reports import Reports
from controller.devices.revoking import Revoking
from controller.devices.session import DeviceSessions
from controller.errors import NotFoundError, UnavailableError
from controller.http_protocol import BoundedHttp
from controller.installation import Installation, trust_bundle
from controller.listening import Server, listen
from controller.rollouts import routes as rollouts_routes
from controller.rollouts import store as rollouts_store
from controller.rollouts.loop import RolloutLoop
from controller.signing_keys import ACCESS, AUDIT, signing_key
from controller.telemetry import routes as telemetry_routes
from controller.telemetry.ingest import Ingest
from controller.telemetry.metrics import CONTENT_TYPE, exposition
from controller.telemetry.sampler import FleetSampler
from controller.telemetry.series import Series
from controller.telemetry.vitals import LatestVitals, as_json
from controller.tenants import routes as tenants_routes
from controller.tenants.access import Principal
from controller.tenants.access_tokens import AccessTokens
from controller.tenants.guard import install_errors, permit, public, require_declared
from controller.trust import layout
from controller.trust import routes as trust_routes
from controller.trust import store as trust_store
from wire.messages import Ack, ExecutionReport, Reply
from wire.topics import ACK, Channel
from wire.version import __version__

SEAL_SECONDS: Final = 1.0
HEAD_SECONDS: Final = 3600.0  # between two signed heads of the audit trail
MAX_BODY_BYTES: Final = 2 * 1024**2  # of a request, where its route allows no more: read before anybody is recognised

log = structlog.get_logger()


class Control:
    """The roles `api`, `ingest` and `reconcile`: everything that writes the database."""

    def __init__(self, installation: Installation) -> None:
        self._installation = installation
        self._database = Database(installation.database_path)
        self._series = Series(installation.series_path)
        self._vitals = LatestVitals()
        self._sampler = FleetSampler(self._database, self._series, self._vitals)
        self._playground = Playground(installation.gateway_url, installation.authority.root_file)
        self._registry = Registry(self._database)
        self._reports = Reports(self._database)
        self._audit_heads = HeadFiles(installation.data / "audit", signing_key(installation.data / "keys", AUDIT))
        self._commands = CommandSender(self._database, installation.assignment_key, self._publish)
        self._rollouts = RolloutLoop(self._database, installation.assignment_key, self._publish)
        self._ingest = Ingest(
            self._database,
            self._series,
            {ExecutionReport: rollouts_store.record_report, Reply: command_store.record_reply},
            self._acknowledge,
            observe=self._vitals.take,
        )
        handlers = self._reports.handlers() | self._ingest.handlers()
        operator = Operator(
            directory=installation.broker_directory,
            root=installation.authority.root_file,
            certificate=installation.operator_files.certificate,
            key=installation.operator_files.key,
        )
        ours = not installation.settings.broker_url  # another broker is told by whoever runs it
        self._revoking = Revoking(
            self._database,
            installation.authority,
            reload=operator.reload if ours else _told_elsewhere,
            cut=operator.cut if ours else _cut_elsewhere,
        )
        self._keeper = replace(installation.keeper, database=self._database)
        self._broker = Broker(
            self._endpoint, self._registry.knows, handlers, self._rollouts.republish_all, self._revoking.silence
        )
        self.api = self._api()

    async def run(self, stop: asyncio.Event) -> None:
        """Serve and work until ``stop`` is set. Raises ConflictError when a port is taken."""
        installation, ports = self._installation, self._installation.ports
        sockets = [
            listen(installation.settings.host, ports.api_port, "MUSTER_API_PORT"),
            listen("127.0.0.1", ports.console_port, "MUSTER_CONSOLE_PORT"),
        ]
        servers = [
            Server(self._server_config(tls=True)),
            Server(self._server_config(tls=False)),
        ]
        work = [
            asyncio.create_task(self._broker.run(), name="broker"),
            asyncio.create_task(self._reports.run(), name="reports"),
            asyncio.create_task(self._ingest.run(), name="ingest"),
            asyncio.create_task(self._rollouts.run(), name="rollouts"),
            asyncio.create_task(self._commands.run(), name="commands"),
            asyncio.create_task(self._sampler.run(), name="fleet sampler"),
            asyncio.create_task(self._seal(), name="audit sealer"),
            asyncio.create_task(self._revoking.run(), name="revoking"),
            asyncio.create_task(self._keeper.run(), name="signed repositories"),
        ]
        serving = [
            asyncio.create_task(server.serve([listener]), name="http")
            for server, listener in zip(servers, sockets, strict=True)
        ]
        stopping = asyncio.create_task(stop.wait(), name="stopping")
        everything: list[asyncio.Task[Any]] = [stopping, *work, *serving]
        log.info("control ready", api=installation.api_url, console=installation.console_url)
        try:
            done, _ = await asyncio.wait(everything, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for server in servers:
                server.should_exit = True
            stopping.cancel()
            await asyncio.gather(*serving, return_exceptions=True)
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)
            await self._playground.close()
            await asyncio.to_thread(self._sign_heads)
            self._series.close()
            self._database.close()
        for task in done - {stopping}:
            task.result()  # a part that ended by itself ends the role, and the supervisor starts it again

    def _server_config(self, *, tls: bool) -> uvicorn.Config:
        files = self._installation.api_files
        return uvicorn.Config(
            self.api,
            http=BoundedHttp,
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=3,
            ssl_certfile=files.certificate if tls else None,
            ssl_keyfile=files.key if tls else None,
        )

    def _api(self) -> FastAPI:
        installation = self._installation
        api = FastAPI(
            title="Muster",
            version=__version__,
            docs_url="/api/docs",
            redoc_url=None,
            openapi_url="/api/openapi.json",
            max_body_size=MAX_BODY_BYTES,
        )
        api.state.database = self._database
        api.state.settings = installation.settings
        api.state.series = self._series
        api.state.vitals = self._vitals
        api.state.copies = self._reports.copies
        api.state.revoking = self._revoking
        api.state.commands = self._commands
        api.state.read_vitals = self._read_vitals
        api.state.artifacts = ArtifactStore(installation.data / "artifacts")
        api.state.builder_keys = installation.builder_keys
        api.state.audit_heads = self._audit_heads
        api.state.access_tokens = AccessTokens(signing_key(installation.data / "keys", ACCESS))
        api.state.keeper = self._keeper
        api.state.device_sessions = DeviceSessions(self._database, installation.session_key)
        api.state.fleet = Fleet(
            authority=installation.authority,
            trust_bundle=self._trust_bundle,
            mqtt_host=installation.mqtt_host,
            mqtt_port=installation.mqtt_port,
            api_url=installation.api_url,
            gateway_url=installation.tunnel_url,
        )
        install_errors(api)
        api.add_middleware(ReasonHeader)
        changes = Changes()
        self._database.subscribe(changes.note)
        queries = LiveQueries(api, changes)
        api.include_router(audit_router(permit))
        api.include_router(live_router(lambda: queries))
        api.include_router(playground_router(lambda: self._playground, lambda: self._database))
        for routes in (
            tenants_routes,
            command_routes,
            device_list_routes,  # before the routes of one device: /devices/facets is no device
            devices_routes,
            builds_routes,
            publish_routes,
            trust_routes,
            rollouts_routes,
            telemetry_routes,
            overview,
        ):
            api.include_router(routes.router)
        self._add_own_routes(api)
        api.include_router(pages.router)  # last: what is nobody else's is a page of the console
        require_declared(api)
        return api

    def _add_own_routes(self, api: FastAPI) -> None:
        @api.get("/healthz", dependencies=[Depends(public("tells only that the process runs"))])
        def alive() -> dict[str, str]:
            """The process answers."""
            return {"status": "ok"}

        @api.get("/readyz", dependencies=[Depends(public("tells only whether the parts are there"))])
        def ready() -> dict[str, str]:
            """The database can be read and the broker is connected."""
            with self._database.read():
                pass
            if not self._broker.connected:
                raise UnavailableError("the broker is not connected yet", "no_broker")
            return {"status": "ok"}

        @api.get("/metrics", response_class=Response)
        def metrics(principal: Annotated[Principal, Depends(permit("metrics.read"))]) -> Response:
            """The controller's figures for Prometheus."""
            counts = self._broker.counts + self._broker.inbox.counts + self._ingest.counts
            text = exposition(self._database, principal.tenant, counts, time.time())
            return Response(text, media_type=CONTENT_TYPE)

    def _trust_bundle(self, tenant: str) -> bytes:
        with self._database.read() as connection:
            root = trust_store.newest(connection, tenant, layout.ROOT)
        if root is None:
            raise NotFoundError(f"there is no tenant {tenant!r} with a signed repository", "no_repository")
        return trust_bundle(self._installation, root)

    def _read_vitals(self, devices: Iterable[str], now: float) -> dict[str, Any]:
        return {device: as_json(vitals) for device, vitals in self._vitals.all(devices, now).items()}

    def _endpoint(self) -> Endpoint:
        installation = self._installation
        return Endpoint(
            host=installation.mqtt_host,
            port=installation.mqtt_port,
            name=CONTROLLER_NAME,
            root=installation.authority.root_file,
            certificate=installation.client_files.certificate,
            key=installation.client_files.key,
        )

    async def _publish(self, channel: Channel, device: str, payload: bytes) -> None:
        await self._broker.publish(channel, device, payload)

    async def _acknowledge(self, device: str, stream: str, sequence: int) -> None:
        await self._broker.publish(ACK, device, Ack(stream=stream, sequence=sequence))

    async def _seal(self) -> None:
        signed = -HEAD_SECONDS
        while True:
            await asyncio.sleep(SEAL_SECONDS)
            try:
                await asyncio.to_thread(seal, self._database)
            except UnavailableError as error:
                log.warning("the audit trail could not be sealed", error=str(error))
            if time.monotonic() - signed >= HEAD_SECONDS:
                signed = time.monotonic()
                await asyncio.to_thread(self._sign_heads)

    def _sign_heads(self) -> None:
        try:
            seal(self._database)
            wrong = sign_heads(self._database, self._audit_heads, time.time())
        except UnavailableError as error:
            log.warning("the head of the audit trail could not be signed", error=str(error))
            return
        for reason in wrong:
            log.error("an audit trail was tampered with; its head is not signed", reason=reason)


def _told_elsewhere() -> None:
    log.warning("the list of revoked certificates is to be taken to the broker by whoever runs it: ca/revoked.pem")


async def _cut_elsewhere(_device: str) -> None:
    """Another broker's connections are not ours to cut; what they say is dropped here (broker/session.py)."""
