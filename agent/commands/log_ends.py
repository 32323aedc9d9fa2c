"""The ends of this device's logs, for somebody who cannot come to it.

Invariant: bounded in bytes; reads regular files of the data directory only. What a service manager keeps elsewhere is
named, not fetched.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

EACH_BYTES: Final = 28 * 1024
NAMES: Final = ("agent.log", "serving.log")


def log_ends(data: Path) -> str:
    """Return the ends of the logs in ``data``, each under its name."""
    return "\n".join(f"== {name}\n{_end(data / name)}" for name in NAMES)


def _end(path: Path) -> str:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            told = os.fstat(descriptor)
            if not stat.S_ISREG(told.st_mode):
                return "(not a file)\n"
            file.seek(max(0, told.st_size - EACH_BYTES))
            return file.read(EACH_BYTES).decode(errors="replace")
    except FileNotFoundError:
        return "(not here: the service manager keeps it, see `journalctl -u muster-agent`)\n"
    except OSError as error:
        return f"(cannot be read: {error.strerror})\n"
