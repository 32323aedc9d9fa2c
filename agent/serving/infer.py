"""Open Inference Protocol V2 in JSON: a request to arrays, arrays to a response.

Invariant: pure. Arrays that leave ``read_request`` have exactly the names, datatypes and shapes that the model declares
and hold what the client wrote (no silent rounding of 1.5 to 1, no wrap-around of 300 to 44); everything else is a
RefusedError with status 400 that says what was expected. Does not know queues, engines or HTTP.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, Final

import msgspec
import numpy as np

from agent.serving.refusal import RefusedError
from agent.serving.runtimes import DATATYPE_OF, DATATYPES, Array, TensorSpec

MAX_ELEMENTS: Final = 16 * 1024**2
MAX_INPUTS: Final = 64
MAX_TIMEOUT_US: Final = 3_600_000_000
_SHOWN: Final = 64  # characters of a client's text that an error message repeats


class Signature(msgspec.Struct, frozen=True):
    """What a model takes and gives. batched: whether the first size of every tensor counts rows.

    tied: groups of sizes, each an input and an axis, that must be equal in a request.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batched: bool
    tied: tuple[tuple[tuple[str, int], ...], ...] = ()


class Parsed(msgspec.Struct, frozen=True):
    """A request that fits the model. items: rows, 1 where rows are not counted; timeout: seconds or None.

    key: equal for requests that may run in one batch. wanted: names of the outputs to answer, in this order.
    """

    inputs: dict[str, Array]
    items: int
    bytes: int
    key: tuple[tuple[int, ...], ...]
    wanted: tuple[str, ...]
    id: str | None
    timeout: float | None


