"""TUF metadata as values: made, signed, read and checked. The only file of the controller's services that forms it.

Invariant: what ``read`` returns is well-formed but not yet believed; what ``check_*`` lets pass was signed by those
whom the role above names. Bytes are kept as they were signed. Knows no database and no clock.
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar

from securesystemslib.signer import Key, Signer, SSlibKey  # type: ignore[attr-defined]
from tuf.api.exceptions import RepositoryError, UnsignedMetadataError
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    SuccinctRoles,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization import DeserializationError
from tuf.api.serialization.json import JSONSerializer

from controller.errors import DeniedError, InvalidError
from controller.trust import layout
from wire.envelope import PublicKey

MAX_BYTES: Final = 5_000_000  # python-tuf's own limit for a targets file
_COMPACT: Final = JSONSerializer(compact=True)
T = TypeVar("T", Root, Targets, Snapshot, Timestamp)


def public(key: PublicKey) -> SSlibKey:
    """Return ``key`` as metadata name it."""
    return SSlibKey.from_crypto(key)


def moment(seconds: float) -> datetime.datetime:
    """Return seconds since 1970 as metadata write it: whole seconds in UTC."""
    return datetime.datetime.fromtimestamp(int(seconds), datetime.UTC)


# making -------------------------------------------------------------------------------------------------------------


def new_root(
    version: int, roots: Sequence[Key], targets: Key, snapshot: Key, timestamp: Key, now: float, threshold: int
) -> Root:
    """Return an unsigned root: ``roots`` with ``threshold``, one key for each other top-level role."""
    root = Root(version=version, expires=moment(now + layout.lifetime(layout.ROOT)), consistent_snapshot=True)
    for key in roots:
        root.add_key(key, layout.ROOT)
    root.roles[layout.ROOT].threshold = threshold
    for role, key in ((layout.TARGETS, targets), (layout.SNAPSHOT, snapshot), (layout.TIMESTAMP, timestamp)):
        root.add_key(key, role)
    return root


def new_targets(
    version: int, profiles: Iterable[str], builders: Sequence[Key], roots: Sequence[Key], now: float
) -> Targets:
    """Return unsigned top-level targets: nothing but the delegations of `layout.delegations`."""
    signers = {"builder": builders, "root": roots}
    keys = {key.keyid: key for key in (*builders, *roots)}
    roles = {
        one.name: DelegatedRole(
            one.name, [key.keyid for key in signers[one.signers]], one.threshold, True, list(one.paths)
        )
        for one in layout.delegations(profiles)
    }
    return Targets(
        version=version,
        expires=moment(now + layout.lifetime(layout.TARGETS)),
        delegations=Delegations(keys=keys, roles=roles),
    )


def new_role(role: str, now: float) -> Targets:
    """Return an empty delegated role that is to become version 1."""
    new = Targets(expires=moment(now + layout.lifetime(role)))
    new.version = 0  # the library makes none below 1
    return new


def target(path: str, content: bytes, custom: Mapping[str, Any]) -> TargetFile:
    """Return the entry of a target with ``content``."""
    digest = hashlib.sha256(content).hexdigest()
    fields = {"custom": dict(custom)} if custom else {}
    return TargetFile(len(content), {"sha256": digest}, path, unrecognized_fields=fields)


def into_bins(role: str, whole: Targets, keys: Sequence[Key], now: float) -> dict[str, Targets]:
    """Return the bins for all targets of ``whole``, which from then on only delegates to them. Versions become 1."""
    bins = SuccinctRoles([key.keyid for key in keys], 1, layout.BIN_BITS, layout.bin_prefix(role))
    made = {name: new_role(name, now) for name in bins.get_roles()}
    for path, entry in whole.targets.items():
        made[bins.get_role_for_target(path)].targets[path] = entry
    for one in made.values():
        one.version = 1
    whole.targets.clear()
    whole.delegations = Delegations(keys={key.keyid: key for key in keys}, succinct_roles=bins)
    return made


def sign(signed: T, signers: Iterable[Signer]) -> bytes:
    """Return the bytes of ``signed`` with the signatures of ``signers``."""
    document = Metadata(signed)
    for signer in signers:
        document.sign(signer, append=True)
    return document.to_bytes(_COMPACT)


def add_signatures(data: bytes, signers: Iterable[Signer]) -> bytes:
    """Return the root in ``data`` with further signatures over the same bytes. Raises InvalidError."""
    document = read(data, Root)
    for signer in signers:
        document.sign(signer, append=True)
    return document.to_bytes(_COMPACT)


def meta(version: int, length: int, sha256: str) -> MetaFile:
    """Return what snapshot and timestamp say of a document."""
    return MetaFile(version, length, {"sha256": sha256})


# reading and checking -----------------------------------------------------------------------------------------------


def read(data: bytes, kind: type[T]) -> Metadata[T]:
    """Return the document in ``data``, not yet believed. Raises InvalidError."""
    if len(data) > MAX_BYTES:
        raise InvalidError(f"metadata of {len(data)} bytes: at most {MAX_BYTES} are taken", "bad_metadata")
    try:
        document: Metadata[Any] = Metadata.from_bytes(data)
    except (DeserializationError, RecursionError) as error:
        raise InvalidError(f"this is no TUF metadata: {error.__cause__ or error}", "bad_metadata") from error
    if not isinstance(document.signed, kind):
        raise InvalidError(f"this is {document.signed.type} metadata, not {kind.type}", "bad_metadata")
    return document


def check_root(old: Metadata[Root], new: Metadata[Root]) -> None:
    """Check that ``new`` may follow ``old``: enough of the old keys and of the new ones signed it.

    Raises DeniedError or InvalidError.
    """
    if new.signed.version != old.signed.version + 1:
        message = f"root version {new.signed.version} cannot follow {old.signed.version}: make {old.signed.version + 1}"
        raise InvalidError(message, "bad_version")
    if not new.signed.consistent_snapshot:
        raise InvalidError("the root must ask for consistent snapshots", "bad_metadata")
    for judge, which in ((old, "now trusted"), (new, "new")):
        _check(judge, layout.ROOT, new, f"the {which} root keys")


def check_role(above: Metadata[Root] | Metadata[Targets], role: str, document: Metadata[Any]) -> None:
    """Check that those signed whom ``above`` names for ``role``. Raises DeniedError or InvalidError."""
    _check(above, role, document, f"the keys of {role}")


def holds(above: Metadata[Root] | Metadata[Targets], role: str, document: Metadata[Any]) -> bool:
    """Whether those signed whom ``above`` names for ``role``."""
    try:
        check_role(above, role, document)
    except (DeniedError, InvalidError):
        return False
    return True


def _check(above: Metadata[Any], role: str, document: Metadata[Any], whose: str) -> None:
    try:
        result = above.signed.get_verification_result(role, document.signed_bytes, document.signatures)
    except ValueError as error:  # the role above does not delegate to it
        raise InvalidError(f"{role} is no role of this repository: {error}", "no_role") from error
    except (UnsignedMetadataError, RepositoryError) as error:  # pragma: no cover - the library's other ways to say no
        raise DeniedError(str(error), "not_signed") from error
    if not result.verified:
        message = f"signed by {len(result.signed)} of {whose}, {result.threshold} are needed"
        raise DeniedError(message, "not_signed")
