"""Replaces the fleet CA without losing a device: the new one is told, then issues, then the old one is forgotten.

Invariant: in every stage there is one CA that issues, and a device that holds certificates of the stage before is let
in and finds its servers trustworthy. Cut off at any point, the next start finds one whole stage. To be called while no
controller runs on the directory: who uses the files reads them at its start. Decides nothing about devices.

    settled --announce--> announced --switch--> switched --finish--> settled
"""

from __future__ import annotations

import os
import shutil
from enum import StrEnum
from pathlib import Path
from typing import Final

from controller.devices.authority import NEXT, OPERATING, PREVIOUS, Authority
from controller.errors import ConflictError, UnavailableError

_FRESH, _BEFORE = ".fresh", ".before"  # beside the directory: the stage being made, the one being left
_KEPT: Final = (f"{OPERATING}.*", f"*-{OPERATING}.*", "revoked.pem")  # the broker's operator has a root of its own


class Stage(StrEnum):
    """What lies in the directory. ANNOUNCED: devices learn the next CA; SWITCHED: the next CA issues."""

    SETTLED = "settled"
    ANNOUNCED = "announced"
    SWITCHED = "switched"


def stage(directory: Path) -> Stage:
    """Return the stage of the CA in ``directory``."""
    if (directory / NEXT).is_dir():
        return Stage.ANNOUNCED
    return Stage.SWITCHED if (directory / PREVIOUS).is_dir() else Stage.SETTLED


def recover(directory: Path) -> None:
    """Finish or undo a stage's beginning that was cut off. To be called before the CA is opened."""
    fresh, before = _beside(directory, _FRESH), _beside(directory, _BEFORE)
    if not directory.exists() and fresh.is_dir():  # cut between the two renames: the new stage is whole
        fresh.rename(directory)
        _sync(directory.parent)
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.rmtree(before, ignore_errors=True)


def announce(directory: Path, now: float) -> None:
    """Make the next CA, which devices are told of from now on. Raises ConflictError in another stage."""
    _expect(directory, Stage.SETTLED, "a replacement of the CA is under way: `muster authority show`")
    fresh = _copy(directory)
    Authority(fresh / NEXT, now, below=True)
    _take(directory, fresh)


def switch(directory: Path) -> None:
    """Let the next CA issue; the old one is still believed. Raises ConflictError in another stage."""
    _expect(directory, Stage.ANNOUNCED, "no other CA was announced: `muster authority announce` comes first")
    fresh = _beside(directory, _FRESH)
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(directory / NEXT, fresh)
    for pattern in _KEPT:
        for file in directory.glob(pattern):
            shutil.copy2(file, fresh)
    shutil.copytree(directory, fresh / PREVIOUS, ignore=shutil.ignore_patterns(NEXT, *_KEPT))
    _take(directory, fresh)


def finish(directory: Path) -> None:
    """Forget the old CA: what it issued is refused from now on. Raises ConflictError in another stage."""
    _expect(directory, Stage.SWITCHED, "there is no old CA to forget: `muster authority show`")
    fresh = _copy(directory)
    shutil.rmtree(fresh / PREVIOUS)
    _take(directory, fresh)


def _expect(directory: Path, wanted: Stage, otherwise: str) -> None:
    recover(directory)
    if not (directory / "root.pem").exists():
        raise UnavailableError(
            f"there is no fleet CA in {directory}: is this the controller's data directory?", "no_ca"
        )
    if (found := stage(directory)) is not wanted:
        raise ConflictError(f"the CA is {found.value}: {otherwise}", "wrong_stage")


def _copy(directory: Path) -> Path:
    fresh = _beside(directory, _FRESH)
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(directory, fresh)
    return fresh


def _take(directory: Path, fresh: Path) -> None:
    """Put ``fresh`` in the place of ``directory``."""
    for folder, _, files in os.walk(fresh):
        for name in files:
            with (Path(folder) / name).open("rb") as file:
                os.fsync(file.fileno())
        _sync(Path(folder))
    before = _beside(directory, _BEFORE)
    directory.rename(before)
    fresh.rename(directory)
    _sync(directory.parent)
    shutil.rmtree(before)


def _beside(directory: Path, suffix: str) -> Path:
    return directory.with_name(directory.name + suffix)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
