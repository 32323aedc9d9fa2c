"""Golden inputs: what a build must still answer on this device.

Invariant: a comparison passes only when every expected output is there, has the expected shape, is finite where the
golden one is, and differs nowhere by more than the tolerance. Does not run anything.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from agent.errors import ServingError
from agent.serving.runtimes import Array

MAX_FILE: Final = 64 * 1024**2
NOT_COMPARABLE: Final = -1.0
_INPUT: Final = "input_"
_OUTPUT: Final = "output_"


class Golden(msgspec.Struct, frozen=True):
    """One run: the inputs, and the outputs that belong to them, by the model's names."""

    inputs: dict[str, Array]
    outputs: dict[str, Array]


class Comparison(msgspec.Struct, frozen=True):
    """``difference``: the largest absolute difference, NOT_COMPARABLE where there is none to tell."""

    passed: bool
    reason: str
    difference: float


def read_golden(file: Path) -> Golden:
    """Return what ``file`` (.npz: ``input_NAME``, ``output_NAME``) holds. Raises ServingError ("bad_golden")."""
    try:
        if file.stat().st_size > MAX_FILE:
            raise ServingError(f"golden file {file.name} is larger than {MAX_FILE} bytes", "bad_golden")
        with np.load(file, allow_pickle=False) as data:
            arrays = {name: data[name] for name in data.files}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ServingError(f"golden file {file.name} cannot be read: {error}", "bad_golden") from error
    inputs = {name.removeprefix(_INPUT): array for name, array in arrays.items() if name.startswith(_INPUT)}
    outputs = {name.removeprefix(_OUTPUT): array for name, array in arrays.items() if name.startswith(_OUTPUT)}
    if not inputs or not outputs:
        raise ServingError(f"golden file {file.name} holds no input_… or no output_… array", "bad_golden")
    return Golden(inputs, outputs)


def compare(expected: Mapping[str, Array], actual: Mapping[str, Array], tolerance: float) -> Comparison:
    """Return how far ``actual`` is from ``expected``."""
    largest = 0.0
    for name, wanted in expected.items():
        found = actual.get(name)
        if found is None:
            return Comparison(False, f"the model gives no output {name!r}", NOT_COMPARABLE)
        if found.shape != wanted.shape:
            reason = f"output {name!r} has the shape {list(found.shape)}, the golden one {list(wanted.shape)}"
            return Comparison(False, reason, NOT_COMPARABLE)
        if wanted.size == 0:
            continue
        # Equal values (also equal infinities) differ by 0; whatever is then not finite can only be wrong.
        with np.errstate(invalid="ignore"):  # infinity minus infinity
            apart = np.where(found == wanted, 0.0, np.abs(found.astype(np.float64) - wanted.astype(np.float64)))
        difference = float(np.max(apart))
        if not np.isfinite(difference):
            return Comparison(False, f"output {name!r} is not finite where the golden one is", NOT_COMPARABLE)
        largest = max(largest, difference)
    if largest > tolerance:
        reason = f"outputs differ from the golden ones by {largest:.3g}, at most {tolerance:.3g} is allowed"
        return Comparison(False, reason, largest)
    return Comparison(True, f"outputs within {tolerance:.3g} of the golden ones", largest)


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest of ``values`` that at least ``share`` of them do not exceed (nearest rank)."""
    return sorted(values)[max(math.ceil(share * len(values)), 1) - 1]
