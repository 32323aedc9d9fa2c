"""Documents are complete or refused by the field's name."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.errors import InvalidError
from controller.rollouts.policy import Policy, Selector, parse_policy, parse_selector, policy_schema, takes_rest


def test_an_empty_document_is_a_policy() -> None:
    policy = parse_policy({})
    assert policy == Policy()
    assert policy.stages == ["rest"]
    assert policy.device.probation == 10.0


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"stages": []}, "$.stages"),
        ({"stages": [{"count": 0}]}, "$.stages[0].count"),
        ({"stages": [{"count": 1, "percent": 5}]}, "$.stages[0]"),
        ({"stages": [{}]}, "$.stages[0]"),
        ({"stages": ["rest", {"count": 1}]}, "$.stages[0]"),
        ({"stages": [{"rest": True}, "rest"]}, "$.stages[0]"),
        ({"stages": ["all"]}, "$.stages"),
        ({"soak": -1}, "$.soak"),
        ({"soak": float("nan")}, "$.soak"),
        ({"deadline": 0}, "$.deadline"),
        ({"gate": {"max_failed_percent": 101}}, "$.gate.max_failed_percent"),
        ({"gate": {"on_failure": "shrug"}}, "$.gate.on_failure"),
        ({"gates": {}}, "gates"),
        ({"gate": {"min": 1}}, "min"),
        ({"probation": 700}, "$.probation"),
        ({"offline": 5}, "$.offline"),
        ([], "$"),
    ],
)
def test_what_is_wrong_is_named(document: Any, words: str) -> None:
    with pytest.raises(InvalidError) as caught:
        parse_policy(document)
    assert words in str(caught.value)
    assert caught.value.code == "bad_policy"


def test_rest_has_two_spellings() -> None:
    assert [takes_rest(stage) for stage in parse_policy({"stages": [{"count": 1}, {"rest": True}]}).stages] == [
        False,
        True,
    ]
    assert takes_rest(parse_policy({"stages": ["rest"]}).stages[0])


def test_what_devices_keep_to_is_copied() -> None:
    device = parse_policy({"probation": 2.0, "offline_ok": True, "install_deadline": 60}).device
    assert (device.probation, device.offline_ok, device.install_deadline) == (2.0, True, 60.0)


def test_selectors() -> None:
    assert parse_selector({}) == Selector()
    with pytest.raises(InvalidError, match="tag"):
        parse_selector({"tag": ["a"]})


def test_the_schema_names_every_field() -> None:
    schema = policy_schema()
    fields = {field.name for field in msgspec.structs.fields(Policy)}
    assert set(schema["$defs"]["Policy"]["properties"]) == fields
    assert msgspec.json.decode(msgspec.json.encode(schema)) == schema


WORDS = st.sampled_from(["stages", "gate", "soak", "count", "percent", "rest", "offline"])
DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(WORDS, inner),
    max_leaves=8,
)


@given(DOCUMENTS)
def test_anything_is_a_policy_or_an_explained_error(document: Any) -> None:
    try:
        policy = parse_policy(document)
    except InvalidError as error:
        words = str(error)
        refused = True
    else:
        words, refused = "", False
        assert parse_policy(msgspec.to_builtins(policy)) == policy
    assert words.startswith("policy: ") == refused
