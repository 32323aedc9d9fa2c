"""ONNX Runtime for the builder's child processes: opens, describes and runs a model.

Invariant: one thread that does not spin, the processor only; every error of the engine becomes a refusal with its first
line. Does not check what a model may contain (`onnx.py`).
"""

from __future__ import annotations

import re
from typing import Any, Final

import onnxruntime

from controller.builds.convert.data import DTYPES, Array, InputRefusedError, Rows, TensorSpec

_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:/-]{0,99}")
_TYPES: Final = {
    "float": "FP32",
    "double": "FP64",
    "float16": "FP16",
    "bool": "BOOL",
    **{f"{sign}int{bits}": f"{sign.upper()}INT{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}
assert set(_TYPES.values()) == set(DTYPES), "a datatype that a model may have must be one that the data file may have"


def open_session(payload: bytes) -> Any:
    """Return an engine session with one thread that does not spin. Raises InputRefusedError."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(payload, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the binding raises a kind of its own for every status
        raise InputRefusedError(f"ONNX Runtime cannot load the model: {first_line(error)}") from error


def run(session: Any, rows: Rows) -> list[Array]:
    """Return the outputs for ``rows``. Raises InputRefusedError."""
    try:
        outputs: list[Array] = session.run(None, rows)
    except Exception as error:
        raise InputRefusedError(f"the model fails on its own data: {first_line(error)}") from error
    return outputs


def tensors_of(session: Any) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return the inputs and outputs of a loaded model. Raises InputRefusedError for what devices cannot serve."""
    inputs = tuple(_tensor(value, "input") for value in session.get_inputs())
    outputs = tuple(_tensor(value, "output") for value in session.get_outputs())
    if not 1 <= len(inputs) <= 32 or not 1 <= len(outputs) <= 32:
        raise InputRefusedError(f"the model has {len(inputs)} inputs and {len(outputs)} outputs; 1 to 32 are possible")
    for spec in inputs:
        if not spec.shape:
            raise InputRefusedError(f"input {spec.name} is a single number; its first size must be the number of rows")
    return inputs, outputs


def _tensor(value: Any, kind: str) -> TensorSpec:
    name, typed = str(value.name), str(value.type)
    if not _NAME.fullmatch(name):
        raise InputRefusedError(f"the {kind} name {name[:100]!r} is not possible: letters, digits and _ . : / - are")
    inner = typed.removeprefix("tensor(").removesuffix(")")
    if not typed.startswith("tensor(") or inner not in _TYPES:
        raise InputRefusedError(f"{kind} {name} is a {typed[:100]}; export plain tensors (for sklearn: no ZipMap)")
    shape = tuple(size if isinstance(size, int) and size >= 0 else -1 for size in value.shape)
    if len(shape) > 8:
        raise InputRefusedError(f"{kind} {name} has {len(shape)} dimensions, at most 8 are possible")
    return TensorSpec(name, _TYPES[inner], shape)


def first_line(error: Exception) -> str:
    """Return the first line of what ``error`` says."""
    lines = str(error).strip().splitlines()
    return lines[0][:500] if lines else type(error).__name__
