import contextlib
import tracemalloc

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.serving.infer import Signature, read_request, response, signature
from agent.serving.refusal import RefusedError
from agent.serving.runtimes import DATATYPES, TensorSpec

MODEL = signature(
    (TensorSpec("image", "FP32", (-1, 2), ("n", "")),), (TensorSpec("scores", "FP32", (-1, 3), ("n", "")),)
)


def one(datatype: str, shape: tuple[int, ...] = (-1,)) -> Signature:
    return signature((TensorSpec("x", datatype, shape),), (TensorSpec("y", "FP32", (-1,)),))


def ask(
    data: object, shape: object = (1, 2), name: object = "image", datatype: object = "FP32", **more: object
) -> object:
    tensor = {"name": name, "shape": list(shape) if isinstance(shape, tuple) else shape, "datatype": datatype}
    return {"inputs": [tensor | {"data": data}]} | more


@pytest.mark.parametrize("data", [[1, 2.5, 3, 4], [[1, 2.5], [3, 4]]])
def test_flat_and_nested_data_are_the_same(data: object) -> None:
    parsed = read_request(ask(data, (2, 2)), MODEL)
    assert parsed.inputs["image"].dtype == np.float32
    assert parsed.inputs["image"].tolist() == [[1, 2.5], [3, 4]]
    assert (parsed.items, parsed.bytes, parsed.wanted, parsed.id, parsed.timeout) == (2, 16, ("scores",), None, None)


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ([], "JSON object"),
        ({}, '"inputs" must be a list'),
        ({"inputs": []}, 'input "image" FP32 [-1, 2] is missing'),
        ({"inputs": [3]}, "no input is named None"),
        (ask([1, 2], name="picture"), "no input is named 'picture'; this model takes \"image\" FP32 [-1, 2]"),
        (ask([1, 2], datatype="FP64"), "datatype FP32, not 'FP64'"),
        (ask([1, 2], datatype=None), "datatype FP32, not None"),
        (ask([1, 2], (2,)), "a shape like [-1, 2], not [2]"),
        (ask([1, 2], (1, 3)), "a shape like [-1, 2], not [1, 3]"),
        (ask([1, 2], (-1, 2)), "a shape like [-1, 2], not [-1, 2]"),
        (ask([1, 2], (True, 2)), "a shape like [-1, 2]"),
        (ask([1, 2], "1,2"), "a shape like [-1, 2]"),
        (ask([1, 2, 3]), "must be 2 values for the shape [1, 2], not 3"),
        (ask([[1], [2]]), "must be 2 values, flat or nested as [1, 2]"),
        (ask([[1, 2], [3]], (2, 2)), "flat or nested as [2, 2]"),
        (ask([[1, 2], 3], (2, 2)), "flat or nested as [2, 2]"),
        (ask([1, [2]]), "must be numbers"),
        (ask([[[1], [2]]]), "must be numbers"),
        (ask(["1", "2"]), "must be numbers"),
        (ask([None, 1]), "must be numbers"),
        (ask([True, False]), "must be numbers"),
        (ask([True, 1.5]), "must be numbers"),
        (ask(None), '"data": a flat list'),
        (ask([], (0, 2)), "at least 1"),
        (ask([1], (100_000_000, 2)), "at most"),
        (ask([1, 2], outputs=[{"name": "label"}]), "no output is named 'label'"),
        (ask([1, 2], outputs=[{"name": "scores"}] * 2), "list outputs, each once"),
        (ask([1, 2], outputs={}), "must list outputs"),
        (ask([1, 2], id=7), '"id" must be a text'),
        (ask([1, 2], parameters=[]), '"parameters" must be an object'),
        (ask([1, 2], parameters={"timeout": 0}), "whole microseconds"),
        (ask([1, 2], parameters={"timeout": True}), "whole microseconds"),
        ({"inputs": [ask([1, 2])["inputs"][0]] * 2}, "given twice"),  # type: ignore[index]
    ],
)
def test_what_does_not_fit_is_refused_with_what_was_expected(request_: object, reason: str) -> None:
    with pytest.raises(RefusedError) as caught:
        read_request(request_, MODEL)
    assert caught.value.status == 400
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("datatype", "data", "reason"),
    [
        ("INT8", [128], "outside INT8 (-128 to 127)"),
        ("UINT8", [-1], "outside UINT8 (0 to 255)"),
        ("UINT64", [-1], "outside UINT64"),
        ("INT64", [2**63], "outside INT64"),
        ("INT32", [1.5], "must be whole numbers"),
        ("BOOL", [1], "must be true or false"),
        ("FP16", [1.0], "which JSON cannot carry"),
    ],
)
def test_values_are_never_changed_to_fit(datatype: str, data: list[object], reason: str) -> None:
    with pytest.raises(RefusedError, match=reason.replace("(", r"\(").replace(")", r"\)")):
        read_request(ask(data, (1,), "x", datatype), one(datatype))


