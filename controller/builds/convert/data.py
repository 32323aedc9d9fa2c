"""Reads the data file that comes with a model: calibration, held-out and golden rows.

Invariant: nothing in the file is believed before it is compared with what the archive really holds: array headers are
read first, so that a header that promises terabytes, a pickled object or an unknown name is refused before memory is
taken. Runs in a child process only. Does not know any engine.
"""

from __future__ import annotations

import lzma
import math
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Rows = dict[str, Array]

MAX_BYTES: Final = 2 * 1024**3
MAX_ROWS: Final = 10_000
MAX_ARRAYS: Final = 128
GOLDEN_ROWS: Final = 16
LABEL: Final = "heldout_label"
DTYPES: Final = {
    "FP32": "float32",
    "FP64": "float64",
    "FP16": "float16",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "BOOL": "bool",
}


_UNREADABLE: Final = (
    OSError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    NotImplementedError,
    EOFError,
    ValueError,
    RuntimeError,
)


class InputRefusedError(Exception):
    """The uploaded model or data must not be used, and what to do about it."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output as a manifest names it (wire 6). shape: -1 where a request chooses."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Data:
    """Rows by input name. Empty where the file has none; ``labels``: the right class of each held-out row."""

    calibration: Rows
    heldout: Rows
    golden: Rows
    labels: Array | None


def read_data(path: Path, inputs: tuple[TensorSpec, ...]) -> Data:
    """Return the rows in ``path`` (npz) for a model with ``inputs``.

    Arrays are named `calibration_NAME`, `heldout_NAME`, `golden_NAME` for each input, and `heldout_label`. Without
    golden rows the first held-out or calibration rows serve. Raises InputRefusedError.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = _read_arrays(archive, _expected(inputs))
    except _UNREADABLE as error:
        raise InputRefusedError(f"the data file is not a readable npz archive: {error}") from error
    parts = {part: _part(arrays, part, inputs) for part in ("calibration", "heldout", "golden")}
    golden = parts["golden"] or _first(parts["heldout"]) or _first(parts["calibration"])
    if not golden:
        raise InputRefusedError("the data file has no golden, held-out or calibration rows: a build cannot be proven")
    labels = arrays.get(LABEL)
    rows = count(parts["heldout"])
    if labels is not None and (labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) != rows):
        raise InputRefusedError(f"{LABEL} must hold one whole number for each held-out row")
    return Data(parts["calibration"], parts["heldout"], _first(golden), labels)


def count(rows: Rows) -> int:
    """Return how many rows there are."""
    return min((len(array) for array in rows.values()), default=0)


def take(rows: Rows, start: int, stop: int) -> Rows:
    """Return rows ``start`` to ``stop``."""
    return {name: array[start:stop] for name, array in rows.items()}


def _first(rows: Rows) -> Rows:
    return take(rows, 0, GOLDEN_ROWS) if rows else {}


def _expected(inputs: tuple[TensorSpec, ...]) -> dict[str, TensorSpec | None]:
    names: dict[str, TensorSpec | None] = {LABEL: None}
    for part in ("calibration", "heldout", "golden"):
        names |= {f"{part}_{spec.name}": spec for spec in inputs}
    return names


def _read_arrays(archive: zipfile.ZipFile, expected: Mapping[str, TensorSpec | None]) -> Rows:
    entries = archive.infolist()
    total = sum(entry.file_size for entry in entries)
    if len(entries) > MAX_ARRAYS or total > MAX_BYTES:
        raise InputRefusedError(
            f"the data file holds {len(entries)} arrays of {total} bytes, at most {MAX_BYTES} are allowed"
        )
    arrays: Rows = {}
    for entry in entries:
        name = entry.filename.removesuffix(".npy")
        if name not in expected or name in arrays:
            known = ", ".join(sorted(expected))
            raise InputRefusedError(f"the data file has an array {name[:100]!r}; this model knows {known[:500]}")
        with archive.open(entry) as stream:
            arrays[name] = _read_array(stream, name, entry.file_size, expected[name])
    return arrays


def _read_array(stream: IO[bytes], name: str, size: int, spec: TensorSpec | None) -> Array:
    version = np.lib.format.read_magic(stream)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(
        version
    )
    if read_header is None:
        raise InputRefusedError(f"{name} is written in an unknown version of the npy format: {version}")
    try:
        shape, fortran, dtype = read_header(stream)
    except MemoryError:
        raise
    except Exception as error:  # a header is a Python literal: what its many parsers raise is not to be foreseen
        raise InputRefusedError(f"{name} has a header that cannot be read: {type(error).__name__}: {error}") from error
    if dtype.hasobject:
        raise InputRefusedError(f"{name} holds pickled objects, which could run code: save plain numbers")
    if any(type(length) is not int or length < 0 for length in shape) or math.prod(shape) * dtype.itemsize > size:
        raise InputRefusedError(f"{name} promises an array of shape {shape} but holds only {size} bytes")
    if not shape or shape[0] > MAX_ROWS:
        raise InputRefusedError(f"{name} has shape {shape}: it needs rows, at most {MAX_ROWS}")
    if spec is not None:
        wanted = DTYPES[spec.datatype]
        fits = len(shape) == len(spec.shape) and all(
            want in (-1, have) for have, want in zip(shape[1:], spec.shape[1:], strict=True)
        )
        if dtype != np.dtype(wanted) or not fits:
            shown = "x".join("?" if size < 0 else str(size) for size in spec.shape)
            raise InputRefusedError(f"{name} is {dtype} of shape {shape}; the model wants {wanted} of shape {shown}")
    payload = stream.read(math.prod(shape) * dtype.itemsize)
    flat = np.frombuffer(payload, dtype=dtype)
    array: Array = flat.reshape(shape, order="F" if fortran else "C")
    return np.ascontiguousarray(array)


def _part(arrays: Rows, part: str, inputs: tuple[TensorSpec, ...]) -> Rows:
    rows = {spec.name: arrays[key] for spec in inputs if (key := f"{part}_{spec.name}") in arrays}
    if rows and len(rows) < len(inputs):
        raise InputRefusedError(f"the data file has {part} rows for some inputs only")
    if len({len(array) for array in rows.values()}) > 1:
        raise InputRefusedError(f"the {part} arrays have different numbers of rows")
    return rows if count(rows) else {}
