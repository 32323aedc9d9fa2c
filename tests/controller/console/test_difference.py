from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from controller.console.difference import difference

leaves = st.none() | st.booleans() | st.integers(-3, 3) | st.floats(allow_nan=False) | st.text("ab", max_size=3)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc", max_size=2), inner, max_size=4),
    max_leaves=20,
)


def apply(value: Any, operations: list[Any]) -> Any:
    """What a page does (controller/console/web/src/lib/patch.ts)."""
    for operation in operations:
        value = _set(value, operation[0], operation)
    return value


def _set(held: Any, keys: list[Any], operation: list[Any]) -> Any:
    if not keys:
        return operation[1]
    key, *rest = keys
    copy = held.copy()
    if isinstance(copy, dict) and not rest and len(operation) == 1:
        del copy[key]
    else:
        copy[key] = _set(copy[key] if isinstance(copy, list) else copy.get(key), rest, operation)
    return copy


def same(left: Any, right: Any) -> bool:
    """Equal, and of the same types throughout: 1, 1.0 and true are three things in JSON."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


@given(values, values)
def test_applied_to_the_old_value_it_gives_the_new_one(old: Any, new: Any) -> None:
    assert same(apply(old, difference(old, new)), new)


@given(values)
def test_nothing_is_said_of_what_stayed(value: Any) -> None:
    assert difference(value, value) == []


def test_one_number_in_a_row_of_a_table_is_one_operation() -> None:
    old = {"rows": [{"id": 1, "p95": 3.0}, {"id": 2, "p95": 4.0}], "total": 2}
    new = {"rows": [{"id": 1, "p95": 3.0}, {"id": 2, "p95": 5.5}], "total": 2}
    assert difference(old, new) == [[["rows", 1, "p95"], 5.5]]
    assert difference(old, {"rows": old["rows"]}) == [[["total"]]]
