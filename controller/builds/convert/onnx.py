"""Checks an uploaded ONNX model, and makes FP32 and INT8 candidates of it.

Invariant: runs only as a child process (`controller/builds/child.py`); a model with external data, with functions or
operators of its own or with an odd opset is refused with a sentence before any engine loads it, and an engine that dies
on it takes only this process along. Does not measure or judge. The only file that imports onnx and the quantiser.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import onnx
from onnx import version_converter
from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process

from controller.builds.child import serve_request
from controller.builds.convert.data import (
    LABEL,
    Data,
    InputRefusedError,
    Rows,
    TensorSpec,
    count,
    read_data,
    take,
)
from controller.builds.convert.engine import first_line, open_session, run, tensors_of

MODULE: Final = "controller.builds.convert.onnx"
MAX_MODEL: Final = 1024**3  # bytes; a protobuf message ends at twice that
MAX_NODES: Final = 50_000
MAX_DEPTH: Final = 8
MAX_GOLDEN: Final = 32 * 1024**2  # bytes; devices refuse a golden file of more than twice that
OLDEST_OPSET, NEWEST_OPSET, WANTED_OPSET = 7, 21, 17
NEWEST_IR: Final = 10  # with opset 21, of the oldest runtime that builds name
LEAST_FOR_INT8: Final = 13  # scales per channel came with it
DOMAINS: Final = {"", "ai.onnx", "ai.onnx.ml"}
CALIBRATION_BATCH: Final = 16
MAX_CALIBRATION: Final = 1000


class CheckRequest(msgspec.Struct, frozen=True, kw_only=True):
    """model, data: paths of what was uploaded; output: where the cleaned FP32 model goes."""

    model: str
    data: str
    output: str


class Checked(msgspec.Struct, frozen=True, kw_only=True):
    """What was found. batch: the model's fixed number of rows, 0 when a request chooses. labelled: see `recipe.py`."""

    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    batch: int
    calibration: int
    heldout: int
    labelled: bool


class QuantizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """model: a cleaned FP32 model; calibration: "minmax" or "percentile"; output: where the INT8 model goes."""

    model: str
    data: str
    output: str
    calibration: str


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Do what ``request`` asks (one key names the operation). Raises InputRefusedError."""
    if "check" in request:
        checked = check(msgspec.convert(request["check"], CheckRequest))
        return {"checked": msgspec.to_builtins(checked)}
    quantize(msgspec.convert(request["quantize"], QuantizeRequest))
    return {}


def check(request: CheckRequest) -> Checked:
    """Refuse what must not be used; write the cleaned model; return what was found. Raises InputRefusedError."""
    model = _read_model(Path(request.model))
    _clean(model)
    if _opset(model) < LEAST_FOR_INT8:
        model = _upgrade(model)
    try:
        onnx.checker.check_model(model)
        payload = model.SerializeToString()
    except Exception as error:  # the checker and protobuf raise many kinds: whatever it is, the model is not usable
        raise InputRefusedError(f"the ONNX checker refuses the model: {first_line(error)}") from error
    del model
    session = open_session(payload)
    inputs, outputs = tensors_of(session)
    batches = {spec.shape[0] for spec in inputs}
    if len(batches) != 1:
        raise InputRefusedError("the first size of every input must be the number of rows: all free, or all the same")
    batch = max(0, batches.pop())
    data = read_data(Path(request.data), inputs)
    if batch and count(data.golden) < batch:
        raise InputRefusedError(f"the model takes exactly {batch} rows, the data file has fewer golden rows")
    golden = take(data.golden, 0, batch or count(data.golden))
    answers = run(session, golden)
    size = sum(array.nbytes for array in (*golden.values(), *answers))
    if size > MAX_GOLDEN:
        raise InputRefusedError(
            f"{count(golden)} golden rows and their outputs take {size} bytes, at most {MAX_GOLDEN} are possible: "
            "put fewer rows into the golden arrays of the data file"
        )
    labelled = _labelled(data, answers[0])
    Path(request.output).write_bytes(payload)
    return Checked(
        inputs=list(inputs),
        outputs=list(outputs),
        batch=batch,
        calibration=count(data.calibration),
        heldout=count(data.heldout),
        labelled=labelled,
    )


def quantize(request: QuantizeRequest) -> None:
    """Write the INT8 build: QDQ, U8 activations, S8 weights per channel. Raises InputRefusedError."""
    path = Path(request.model)
    session = open_session(path.read_bytes())
    inputs, _ = tensors_of(session)
    data = read_data(Path(request.data), inputs)
    batch = max(0, inputs[0].shape[0])
    with tempfile.TemporaryDirectory(dir=Path(request.output).parent) as directory:
        prepared = Path(directory) / "prepared.onnx"
        try:
            quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
            quantization.quantize_static(
                str(prepared),
                request.output,
                _Rows(data.calibration, batch),
                quant_format=quantization.QuantFormat.QDQ,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                per_channel=True,
                reduce_range=_sums_overflow(),
                calibrate_method=(
                    quantization.CalibrationMethod.Percentile
                    if request.calibration == "percentile"
                    else quantization.CalibrationMethod.MinMax
                ),
            )
        except MemoryError:
            raise
        except Exception as error:  # the quantiser raises whatever its many parts raise
            raise InputRefusedError(f"INT8 conversion failed: {type(error).__name__}: {first_line(error)}") from error


def _read_model(path: Path) -> onnx.ModelProto:
    size = path.stat().st_size
    if size > MAX_MODEL:
        raise InputRefusedError(f"the model file has {size} bytes, at most {MAX_MODEL} are possible")
    try:
        model = onnx.load_model_from_string(path.read_bytes())
    except Exception as error:  # protobuf's decoder raises kinds that differ between its implementations
        raise InputRefusedError(f"the file is not an ONNX model: {first_line(error)}") from error
    if not model.graph.node:
        raise InputRefusedError("the file holds no ONNX graph")
    if model.functions:
        raise InputRefusedError("the model brings functions of its own: export it with all of them inlined")
    domains = {entry.domain for entry in model.opset_import}
    nodes = 0
    for graph in _graphs(model.graph, 0):
        nodes += len(graph.node)
        if nodes > MAX_NODES:
            raise InputRefusedError(f"the model has more than {MAX_NODES} nodes")
        domains |= {node.domain for node in graph.node}
        for tensor in _constants(graph):
            if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
                raise InputRefusedError("the model keeps weights in another file: export it with all data inside")
    if foreign := domains - DOMAINS:
        raise InputRefusedError(f"the model uses operators that are not ONNX's own: {', '.join(sorted(foreign))[:300]}")
    if not OLDEST_OPSET <= _opset(model) <= NEWEST_OPSET:
        raise InputRefusedError(f"opset {_opset(model)} is outside of {OLDEST_OPSET} to {NEWEST_OPSET}: export again")
    return model


def _opset(model: onnx.ModelProto) -> int:
    return next((int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)


def _graphs(graph: onnx.GraphProto, depth: int) -> Iterator[onnx.GraphProto]:
    if depth > MAX_DEPTH:
        raise InputRefusedError(f"the model's graphs are nested more than {MAX_DEPTH} deep")
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from _graphs(inner, depth + 1)


def _constants(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from attribute.tensors
            if attribute.HasField("t"):
                yield attribute.t
            single = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
            sparses = (*attribute.sparse_tensors, *single)
            for sparse in sparses:
                yield from (sparse.values, sparse.indices)


def _clean(model: onnx.ModelProto) -> None:
    """Drop what tells about the author's machine, and what only misleads the quantiser."""
    model.ir_version = min(model.ir_version, NEWEST_IR)  # the frame's version, not the operators': runtimes are strict
    del model.training_info[:]  # more graphs, which nobody runs
    told: list[Any] = [model]
    for graph in _graphs(model.graph, 0):
        del graph.value_info[:]  # stale shapes in it make the quantiser fail
        told += [graph, *graph.node, *graph.input, *graph.output, *_constants(graph)]
    for thing in told:  # exporters write paths and whole stack traces here
        thing.doc_string = ""
        del thing.metadata_props[:]
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    del model.graph.input[:]
    model.graph.input.extend(inputs)


def _upgrade(model: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return version_converter.convert_version(model, WANTED_OPSET)
    except Exception as error:
        raise InputRefusedError(
            f"opset {_opset(model)} is old and cannot be brought to {WANTED_OPSET} ({first_line(error)}): export again"
        ) from error


def _labelled(data: Data, scores: np.ndarray[Any, Any]) -> bool:
    """Whether accuracy can be told: the first output has a score for each class."""
    if data.labels is None or not len(data.labels):
        return False
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise InputRefusedError(f"{LABEL} needs a first output with one score for each class, it is {scores.shape}")
    if int(data.labels.min()) < 0 or int(data.labels.max()) >= scores.shape[1]:
        raise InputRefusedError(f"{LABEL} has classes outside of 0 to {scores.shape[1] - 1}")
    return True


def _sums_overflow() -> bool:
    """Whether this is an x86 processor without int8 dot products, where eight-bit weights can overflow sums."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    flags = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)  # only x86 has a line of this name
    return flags is not None and "vnni" not in flags[1]


class _Rows(quantization.CalibrationDataReader):  # type: ignore[misc]  # the base class comes without types
    """Hands calibration rows to the quantiser, always equally many: the percentile method stacks what it is given."""

    def __init__(self, rows: Rows, batch: int) -> None:
        self._rows, self._size, self._at = rows, batch or CALIBRATION_BATCH, 0
        self._end = min(count(rows), MAX_CALIBRATION)

    def get_next(self) -> Rows | None:
        """Return the next rows, or None after the last."""
        start, self._at = self._at, self._at + self._size
        return take(self._rows, start, self._at) if self._at <= self._end else None


if __name__ == "__main__":
    serve_request(answer, InputRefusedError)
