"""Keys of a role, given by number, so that a table can say who may sign and who did."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from securesystemslib.signer import CryptoSigner

from tests.agent.trust.signed_repository import SignedRepository


class KeySet(NamedTuple):
    """Which keys a role has, how many must sign, and which did. Keys are numbers."""

    keys: Sequence[int]
    threshold: int
    signed_by: Sequence[int]


def fresh_keys(count: int) -> list[CryptoSigner]:
    """Return new keys, to be called by their numbers."""
    return [CryptoSigner.generate_ed25519() for _ in range(count)]


def give_keys(repository: SignedRepository, role: str, given: KeySet, signers: Sequence[CryptoSigner]) -> None:
    """Replace the keys of ``role`` in the root. Publish the root and the role afterwards."""
    for key in list(repository.root.roles[role].keyids):
        repository.root.revoke_key(key, role)
    for number in given.keys:
        repository.root.add_key(signers[number].public_key, role)
    repository.root.roles[role].threshold = given.threshold
    repository.signers[role] = [signers[number] for number in given.signed_by]
