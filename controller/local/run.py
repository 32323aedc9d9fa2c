"""`muster local`: a whole fleet on this machine, and the first journey through it.

Invariant: whatever it started has ended when it returns, however it ends; nothing else is touched. A second start finds
the first one's identity, builds and ports.
"""

from __future__ import annotations

import asyncio
import os
import platform
import shlex
import time
from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer
from rich.markup import escape

from controller.commands.client import Login, read_login, write_login
from controller.commands.logs import configure
from controller.commands.output import messages
from controller.commands.run import login_of
from controller.errors import InvalidError, UnauthenticatedError
from controller.installation import Installation, only_one, prepare, write_private_bytes
from controller.local.agents import local_agents
from controller.local.journey import MODEL, Journey, held_out_image, infer_body
from controller.local.steps import Steps
from controller.processes import Processes
from controller.settings import read_settings
from controller.supervisor import stop_on_signals

MAX_DEVICES: Final = 99
LOGIN_NAME: Final = "login.json"


def local(
    data_directory: Annotated[Path, typer.Option("--data", help="Where everything is kept.")],
    devices: Annotated[int, typer.Option(min=1, max=MAX_DEVICES, help="How many agents to run.")] = 1,
    once: Annotated[bool, typer.Option("--once", help="End after the first answered request.")] = False,
) -> None:
    """Run a controller and agents here, train and roll out a sample model, and send it a request."""
    data = data_directory.expanduser().absolute()
    settings = msgspec.structs.replace(read_settings(None, os.environ), data=str(data / "controller"))
    logs = data / "controller" / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    with only_one(settings.data_directory), (logs / "local.log").open("a", buffering=1) as own_log:
        configure(settings.log_level, own_log)  # the screen shows steps, not logs
        began = time.monotonic()
        installation = prepare(settings, time.time())
        status = asyncio.run(_run(data, installation, devices, once=once, began=began))
    raise typer.Exit(status)


async def _run(data: Path, installation: Installation, devices: int, *, once: bool, began: float) -> int:
    stop = asyncio.Event()
    stop_on_signals(stop)
    login = _login(data, installation)
    processes = Processes(installation, stop)
    steps = Steps(messages)
    agents = local_agents(data / "devices", devices)
    journey = Journey(login, data / "sample", agents, steps)

    async def go() -> None:
        with steps.step("starting the controller and its broker"):
            await processes.start()
        await journey.model(platform.machine())
        await journey.enrol()
        for agent in agents:
            processes.supervisor.start(agent.child())
        await journey.connected()
        await journey.roll_out()
        answer, label = await journey.request()
        steps.note(f"the image shows {label}; {answer['device']} said {answer['seen']}, in {answer['ms']:.1f} ms")
        await _tell(data, installation, login, journey)
        messages.print(f"answered [bold]{time.monotonic() - began:.1f} s[/bold] after the start", highlight=False)

    work = asyncio.create_task(go())
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({work, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            work.result()
            if not once:
                messages.print("It stays up: Ctrl-C stops everything that this command started.")
                await stop.wait()
            return 0
        return 130
    finally:
        work.cancel()
        stopping.cancel()
        await asyncio.gather(work, stopping, return_exceptions=True)
        await processes.end()
        journey.close()


async def _tell(data: Path, installation: Installation, login: Login, journey: Journey) -> None:
    """Say how to go on by hand."""
    image, _ = await asyncio.to_thread(held_out_image, data / "sample")
    request, header = data / "request.json", data / "token.header"
    await asyncio.to_thread(request.write_bytes, infer_body(image))
    await asyncio.to_thread(_write_header, header, login.token)
    curl = [
        *("curl", "--cacert", login.ca_file),
        *("-H", f"@{header}", "-d", f"@{request}"),
        f"{login.gateway_url}/v2/models/{MODEL}/infer",
    ]
    link = installation.console_url + await journey.login_link()
    messages.print("\n[bold]Ask again yourself:[/bold]")
    messages.print(escape(shlex.join(curl)), soft_wrap=True)
    messages.print("[bold]Console[/bold] (the link works once, for five minutes):")
    messages.print(escape(link), soft_wrap=True)
    messages.print("")


def _write_header(file: Path, token: str) -> None:
    """The token as a header in a file of its own: on a command line every user of this machine could read it."""
    write_private_bytes(file, f"Authorization: Bearer {token}\n".encode())


def _login(data: Path, installation: Installation) -> Login:
    """Return the login of this machine's operator; the first start makes it, later ones find it."""
    file = data / LOGIN_NAME
    if installation.admin_token is not None:
        login = login_of(installation, installation.admin_token)
    else:
        try:
            login = login_of(installation, read_login(file).token)
        except UnauthenticatedError as error:
            raise InvalidError(
                f"{file} is missing, and its token cannot be shown again: remove {data} to begin anew", "no_login"
            ) from error
    write_login(file, login)
    installation.admin_token_shown()
    return login
