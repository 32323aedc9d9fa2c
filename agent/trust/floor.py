"""The time that this device knows to have come, on disk: `METADATA/floor`.

Invariant: it only grows, and survives a power cut. A file that cannot be read counts as none: then the time of the
program's release is the floor until the next signed proof. Judges nothing (`clock.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from agent import durable

NAME: Final = "floor"
_STEP: Final = 3600.0  # a flash card is not written for less
_MAX_BYTES: Final = 4096


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    at: float


def read_floor(directory: Path) -> float:
    """Return the floor in seconds since 1970, 0 where none is kept."""
    try:
        with (directory / NAME).open("rb") as file:
            at = msgspec.json.decode(file.read(_MAX_BYTES), type=_Kept).at
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return 0.0
    return max(at, 0.0)


def keep_floor(directory: Path, at: float) -> None:
    """Keep ``at`` unless the floor is as high already, give or take an hour. Raises DeviceError."""
    if at >= read_floor(directory) + _STEP:
        durable.make_directory(directory, "trust.mkdir")
        make_way(directory / NAME)
        durable.write_atomic(directory / NAME, msgspec.json.encode(_Kept(at=at)), "trust.floor")


def make_way(file: Path) -> None:
    """Remove a directory that stands where ``file`` belongs: broken file systems bring such things about."""
    if file.is_dir() and not file.is_symlink():
        durable.remove_tree(file, "trust.sweep")
