"""The roles: what one process of the controller can be.

Invariant: a role ends when it is asked to, or with the error that ended it. A role's parts are imported when it starts:
the gateway does not carry the API about.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

import structlog

from controller.errors import InvalidError
from controller.installation import Installation, prepare
from controller.settings import Settings
from controller.supervisor import stop_on_signals

OWNER_SECONDS: Final = 1.0  # between two looks whether the owner lives

log = structlog.get_logger()


async def run_roles(names: Sequence[str], settings: Settings, owner_pid: int = 0) -> None:
    """Run some roles in this process until SIGTERM or SIGINT. Raises InvalidError for an unknown role.

    owner_pid: the process that started this one and restarts it; with it gone, this one ends as well: nobody would
    start it again, and it would hold the ports against the next owner. 0: there is none.
    """
    unknown = [name for name in names if name not in ROLES]
    if unknown:
        raise InvalidError(f"{unknown[0]!r} is not a role; these are: {', '.join(ROLES)}", "bad_role")
    stop = asyncio.Event()
    stop_on_signals(stop)
    installation = prepare(settings, time.time())
    tasks = [asyncio.create_task(ROLES[name](installation, stop), name=name) for name in dict.fromkeys(names)]
    watching = asyncio.create_task(_end_with(owner_pid, stop), name="owner")
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stop.set()
        watching.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result


async def _end_with(owner_pid: int, stop: asyncio.Event) -> None:
    while owner_pid and not stop.is_set():
        if os.getppid() != owner_pid:
            log.warning("the process that started this role is gone, so it ends", owner=owner_pid)
            stop.set()
        await asyncio.sleep(OWNER_SECONDS)


async def _run_control(installation: Installation, stop: asyncio.Event) -> None:
    from controller.app import Control

    await Control(installation).run(stop)


async def _run_gateway(installation: Installation, stop: asyncio.Event) -> None:
    from controller.routing.gateway import run_gateway

    await run_gateway(
        database_path=installation.database_path,
        host=installation.settings.host,
        port=installation.ports.gateway_port,
        certificate=installation.gateway_files.certificate,
        key=installation.gateway_files.key,
        max_body_bytes=installation.settings.max_body_bytes,
        on_ready=lambda port: None,
        stop=stop,
    )


async def _run_builder(installation: Installation, stop: asyncio.Event) -> None:
    from controller.builds.worker import run_builder

    await run_builder(
        api_url=installation.api_url,
        ca_file=installation.authority.root_file,
        token=installation.builder_token_file.read_text().strip(),
        data=installation.data,
        stop=stop,
    )


ROLES: Final[dict[str, Callable[[Installation, asyncio.Event], Coroutine[Any, Any, None]]]] = {
    "control": _run_control,
    "gateway": _run_gateway,
    "builder": _run_builder,
}
