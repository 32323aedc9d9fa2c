"""The role `gateway` as a process: builds the parts, listens, and stops without losing what was begun.

Invariant: the port is taken before anything else is started, and on the way down new requests are refused first, those
begun are finished (for at most ``DRAIN_SECONDS``), then the tunnels are closed. Decides nothing about requests.
"""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog
import uvicorn

from controller.errors import InvalidError
from controller.http_protocol import BoundedHttp
from controller.listening import Server, allow_connections, listen
from controller.routing.budget import Budget
from controller.routing.fleet_view import FleetView
from controller.routing.forward import Forwarder
from controller.routing.front import Gateway
from controller.routing.hub import Hub
from controller.routing.metrics import Metrics
from wire.tunnel import MAX_FRAME

MAX_TUNNELS: Final = 20_000
FEW_TUNNELS: Final = 10_000  # fewer are worth a warning
FILES: Final = 32_768  # open sockets and files that the gateway wants: its tunnels, its clients' connections …
TUNNEL_SHARE: Final = 0.75  # … of which tunnels leave so many to clients, where the system gives it fewer
MAX_HELD: Final = 256 * 1024 * 1024  # bytes of bodies of all requests together …
BODIES_HELD: Final = 8  # … or room for so many of the largest, where that is more
DRAIN_SECONDS: Final = 10.0
PING_SECONDS: Final = 15.0  # who is silent is found out by the missing status (`hub.py`), much sooner: a ping …
PONG_SECONDS: Final = 30.0  # … waits behind the body that a slow link is still taking, and must not cut it off
NOT_SENT: Final = 128 * 1024  # bytes a connection may keep in the system's buffer: what is there, nothing overtakes
_KEEP_ALIVE: Final = 75

log = structlog.get_logger()


async def run_gateway(
    *,
    database_path: Path,
    host: str,
    port: int,
    certificate: Path | None,
    key: Path | None,
    max_body_bytes: int,
    on_ready: Callable[[int], None],
    stop: asyncio.Event,
) -> None:
    """Serve until ``stop`` is set. ``port`` may be 0; ``on_ready`` is called once with the real one.

    certificate, key: PEM files; without them the gateway speaks plain HTTP (tests and measurements).
    Raises ConflictError (code "port_taken") or InvalidError (code "bad_address", "bad_certificate").
    """
    listener = listen(host, port, "MUSTER_GATEWAY_PORT")
    try:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, NOT_SENT)  # inherited by every connection
        budget = Budget(max(MAX_HELD, BODIES_HELD * max_body_bytes))
        metrics = Metrics(lambda: budget.used)
        view = FleetView(database_path)
        files = allow_connections(FILES)
        tunnels = min(MAX_TUNNELS, int(files * TUNNEL_SHARE))
        if tunnels < FEW_TUNNELS:
            log.warning(
                "fewer devices than usual can connect: the limit of open files (ulimit -n) is low", devices=tunnels
            )
        hub = Hub(view, budget, metrics, max_answer=max_body_bytes, max_tunnels=tunnels)
        forwarder = Forwarder(view, hub, metrics, random.Random())
        gateway = Gateway(view, hub, forwarder, metrics, budget, max_body_bytes)
        server = Server(_config(gateway, certificate, key))
    except BaseException:
        listener.close()
        raise
    real_port = listener.getsockname()[1]
    await view.refresh()
    background = [asyncio.create_task(view.run()), asyncio.create_task(hub.watch())]
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    stopping = asyncio.create_task(stop.wait())
    try:
        listening = asyncio.create_task(server.listening.wait())
        await asyncio.wait([serving, listening], return_when=asyncio.FIRST_COMPLETED)
        if listening.done():
            log.info("gateway ready", host=host, port=real_port)
            on_ready(real_port)
            await asyncio.wait([serving, stopping, *background], return_when=asyncio.FIRST_COMPLETED)
        listening.cancel()
        await gateway.drain(DRAIN_SECONDS)
    finally:
        hub.close_all("the gateway stops")
        server.should_exit = True
        for task in (stopping, *background):
            task.cancel()
        results = await asyncio.gather(serving, *background, return_exceptions=True)
        listener.close()
    for result in results:
        if isinstance(result, Exception):
            raise result
    log.info("gateway stopped")


def _config(gateway: Gateway, certificate: Path | None, key: Path | None) -> uvicorn.Config:
    config = uvicorn.Config(
        gateway,
        http=BoundedHttp,
        ws="websockets-sansio",  # the other implementation fails under two writers
        ws_max_size=MAX_FRAME,
        ws_ping_interval=PING_SECONDS,
        ws_ping_timeout=PONG_SECONDS,
        ws_per_message_deflate=False,
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=5,
        ssl_certfile=certificate,
        ssl_keyfile=key,
    )
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:
        raise InvalidError(f"certificate {certificate} with key {key}: {error}", "bad_certificate") from error
    return config
