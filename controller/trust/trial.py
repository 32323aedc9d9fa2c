"""All keys of a repository at once, on the controller itself: for trying things out, and said to be so.

Invariant: a repository made here can be handed over to offline keys without any device enrolling again, because the
next root is signed by these keys too (`co_sign`); once a root no longer names them they are removed. As long as they
are here, whoever holds the controller's disk can vouch for anything: `muster keys status` and the console say it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from securesystemslib.signer import CryptoSigner, Key  # type: ignore[attr-defined]
from sqlalchemy import Connection
from tuf.api.metadata import Metadata, Root, Targets

from controller.trust import layout, metadata, repository, store
from controller.trust.keys import OnlineKeys, signer
from wire.envelope import PublicKey

DIRECTORY: Final = "trial-only"
TARGETS_FILE: Final = "targets.pem"


def found(
    connection: Connection,
    tenant: str,
    directory: Path,
    builders: Iterable[PublicKey],
    profiles: Iterable[str],
    online: OnlineKeys,
    now: float,
) -> None:
    """Found the tenant's repository under keys that are made in ``directory``.

    Raises UnavailableError (the keys cannot be kept) or ConflictError (there is a repository).
    """
    roots, targets = _signers(directory)
    root = metadata.new_root(
        1,
        [one.public_key for one in roots],
        targets.public_key,
        online.public(layout.SNAPSHOT),
        online.public(layout.TIMESTAMP),
        now,
        layout.ROOT_THRESHOLD,
    )
    top = metadata.new_targets(
        1, profiles, [metadata.public(key) for key in builders], [one.public_key for one in roots], now
    )
    repository.begin(connection, tenant, metadata.sign(root, roots), metadata.sign(top, [targets]), online, now)


def keep(
    connection: Connection,
    tenant: str,
    directory: Path,
    builders: Sequence[PublicKey],
    profiles: Sequence[str],
    online: OnlineKeys,
    now: float,
) -> bool:
    """Sign root and top-level targets again when half of their life is over or what they name has changed.

    Does nothing, and returns False, where the offline keys are kept elsewhere.
    """
    root = metadata.read(_newest(connection, tenant, layout.ROOT), Root)
    if not holds(directory, root):
        return False
    roots, targets_signer = _signers(directory)
    top = metadata.read(_newest(connection, tenant, layout.TARGETS), Targets)
    keys: list[Key] = [metadata.public(key) for key in builders]
    wanted = metadata.new_targets(top.signed.version + 1, profiles, keys, [one.public_key for one in roots], now)
    changed = wanted.delegations != top.signed.delegations
    new_roots = []
    if layout.due(layout.ROOT, root.signed.expires.timestamp(), now):
        root.signed.version += 1
        root.signed.expires = metadata.moment(now + layout.lifetime(layout.ROOT))
        new_roots.append(metadata.sign(root.signed, roots))
    new_top = None
    if changed or layout.due(layout.TARGETS, top.signed.expires.timestamp(), now):
        new_top = metadata.sign(wanted, [targets_signer])
    if new_roots or new_top:
        repository.take_roots(connection, tenant, new_roots, new_top, online, now)
    return bool(new_roots or new_top)


def holds(directory: Path, root: Metadata[Root]) -> bool:
    """Whether the keys in ``directory`` are enough to sign for ``root``."""
    if not (directory / TARGETS_FILE).is_file():
        return False
    roots, _ = _signers(directory)
    known = {one.public_key.keyid for one in roots}
    return len(known & set(root.signed.roles[layout.ROOT].keyids)) >= root.signed.roles[layout.ROOT].threshold


def co_sign(directory: Path, trusted: Metadata[Root], new: bytes) -> bytes:
    """Return the root ``new`` with the signatures of the trial keys, where ``trusted`` still goes by them."""
    if not holds(directory, trusted):
        return new
    roots, _ = _signers(directory)
    return metadata.add_signatures(new, roots)


def retire(directory: Path, root: Metadata[Root]) -> bool:
    """Remove the trial keys when ``root`` does not name them any more; return whether they are gone."""
    if not directory.is_dir() or holds(directory, root):
        return False
    for file in directory.glob("*.pem"):
        file.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        directory.rmdir()
    return True


def _signers(directory: Path) -> tuple[list[CryptoSigner], CryptoSigner]:
    roots = [signer(directory / f"root-{number}.pem") for number in range(1, layout.ROOT_KEYS + 1)]
    return roots, signer(directory / TARGETS_FILE)


def _newest(connection: Connection, tenant: str, role: str) -> bytes:
    data = store.newest(connection, tenant, role)
    assert data is not None, "a repository has root and targets from its first transaction on"
    return data
