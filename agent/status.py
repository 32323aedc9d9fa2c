"""What a person asks of the agent on this machine: the file that it leaves, its identity, its serving process.

Invariant: looking changes nothing, and works whether an agent runs or not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from agent.errors import AgentError
from agent.identity.enrol import load_identity
from agent.instance import is_running
from agent.serving_protocol import SOCKET_NAME, STATUS_NAME
from agent.supervision.client import ServingClient
from wire.messages import Reported


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """What `muster-agent status` tells of a running agent, from status.json. ``link``: "up", or why it is not."""

    pid: int
    device: str
    controller: str
    link: str
    reported: Reported


async def collect(data: Path) -> dict[str, Any]:
    """Return what there is to tell about the agent of the directory ``data``, as plain JSON values. Changes nothing."""
    found: dict[str, Any] = {"data": str(data), "running": is_running(data), "device": None, "problem": None}
    found["state"] = "starting" if found["running"] else "stopped"
    try:
        identity = load_identity(data)
        if identity is None:
            found["problem"] = "not enrolled"
        else:
            found |= {"device": identity.device, "controller": identity.api_url}
    except AgentError as error:
        found["problem"] = str(error)
    if found["running"]:
        try:
            told = msgspec.json.decode((data / STATUS_NAME).read_bytes(), type=Status)
            found |= {"link": told.link, "items": msgspec.to_builtins(told.reported.items)}
            found["notices"] = told.reported.notices
            ready = told.reported.serving == "ready"
            found["state"] = "ready" if ready and told.link == "up" else "offline" if ready else told.reported.serving
        except FileNotFoundError:
            found["problem"] = "the agent has not told its status yet"
        except (OSError, msgspec.MsgspecError) as error:
            found["problem"] = f"the agent's status cannot be read: {error}"
    try:
        state = await ServingClient(data / SOCKET_NAME).state(3.0)
        found["serving"] = msgspec.to_builtins(state)
    except AgentError as error:
        found["serving"] = None
        found["serving_problem"] = str(error)
    return found


def lines(status: dict[str, Any]) -> list[str]:
    """Return ``status`` for people."""
    running = f"running, {status['state']}" if status["running"] else "not running"
    shown = [f"agent    {running} ({status['data']})"]
    shown.append(f"device   {status['device']} of {status['controller']}" if status["device"] else "device   -")
    if status["problem"]:
        shown.append(f"problem  {status['problem']}")
    if "link" in status:
        shown.append(f"link     {status['link']}")
    for item in status.get("items", []):
        shown.append(f"item     {item['component']}  {item['build'] or '-'}  {item['state']}")
    shown += [f"notice   {notice}" for notice in status.get("notices", [])]
    serving = status["serving"]
    if serving is None:
        return [*shown, f"serving  not running: {status['serving_problem']}"]
    shown.append(f"serving  http://{serving['http_host']}:{serving['http_port']}  tunnel {serving['tunnel']}")
    for build in serving["builds"]:
        shown.append(f"build    {build['model']} {build['version']}  {build['build']}  {build['state']}")
    return shown
