"""The sockets of a serving process, and the lock that makes it the only one of its data directory.

Invariant: the Unix socket is this user's only from its first moment on, and a long data directory does not matter. A
port or directory that is taken is told as such, never waited for.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from pathlib import Path
from typing import IO, Final

from agent.errors import DeviceError

_BACKLOG: Final = 512


def lock(data: Path) -> IO[str]:
    """Return the held lock of ``data``; closing it, or the process's end, gives it up. Raises DeviceError."""
    try:
        file = (data / "serving.lock").open("w")
    except FileNotFoundError as error:
        raise DeviceError(f"the data directory {data} is missing; `muster-agent run` makes it", "no_data") from error
    except OSError as error:
        raise DeviceError(f"{data}: {error.strerror}; give a directory that this user may write", "no_data") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise DeviceError(f"another muster-serving already runs for {data}; stop it first", "running") from error
    return file


def tcp(host: str, port: int) -> socket.socket:
    """Return a listening socket; ``port`` 0 lets the system choose. Raises DeviceError."""
    made: socket.socket | None = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(_BACKLOG)
    except OSError as error:
        if made is not None:
            made.close()
        if error.errno == errno.EADDRINUSE:
            raise DeviceError(
                f"port {port} on {host} is taken; choose another one with --port", "port_taken"
            ) from error
        raise DeviceError(f"cannot listen on {host} port {port}: {error.strerror or error}", "port_taken") from error
    made.setblocking(False)
    return made


def unix(path: Path) -> socket.socket:
    """Return a socket that listens at ``path``, instead of one left over. Hold ``lock`` first. Raises DeviceError."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    directory = -1
    before = os.umask(0o177)
    try:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        # An address holds 107 bytes; through the directory's descriptor the path may be as long as it likes.
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        made.bind(f"/proc/self/fd/{directory}/{path.name}")
        made.listen(_BACKLOG)
    except OSError as error:
        made.close()
        raise DeviceError(f"cannot listen at {path}: {error.strerror or error}", "no_socket") from error
    finally:
        os.umask(before)
        if directory >= 0:
            os.close(directory)
    made.setblocking(False)
    return made
