from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.assignment import Accepted, Assignment, Item, Refused, judge, parse_assignment
from wire.codec import encode
from wire.errors import MalformedError

SHA = "0123456789abcdef" * 4
ITEM = Item(component="model:digits", generation=1, execution="e", build="b-1", manifest_sha256=SHA, manifest_size=100)


def assignment(epoch: int = 1, number: int = 5, items: list[Item] | None = None) -> Assignment:
    return Assignment(
        device="d-one", epoch=epoch, number=number, issued=0.0, expires=1000.0, items=[ITEM] if items is None else items
    )


positions = st.tuples(st.integers(1, 5), st.integers(1, 50))


@given(held=positions, offered=positions)
def test_a_position_never_goes_back(held: tuple[int, int], offered: tuple[int, int]) -> None:
    verdict = judge(assignment(*offered), "d-one", held, now=10.0)
    if offered < held:
        assert isinstance(verdict, Refused)
        assert verdict.code == "going_back"
    else:
        assert verdict == Accepted(repeated=offered == held)


def test_an_assignment_for_another_device_is_refused() -> None:
    verdict = judge(assignment(), "d-two", (0, 0), now=10.0)
    assert isinstance(verdict, Refused)
    assert verdict.code == "other_device"


@pytest.mark.parametrize(("now", "accepted"), [(999.9, True), (1000.0, False), (5000.0, False)])
def test_an_expired_assignment_is_refused(now: float, accepted: bool) -> None:
    verdict = judge(assignment(), "d-one", (0, 0), now=now)
    assert isinstance(verdict, Accepted) is accepted


def test_an_empty_list_is_refused() -> None:
    with pytest.raises(MalformedError):
        parse_assignment(encode(assignment(items=[])))


def test_a_component_named_twice_is_refused() -> None:
    with pytest.raises(MalformedError, match="twice"):
        parse_assignment(encode(assignment(items=[ITEM, ITEM])))


def test_a_build_needs_its_manifest() -> None:
    half = msgspec.structs.replace(ITEM, manifest_sha256=None)
    with pytest.raises(MalformedError, match="manifest"):
        parse_assignment(encode(assignment(items=[half])))


def test_a_removal_has_neither() -> None:
    removal = msgspec.structs.replace(ITEM, build=None, manifest_sha256=None, manifest_size=None)
    assert parse_assignment(encode(assignment(items=[removal]))).items[0].build is None


@pytest.mark.parametrize("component", ["digits", "model:", "model:../x", "model:A", "agent"])
def test_components_have_plain_names(component: str) -> None:
    wrong = msgspec.structs.replace(ITEM, component=component)
    with pytest.raises(MalformedError):
        parse_assignment(encode(assignment(items=[wrong])))
