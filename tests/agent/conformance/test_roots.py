"""Roots: a client follows a chain of them as far as each is signed by the old keys and by its own, and no further."""

from __future__ import annotations

import json

import pytest

from tests.agent.conformance.client_program import DONE, REFUSED, ClientProgram
from tests.agent.conformance.key_sets import KeySet, fresh_keys, give_keys

pytestmark = pytest.mark.hours

FIVE, OTHER_FIVE = range(5), range(5, 10)
FOLLOWED = {
    "one key by another": [KeySet([1], 1, [1]), KeySet([2], 1, [2, 1]), KeySet([2], 1, [2])],
    "unused signatures": [KeySet([1], 1, [3, 1, 4]), KeySet([2], 1, [3, 2, 1, 4]), KeySet([2], 1, [3, 2, 4])],
    "another three of five": [KeySet(FIVE, 3, [0, 2, 4]), KeySet(FIVE, 3, [0, 4, 1])],
    "all five by five others": [
        KeySet(FIVE, 3, [0, 2, 4]),
        KeySet(OTHER_FIVE, 3, [0, 2, 4, 5, 6, 7]),
        KeySet(OTHER_FIVE, 3, [5, 6, 7]),
    ],
    "threshold raised": [KeySet([1, 2, 3], 1, [1]), KeySet([1, 2, 3], 2, [1, 2])],
    "threshold lowered": [KeySet([1, 2, 3], 2, [1, 2]), KeySet([1, 2, 3], 1, [1, 2]), KeySet([1, 2, 3], 1, [1])],
}
REFUSED_LAST = {
    "old key did not sign": [KeySet([1], 1, [1]), KeySet([2], 1, [2, 3, 4])],
    "new key did not sign": [KeySet([1], 1, [1]), KeySet([2], 1, [1, 3, 4])],
    "too few for the raised threshold": [KeySet([1, 2, 3], 1, [1]), KeySet([1, 2, 3], 2, [2])],
    "too few for the threshold before": [KeySet([1, 2, 3], 2, [1, 2]), KeySet([1, 2, 3], 1, [1])],
}


def publish_chain(client: ClientProgram, chain: list[KeySet]) -> None:
    """Serve one root for each set of keys, the first as version 1."""
    signers = fresh_keys(10)
    client.repository.root.version = 0
    for given in chain:
        give_keys(client.repository, "root", given, signers)
        client.repository.publish("root")


@pytest.mark.parametrize("chain", FOLLOWED.values(), ids=list(FOLLOWED))
def test_chain_signed_by_old_and_new_keys_is_followed_to_its_end(
    lasting_client: ClientProgram, chain: list[KeySet]
) -> None:
    publish_chain(lasting_client, chain)
    assert lasting_client.init() == DONE
    assert lasting_client.refresh() == DONE
    assert lasting_client.trusts("root") == lasting_client.repository.served[f"{len(chain)}.root.json"]


@pytest.mark.parametrize("chain", REFUSED_LAST.values(), ids=list(REFUSED_LAST))
def test_root_without_a_threshold_is_refused_and_the_one_before_stays(
    lasting_client: ClientProgram, chain: list[KeySet]
) -> None:
    publish_chain(lasting_client, chain)
    assert lasting_client.init() == DONE
    assert lasting_client.refresh() == REFUSED
    assert lasting_client.trusts("root") == lasting_client.repository.served[f"{len(chain) - 1}.root.json"]


def test_first_root_without_a_version_is_never_used(lasting_client: ClientProgram) -> None:
    root = json.loads(lasting_client.repository.first_root)
    del root["signed"]["version"]
    lasting_client.init(json.dumps(root).encode())
    assert lasting_client.refresh() == REFUSED
    assert lasting_client.repository.asked == []


def test_first_root_with_a_wrong_signature_is_never_used(lasting_client: ClientProgram) -> None:
    root = json.loads(lasting_client.repository.first_root)
    root["signatures"][0]["sig"] = "00" * 70
    lasting_client.init(json.dumps(root).encode())
    assert lasting_client.refresh() == REFUSED
    assert lasting_client.repository.asked == []


def test_fields_that_nobody_knows_are_signed_with_the_rest(lasting_client: ClientProgram) -> None:
    root = lasting_client.repository.root
    assert lasting_client.init() == DONE
    assert lasting_client.refresh() == DONE
    root.unrecognized_fields["custom-field"] = "value"
    root.keys[root.roles["root"].keyids[0]].unrecognized_fields["extra"] = {"a": 1}
    root.roles["root"].unrecognized_fields["other"] = "value"
    lasting_client.repository.publish("root")
    assert lasting_client.refresh() == DONE
    assert lasting_client.versions()["root"] == 2
