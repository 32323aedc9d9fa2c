"""The command muster-serving.

Invariant: ends with 0 after a stop that was asked for, and with another code and one clear sentence when it cannot
serve. Connects the parts of this process; the only place that does.
"""

from __future__ import annotations

import argparse
import faulthandler
import logging
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from agent.errors import AgentError
from agent.serving import hosting, listen
from agent.serving.active import ActiveFile
from agent.serving.backoff import delay
from agent.serving.control import Control
from agent.serving.inward import Inward
from agent.serving.models import Models
from agent.serving.repository import Repository
from agent.serving.server import Server
from agent.serving.tunnel import Tunnel
from agent.serving_protocol import SOCKET_NAME, STATUS_NAME

log = structlog.get_logger()

_Work = Callable[[], None]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with ``argv`` and return its exit code."""
    arguments = _parser().parse_args(argv)
    _configure_log()
    if arguments.models is not None:
        return serve_models(arguments.models, arguments.host, arguments.port, arguments.owner_pid)
    data: Path = arguments.data.absolute()
    return _ending(lambda: hosting.run(_serve_data(data, arguments.host, arguments.port, arguments.owner_pid)))


def serve_models(directory: Path, host: str, port: int, owner_pid: int = 0) -> int:
    """Serve the models below ``directory`` (NAME/VERSION/model.onnx) until a signal; return the exit code."""
    return _ending(lambda: hosting.run(_serve_repository(directory, host, port, owner_pid)))


async def _serve_data(data: Path, host: str, port: int, owner_pid: int) -> None:
    with listen.lock(data):
        http, unix = listen.tcp(host, port), listen.unix(data / SOCKET_NAME)
        address: tuple[str, int] = http.getsockname()[:2]
        stop = hosting.Stop()
        models = Models(ActiveFile(data / "serving"))
        server = Server(models, status_file=data / STATUS_NAME)
        rng = random.Random()
        tunnel = Tunnel(Inward(server), models.served, lambda attempt: delay(attempt, rng))
        models.on_change = tunnel.poke
        control = Control(models, tunnel, address, time.time(), stop)

        async def begin() -> None:
            log.info("listening", url=_url(address), socket=str(data / SOCKET_NAME))
            await models.restore()
            log.info("ready", url=_url(address), models=models.names())

        async def drain() -> None:
            tunnel.draining = True
            await models.drain()
            await tunnel.finish()

        try:
            await hosting.host([(server, http), (control, unix)], begin, drain, stop, owner_pid)
        finally:
            await tunnel.close()
            await models.close()


async def _serve_repository(directory: Path, host: str, port: int, owner_pid: int) -> None:
    http = listen.tcp(host, port)
    address: tuple[str, int] = http.getsockname()[:2]
    models = Models()
    repository = Repository(directory, models)

    async def begin() -> None:
        await repository.begin()
        log.info("ready", url=_url(address), models=models.names())

    try:
        application = Server(models, repository.routes)
        await hosting.host([(application, http)], begin, models.drain, hosting.Stop(), owner_pid)
    finally:
        await models.close()


def _ending(work: _Work) -> int:
    try:
        work()
    except AgentError as error:
        sys.stderr.write(f"muster-serving: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return 0
    return 0


def _url(address: tuple[str, int]) -> str:
    host, port = address
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _configure_log() -> None:
    faulthandler.enable()
    sys.setswitchinterval(0.001)  # an engine thread that comes back should not wait 5 ms for a busy loop
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.KeyValueRenderer(key_order=["timestamp", "level", "event"]),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="muster-serving", description="Serve models on this device.")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=Path, metavar="DIR", help="the agent's data directory")
    source.add_argument("--models", type=Path, metavar="DIR", help="a directory of models: NAME/VERSION/model.onnx")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=_port, default=8000, help="port to listen on, 0 for any free one (8000)")
    parser.add_argument("--owner-pid", type=int, default=0, metavar="N", help="end when process N is gone")
    return parser


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port (0 to 65535)")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