@pytest.mark.parametrize(
    ("datatype", "data"),
    [
        ("BOOL", [True, False]),
        ("UINT64", [0, 2**64 - 1]),
        ("INT64", [-(2**63), 2**63 - 1]),
        ("INT8", [-128, 127]),
        ("FP64", [1, 2.5]),
        ("FP32", [1e300, -1e300]),
    ],
)
def test_the_ends_of_each_range_pass(datatype: str, data: list[object]) -> None:
    array = read_request(ask(data, (2,), "x", datatype), one(datatype)).inputs["x"]
    assert array.dtype == DATATYPES[datatype]
    beyond = {1e300: float("inf"), -1e300: float("-inf")}
    assert array.tolist() == [beyond.get(value, value) for value in data]


def test_rows_are_counted_only_where_all_tensors_share_an_open_first_size() -> None:
    fixed = signature((TensorSpec("x", "FP32", (1, 2)),), (TensorSpec("y", "FP32", (1,)),))
    other = signature((TensorSpec("x", "FP32", (-1,), ("n",)),), (TensorSpec("y", "FP32", (-1,), ("m",)),))
    scalar = signature((TensorSpec("x", "FP32", (-1,)),), (TensorSpec("y", "FP32", ()),))
    assert [model.batched for model in (MODEL, fixed, other, scalar)] == [True, False, False, False]


def test_inputs_of_unequal_rows_are_refused() -> None:
    model = signature(
        (TensorSpec("a", "FP32", (-1,)), TensorSpec("b", "FP32", (-1,))), (TensorSpec("y", "FP32", (-1,)),)
    )
    tensors = [{"name": "b", "shape": [2], "datatype": "FP32", "data": [1, 2]}]
    tensors.append({"name": "a", "shape": [1], "datatype": "FP32", "data": [1]})
    with pytest.raises(RefusedError, match='must be equal: size 1 of "a" is 1, size 1 of "b" is 2'):
        read_request({"inputs": tensors}, model)


def test_sizes_that_the_model_gives_one_name_must_be_equal() -> None:
    model = signature(
        (TensorSpec("a", "FP32", (-1, -1), ("n", "length")), TensorSpec("b", "FP32", (-1, -1), ("n", "length"))),
        (TensorSpec("y", "FP32", (-1, -1), ("n", "length")),),
    )

    def tensor(name: str, length: int) -> dict[str, object]:
        return {"name": name, "shape": [1, length], "datatype": "FP32", "data": [0.5] * length}

    assert read_request({"inputs": [tensor("a", 3), tensor("b", 3)]}, model).items == 1
    with pytest.raises(RefusedError, match='size 2 of "a" is 3, size 2 of "b" is 2') as caught:
        read_request({"inputs": [tensor("a", 3), tensor("b", 2)]}, model)
    assert caught.value.status == 400


def test_a_model_without_inputs_is_run_as_it_is() -> None:
    model = signature((), (TensorSpec("y", "FP32", (-1,)),))
    parsed = read_request({"inputs": []}, model)
    assert (parsed.inputs, parsed.items, model.batched) == ({}, 1, False)


def test_a_long_text_among_many_values_costs_nothing() -> None:
    body = ask(["x" * 100_000] + [0.5] * 9_999, (5_000, 2))
    tracemalloc.start()
    try:
        with pytest.raises(RefusedError, match="must be numbers"):
            read_request(body, MODEL)  # as an array of texts it would be 4 GB
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("shape", "data"), [((0, 4), []), ((2, 0), []), ((2, 0), [[], []])])
def test_no_values_are_an_array_where_rows_are_not_counted(shape: tuple[int, ...], data: object) -> None:
    boxes = signature((TensorSpec("x", "FP32", (-1, -1)),), (TensorSpec("y", "FP32", ()),))
    assert read_request(ask(data, shape, "x"), boxes).inputs["x"].shape == shape


def test_response_is_the_protocol_s_object() -> None:
    parsed = read_request(ask([1, 2], id="q", parameters={"timeout": 1500}), MODEL)
    assert parsed.timeout == 0.0015
    outputs = {"scores": np.array([[1.5, 2, 3], [4, 5, 6]], np.float32)[:, ::-1]}
    body = orjson.loads(orjson.dumps(response("m", "3", parsed, outputs), option=orjson.OPT_SERIALIZE_NUMPY))
    tensor = {"name": "scores", "shape": [2, 3], "datatype": "FP32", "data": [3, 2, 1.5, 6, 5, 4]}
    assert body == {"model_name": "m", "model_version": "3", "id": "q", "outputs": [tensor]}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**64) | st.floats() | st.sampled_from(["image", "FP32", "scores"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["name", "shape", "datatype", "data", "inputs", "id"]), inner, max_size=5)
    ),
    max_leaves=20,
)


@settings(max_examples=150, deadline=None)
@given(JSON, JSON, JSON)
def test_nothing_but_a_refusal_comes_of_nonsense(shape: object, data: object, rest: object) -> None:
    tensor = {"name": "image", "datatype": "FP32", "shape": shape, "data": data}
    for body in (rest, {"inputs": rest}, {"inputs": [tensor]}, ask(data, (1, 2), outputs=rest, parameters=shape)):
        with contextlib.suppress(RefusedError):
            assert read_request(body, MODEL).inputs["image"].shape[1:] == (2,)