def signature(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> Signature:
    """Return the signature of a model; its first size counts rows when all tensors leave it open, by one name."""
    tensors = [*inputs, *outputs]
    open_first = all(spec.shape and spec.shape[0] == -1 for spec in tensors)
    names = {spec.dimensions[0] if spec.dimensions else "" for spec in tensors}
    batched = bool(inputs) and open_first and len(names) == 1
    places: dict[str, list[tuple[str, int]]] = {}
    for spec in inputs:
        for axis, name in enumerate(spec.dimensions):
            if name:
                places.setdefault(name, []).append((spec.name, axis))
    if batched and names == {""}:
        places[""] = [(spec.name, 0) for spec in inputs]
    tied = tuple([tuple(group) for group in places.values() if len(group) > 1])
    return Signature(tuple(inputs), tuple(outputs), batched, tied)


def read_request(request: object, model: Signature) -> Parsed:
    """Return the arrays that ``request`` (decoded JSON) asks to run. Raises RefusedError (400)."""
    if not isinstance(request, dict):
        raise _bad('the body must be a JSON object with "inputs"')
    given = request.get("inputs")
    if not isinstance(given, list) or len(given) > MAX_INPUTS:
        raise _bad(f'"inputs" must be a list of tensors; this model takes {_describe_all(model.inputs)}')
    specs = {spec.name: spec for spec in model.inputs}
    arrays: dict[str, Array] = {}
    for tensor in given:
        name = tensor.get("name") if isinstance(tensor, dict) else None
        spec = specs.get(name) if isinstance(name, str) else None
        if spec is None:
            raise _bad(f"no input is named {_show(name)}; this model takes {_describe_all(model.inputs)}")
        if spec.name in arrays:
            raise _bad(f"input {spec.name!r} is given twice")
        arrays[spec.name] = _read_tensor(tensor, spec)
    if len(arrays) != len(specs):
        missing = [spec for spec in model.inputs if spec.name not in arrays]
        raise _bad(f"input {_describe_all(missing)} is missing")
    for group in model.tied:
        if len({arrays[name].shape[axis] for name, axis in group}) > 1:
            sizes = ", ".join(f'size {axis + 1} of "{name}" is {arrays[name].shape[axis]}' for name, axis in group)
            raise _bad(f"these sizes must be equal: {sizes}")
    items = arrays[model.inputs[0].name].shape[0] if model.batched else 1
    if items == 0:
        raise _bad("the first size (rows) must be at least 1")
    identity, parameters = request.get("id"), request.get("parameters")
    if identity is not None and not (isinstance(identity, str) and len(identity) <= 256):
        raise _bad('"id" must be a text of at most 256 characters')
    return Parsed(
        arrays,
        items,
        sum([array.nbytes for array in arrays.values()]),
        tuple([arrays[spec.name].shape[1:] for spec in model.inputs]),
        _wanted(request.get("outputs"), model),
        identity,
        _timeout(parameters) if parameters is not None else None,
    )


def response(model: str, version: str, parsed: Parsed, outputs: Mapping[str, Array]) -> dict[str, Any]:
    """Return the V2 response. ``data`` are flat contiguous arrays: for an encoder that knows numpy (orjson)."""
    body: dict[str, Any] = {"model_name": model, "model_version": version}
    if parsed.id is not None:
        body["id"] = parsed.id
    body["outputs"] = [
        {
            "name": name,
            "shape": outputs[name].shape,
            "datatype": DATATYPE_OF[outputs[name].dtype],
            "data": np.ascontiguousarray(outputs[name]).reshape(-1),
        }
        for name in parsed.wanted
    ]
    return body


def describe(spec: TensorSpec) -> str:
    """Return ``spec`` as a person writes it: "image" FP32 [-1, 64]."""
    return f'"{spec.name}" {spec.datatype} {list(spec.shape)}'


def _read_tensor(tensor: dict[str, Any], spec: TensorSpec) -> Array:
    datatype = tensor.get("datatype")
    if datatype != spec.datatype:
        raise _bad(f'input "{spec.name}" must have the datatype {spec.datatype}, not {_show(datatype)}')
    if datatype == "FP16":
        raise _bad(f'input "{spec.name}" is FP16, which JSON cannot carry in this protocol')
    shape = tensor.get("shape")
    if not isinstance(shape, list) or len(shape) != len(spec.shape):
        raise _bad(f'input "{spec.name}" must have a shape like {list(spec.shape)}, not {_show(shape)}')
    for size, wanted in zip(shape, spec.shape, strict=True):
        # `type(...) is int` and not isinstance: JSON's true is an int to Python.
        if type(size) is not int or size < 0 or (size != wanted and wanted != -1):
            raise _bad(f'input "{spec.name}" must have a shape like {list(spec.shape)}, not {_show(shape)}')
    count = math.prod(shape)
    if count > MAX_ELEMENTS:
        raise _bad(f'input "{spec.name}" has {count} elements, at most {MAX_ELEMENTS} are taken')
    data = tensor.get("data")
    if not isinstance(data, list):
        raise _bad(f'input "{spec.name}" must have "data": a flat list of {count} values, or lists nested as the shape')
    return _convert(data, tuple(shape), count, spec)


def _convert(data: list[Any], shape: tuple[int, ...], count: int, spec: TensorSpec) -> Array:
    flat = _flatten(data, shape)
    if flat is None:
        raise _bad(f'"data" of input "{spec.name}" must be {count} values, flat or nested as {list(shape)}')
    if len(flat) != count:
        raise _bad(f'"data" of input "{spec.name}" must be {count} values for the shape {list(shape)}, not {len(flat)}')
    dtype = DATATYPES[spec.datatype]
    # The types are looked at before anything is converted: numpy takes texts for numbers and numbers for texts, and
    # gives a short text the room of the longest one, so that a small body could ask for gigabytes.
    if not _TYPES[dtype.kind].issuperset(map(type, flat)):
        raise _bad(f'"data" of input "{spec.name}" must be {_KINDS[dtype.kind]} for {spec.datatype}')
    try:
        with np.errstate(over="ignore"):  # a number beyond FP32 becomes an infinity, and models may be given those
            return np.array(flat, dtype).reshape(shape)
    except OverflowError as error:
        bits = 8 * dtype.itemsize
        low, high = (0, 2**bits - 1) if dtype.kind == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        raise _bad(f'input "{spec.name}" has values outside {spec.datatype} ({low} to {high})') from error


def _flatten(data: list[Any], shape: tuple[int, ...]) -> list[Any] | None:
    """Return the values of ``data`` in one list, as they are when it is flat; None when it is nested in another way."""
    if len(shape) < 2 or not data or type(data[0]) is not list:
        return data
    if len(data) != shape[0]:
        return None
    for size in shape[1:]:
        if not {list}.issuperset(map(type, data)) or not {size}.issuperset(map(len, data)):
            return None
        data = list(chain.from_iterable(data))
    return data


_TYPES: Final = {
    "f": frozenset((float, int)),
    "i": frozenset((int,)),
    "u": frozenset((int,)),
    "b": frozenset((bool,)),
}
_KINDS: Final = {"f": "numbers", "i": "whole numbers", "u": "whole numbers from 0 on", "b": "true or false"}


def _wanted(asked: object, model: Signature) -> tuple[str, ...]:
    names = tuple([spec.name for spec in model.outputs])
    if asked is not None:
        if not isinstance(asked, list) or len(asked) > len(names):
            raise _bad(f'"outputs" must list outputs, each once; this model gives {_describe_all(model.outputs)}')
        chosen: list[str] = []
        for output in asked:
            name = output.get("name") if isinstance(output, dict) else None
            if not isinstance(name, str) or name not in names:
                raise _bad(f"no output is named {_show(name)}; this model gives {_describe_all(model.outputs)}")
            chosen.append(name)
        if len(set(chosen)) != len(chosen):
            raise _bad("an output is asked for twice")
        if chosen:
            names = tuple(chosen)
    for spec in model.outputs:
        if spec.datatype == "FP16" and spec.name in names:
            raise _bad(f'output "{spec.name}" is FP16, which JSON cannot carry; ask for other outputs')
    return names


def _timeout(parameters: object) -> float | None:
    if not isinstance(parameters, dict):
        raise _bad('"parameters" must be an object')
    timeout = parameters.get("timeout")
    if timeout is None:
        return None
    if type(timeout) is not int or not 0 < timeout <= MAX_TIMEOUT_US:
        raise _bad(f'"parameters.timeout" must be whole microseconds from 1 to {MAX_TIMEOUT_US}')
    return timeout / 1e6


def _describe_all(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(describe(spec) for spec in specs)


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def _bad(message: str) -> RefusedError:
    return RefusedError(400, message, "bad_request")
