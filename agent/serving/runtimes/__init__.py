"""What an engine looks like to the rest of serving: named tensors in, named tensors out.

Invariant: plain descriptions; no engine is imported here. Does not validate requests (`infer.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]

DATATYPES: Final[dict[str, np.dtype[np.generic]]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
}
"""The Open Inference Protocol's names of datatypes that an engine here may take or give."""

DATATYPE_OF: Final = {dtype: name for name, dtype in DATATYPES.items()}


class TensorSpec(msgspec.Struct, frozen=True):
    """One input or output of a model. ``shape``: -1 stands for a size that a request chooses.

    dimensions: the names that the model gives its sizes, "" where it gives none; equal names mean equal sizes.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    dimensions: tuple[str, ...] = ()


class Runtime(Protocol):
    """A loaded model. ``run`` is called from one thread at a time."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What the model wants."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What the model gives."""

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return every output by name. Raises ServingError when the engine refuses the inputs."""

    def close(self) -> None:
        """Give the memory back; ``run`` must not be called afterwards."""
