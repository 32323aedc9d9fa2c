"""This process among others: the only agent of its data directory, its owner, the service manager.

Invariant: a lock ends with the process that held it, however that ended. Starts and stops nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from agent import durable
from agent.errors import DeviceError

LOCK_NAME: Final = "agent.lock"
_LOCK_TRIES: Final = 5
_OWNER_SECONDS: Final = 1.0


@contextmanager
def single_instance(data: Path) -> Iterator[None]:
    """Hold the data directory, which is made when missing. Raises DeviceError ("running") where another agent does."""
    durable.make_directory(data, "agent.directory")
    try:
        file = (data / LOCK_NAME).open("w")
    except OSError as error:
        raise durable.disk_error(error, data / LOCK_NAME) from error
    with file:
        for last in [*[False] * (_LOCK_TRIES - 1), True]:  # `muster-agent status` holds it for an instant
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if last:
                    message = f"another muster-agent already runs for {data}; stop it, or give another --data"
                    raise DeviceError(message, "running") from error
                time.sleep(0.05)
        yield


def is_running(data: Path) -> bool:
    """Return whether an agent holds the data directory."""
    try:
        with (data / LOCK_NAME).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


async def watch_owner(pid: int, end: asyncio.Event) -> None:
    """Set ``end`` when process ``pid`` is gone; 0 for no owner."""
    while pid:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            end.set()
            return
        except PermissionError:
            pass  # it is there, and another user's
        await asyncio.sleep(_OWNER_SECONDS)


def notify(message: str) -> None:
    """Tell systemd, where it asked to be told."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
            line.sendto(message.encode(), "\0" + address[1:] if address[0] == "@" else address)
