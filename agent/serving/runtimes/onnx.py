"""ONNX Runtime: the one file of serving that imports this engine.

Invariant: an engine that is idle uses no processor time (no spinning threads), and every refusal of the engine leaves
here as a ServingError or DeviceError that names the file. Does not know builds, requests or queues.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import onnxruntime

from agent.errors import DeviceError, ServingError
from agent.serving.runtimes import Array, TensorSpec

ARENA_FROM_BYTES: Final = 50 * 1024**2
"""From this size of the model file on, the engine's own allocator pays; below it only keeps memory."""

_DATATYPES: Final = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
}


class OnnxRuntime:
    """One inference session on the processor."""

    def __init__(self, file: Path, threads: int = 1) -> None:
        """Load ``file``. Raises DeviceError (unreadable, no memory) or ServingError (the engine refuses the model)."""
        try:
            size = file.stat().st_size
        except OSError as error:
            raise DeviceError(f"model file {file}: {error.strerror}; install the build again", "no_model") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.enable_cpu_mem_arena = size >= ARENA_FROM_BYTES
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
        try:
            self._session: Any = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except MemoryError as error:
            raise DeviceError(f"model file {file.name}: not enough memory to load it", "no_memory") from error
        except Exception as error:  # the engine's exceptions share no base but this one
            if _for_want_of_memory(error):
                raise DeviceError(f"model file {file.name}: not enough memory to load it", "no_memory") from error
            raise ServingError(f"ONNX Runtime refuses {file.name}: {_first_line(error)}", "bad_model") from error
        self._inputs = tuple(_spec(value, file.name) for value in self._session.get_inputs())
        self._outputs = tuple(_spec(value, file.name) for value in self._session.get_outputs())
        self._names = [spec.name for spec in self._outputs]

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What the model wants."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What the model gives."""
        return self._outputs

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return every output by name. Raises ServingError (the engine refuses the inputs) or DeviceError (memory)."""
        try:
            values = self._session.run(self._names, inputs)
        except MemoryError as error:
            raise DeviceError("not enough memory for this request; send fewer rows", "no_memory") from error
        except Exception as error:  # the engine's exceptions share no base but this one
            if _for_want_of_memory(error):
                raise DeviceError("not enough memory for this request; send fewer rows", "no_memory") from error
            raise ServingError(f"the model failed on these inputs: {_first_line(error)}", "run_failed") from error
        return dict(zip(self._names, values, strict=True))

    def close(self) -> None:
        """Drop the session and hand its memory back to the system."""
        self._session = None
        _trim()


def version() -> str:
    """Return the engine's version, such as "1.31.1"."""
    return str(onnxruntime.__version__)


def _spec(value: Any, file: str) -> TensorSpec:
    datatype = _DATATYPES.get(value.type)
    if datatype is None:
        raise ServingError(f"{file}: {value.name!r} is a {value.type}, which is not served here", "bad_model")
    shape = tuple(size if isinstance(size, int) else -1 for size in value.shape)
    names = tuple(size if isinstance(size, str) else "" for size in value.shape)
    return TensorSpec(value.name, datatype, shape, names)


def _for_want_of_memory(error: Exception) -> bool:
    return "bad_alloc" in str(error) or "Failed to allocate memory" in str(error)


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:500] if text else type(error).__name__


def _trim() -> None:
    """Return freed pages to the system where the C library knows how (glibc); elsewhere nothing is lost."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
