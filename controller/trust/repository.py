"""A tenant's repository as it stands in the database: what is published next to what, and signed again in time.

Invariant: whatever changes, snapshot and timestamp are made in the caller's transaction, so that devices see the old
state or the new one and nothing between. A document is taken only when those signed it whom the role above names, as
the next version, and when it takes nothing away that was there. The keys here are the online ones alone: who steals
them can show devices an old state for a week, and no build that a builder did not sign.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import Connection
from tuf.api.metadata import Metadata, Root, Snapshot, TargetFile, Targets, Timestamp

from controller.errors import ConflictError, InvalidError, NotFoundError
from controller.trust import layout, metadata, store
from controller.trust.keys import OnlineKeys

SLACK: Final = 3600.0  # seconds by which a signer's clock may be ahead of ours
MAX_CUSTOM: Final = 1024  # bytes of what a builder says about one target: every device of the profile reads it
MAX_DOCUMENTS: Final = 1 + 2**layout.BIN_BITS
Holds = Callable[[str, int, str], bool]  # (path, length, sha256): whether that very file can be fetched here


@dataclass(frozen=True)
class Taken:
    """What came in: roles with their new versions, and the paths that were not there before."""

    versions: dict[str, int]
    added: list[str] = field(default_factory=list)


def begin(connection: Connection, tenant: str, root: bytes, targets: bytes, online: OnlineKeys, now: float) -> None:
    """Found a repository with root and targets of version 1. Raises ConflictError where there is one."""
    if store.newest(connection, tenant, layout.ROOT) is not None:
        raise ConflictError(f"tenant {tenant} has a signed repository already", "exists")
    believed = metadata.read(root, Root)
    if believed.signed.version != 1:
        raise InvalidError(f"a first root has version 1, this one has {believed.signed.version}", "bad_version")
    metadata.check_role(believed, layout.ROOT, believed)
    _check_online(believed, online)
    above = metadata.read(targets, Targets)
    metadata.check_role(believed, layout.TARGETS, above)
    _put(connection, tenant, layout.ROOT, believed, root, now)
    _put(connection, tenant, layout.TARGETS, above, targets, now)
    sign_again(connection, tenant, online, now)


def take_roots(
    connection: Connection, tenant: str, roots: list[bytes], targets: bytes | None, online: OnlineKeys, now: float
) -> Taken:
    """Take the next root versions, oldest first, and new top-level targets where they are given.

    Raises InvalidError, DeniedError (not enough of the keys signed) or ConflictError, and then nothing is changed.
    """
    current = _root(connection, tenant)
    versions: dict[str, int] = {}
    for data in roots:
        new = metadata.read(data, Root)
        metadata.check_root(current, new)
        _check_alive(layout.ROOT, new, now)
        _put(connection, tenant, layout.ROOT, new, data, now)
        current, versions[layout.ROOT] = new, new.signed.version
    _check_online(current, online)
    above = _top(connection, tenant)
    if targets is not None:
        before, above = above, metadata.read(targets, Targets)
        if above.signed.version != before.signed.version + 1:
            raise _not_next(layout.TARGETS, above.signed.version, before.signed.version)
        _check_alive(layout.TARGETS, above, now)
        if above.signed.targets or above.signed.delegations is None or above.signed.delegations.roles is None:
            raise InvalidError("the top-level targets hold delegations and nothing else", "bad_metadata")
        _put(connection, tenant, layout.TARGETS, above, targets, now)
        versions[layout.TARGETS] = above.signed.version
    metadata.check_role(current, layout.TARGETS, above)  # the targets key may have changed with the root
    sign_again(connection, tenant, online, now)
    return Taken(versions)


def take_roles(
    connection: Connection,
    tenant: str,
    documents: Mapping[str, bytes],
    holds: Holds,
    online: OnlineKeys,
    now: float,
) -> Taken:
    """Take new versions of delegated roles, all or none. Raises InvalidError, DeniedError or ConflictError."""
    if not 0 < len(documents) <= MAX_DOCUMENTS:
        raise InvalidError(f"1 to {MAX_DOCUMENTS} documents are taken at once, not {len(documents)}", "bad_metadata")
    top, taken = _top(connection, tenant), Taken({})
    before: dict[str, TargetFile] = {}
    after: dict[str, TargetFile] = {}
    parents: dict[str, Metadata[Targets]] = {}
    for role in sorted(documents, key=lambda name: (layout.profile_of_bin(name) is not None, name)):
        profile = layout.profile_of_bin(role)
        above = top if profile is None else parents.get(profile) or _role(connection, tenant, profile)
        if above is None:
            raise InvalidError(f"{role} is no role of this repository", "no_role")
        new = metadata.read(documents[role], Targets)
        metadata.check_role(above, role, new)
        _check_alive(role, new, now)
        old = _role(connection, tenant, role)
        last = 0 if old is None else old.signed.version
        if old is not None and not metadata.holds(above, role, old):
            old = None  # whoever signed it may do so no more: nobody misses what it vouched for
        if new.signed.version != last + 1:
            raise _not_next(role, new.signed.version, last)
        _check_shape(role, profile or role, new.signed, above.signed)
        if old is not None and old.signed.delegations is not None and new.signed.delegations is None:
            raise ConflictError(f"{role} is in hash bins: its builds would be taken away with them", "would_remove")
        before |= {} if old is None else old.signed.targets
        after |= new.signed.targets
        if profile is None:
            parents[role] = new
        _put(connection, tenant, role, new, documents[role], now)
        taken.versions[role] = new.signed.version
    for path, entry in before.items():
        if path not in after or after[path] != entry:
            raise ConflictError(f"{path} was published and would be changed or taken away", "would_remove")
    for path in sorted(after.keys() - before.keys()):
        entry = after[path]
        if not holds(path, entry.length, entry.hashes.get("sha256", "")):
            raise ConflictError(f"{path}: the file that is vouched for is not here: upload it first", "no_artifact")
        taken.added.append(path)
    sign_again(connection, tenant, online, now)
    return taken


def sign_again(connection: Connection, tenant: str, online: OnlineKeys, now: float) -> None:
    """Make the next snapshot of what is there, and the next timestamp."""
    old = store.newest(connection, tenant, layout.SNAPSHOT)
    number = 1 if old is None else metadata.read(old, Snapshot).signed.version + 1
    listed = [row for row in store.roles(connection, tenant) if row.role not in (layout.ROOT, *layout.ONLINE)]
    meta = {f"{row.role}.json": metadata.meta(row.version, row.length, row.sha256) for row in listed}
    expires = metadata.moment(now + layout.lifetime(layout.SNAPSHOT))
    snapshot = Snapshot(version=number, expires=expires, meta=meta)
    data = metadata.sign(snapshot, [online.snapshot])
    _put(connection, tenant, layout.SNAPSHOT, Metadata(snapshot), data, now)
    sign_timestamp(connection, tenant, online, now)


def sign_timestamp(connection: Connection, tenant: str, online: OnlineKeys, now: float) -> None:
    """Make the next timestamp for the newest snapshot; it says when it was signed (wire 10.3)."""
    old = store.newest(connection, tenant, layout.TIMESTAMP)
    number = 1 if old is None else metadata.read(old, Timestamp).signed.version + 1
    newest = next(row for row in store.roles(connection, tenant) if row.role == layout.SNAPSHOT)
    timestamp = Timestamp(
        version=number,
        expires=metadata.moment(now + layout.lifetime(layout.TIMESTAMP)),
        snapshot_meta=metadata.meta(newest.version, newest.length, newest.sha256),
        unrecognized_fields={"issued": int(now)},
    )
    data = metadata.sign(timestamp, [online.timestamp])
    _put(connection, tenant, layout.TIMESTAMP, Metadata(timestamp), data, now)


def vouched(connection: Connection, tenant: str, path: str) -> TargetFile | None:
    """Return the entry of a build's ``path``, None where no role has it."""
    profile = layout.profile_of(path)
    role = None if profile is None else _role(connection, tenant, profile)
    if role is None:
        return None
    delegations = role.signed.delegations
    if delegations is not None and delegations.succinct_roles is not None:
        role = _role(connection, tenant, delegations.succinct_roles.get_role_for_target(path))
    return None if role is None else role.signed.targets.get(path)


def require_root(connection: Connection, tenant: str) -> bytes:
    """Return the newest root. Raises NotFoundError where the tenant has no repository."""
    data = store.newest(connection, tenant, layout.ROOT)
    if data is None:
        raise _no_repository(tenant)
    return data


def _root(connection: Connection, tenant: str) -> Metadata[Root]:
    return metadata.read(require_root(connection, tenant), Root)


def _top(connection: Connection, tenant: str) -> Metadata[Targets]:
    found = _role(connection, tenant, layout.TARGETS)
    if found is None:
        raise _no_repository(tenant)
    return found


def _role(connection: Connection, tenant: str, role: str) -> Metadata[Targets] | None:
    data = store.newest(connection, tenant, role)
    return None if data is None else metadata.read(data, Targets)


def _check_online(root: Metadata[Root], online: OnlineKeys) -> None:
    """What nobody here could sign would leave devices without a timestamp."""
    for role in layout.ONLINE:
        if online.public(role).keyid not in root.signed.roles[role].keyids:
            raise InvalidError(
                f"the root does not name this controller's {role} key: its public half is in `muster keys status`",
                "not_our_key",
            )


def _check_alive(role: str, document: Metadata[Any], now: float) -> None:
    expires, longest = document.signed.expires.timestamp(), layout.lifetime(role) + SLACK
    if not now < expires <= now + longest:
        raise InvalidError(
            f"{role} expires {document.signed.expires:%Y-%m-%d %H:%M} UTC: it must hold now, "
            f"and for {longest / layout.DAY:.0f} days at most",
            "bad_expiry",
        )


def _check_shape(role: str, profile: str, signed: Targets, above: Targets) -> None:
    """A profile's role speaks of its own builds only, and delegates to nobody but its bins, under its own keys."""
    for path, entry in signed.targets.items():
        if layout.profile_of(path) != profile:
            raise InvalidError(f"{role} cannot vouch for {path[:200]!r}", "bad_path")
        if len(json.dumps(entry.unrecognized_fields)) > MAX_CUSTOM:
            raise InvalidError(f"{path}: `custom` has at most {MAX_CUSTOM} bytes", "bad_metadata")
    delegations = signed.delegations
    if delegations is None:
        return
    bins = delegations.succinct_roles
    own = None if above.delegations is None or above.delegations.roles is None else above.delegations.roles.get(role)
    if (
        own is None
        or bins is None
        or delegations.roles
        or bins.name_prefix != layout.bin_prefix(profile)
        or bins.bit_length != layout.BIN_BITS
        or not set(bins.keyids) <= set(own.keyids)
        or bins.threshold < own.threshold
        or signed.targets
    ):
        raise InvalidError(
            f"{role} may delegate to its own bins under its own keys, and to nobody else", "bad_metadata"
        )


def _put(connection: Connection, tenant: str, role: str, document: Metadata[Any], data: bytes, now: float) -> None:
    store.add(
        connection,
        tenant=tenant,
        role=role,
        number=document.signed.version,
        content=data,
        length=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        expires=document.signed.expires.timestamp(),
        at=now,
    )


def _not_next(role: str, number: int, last: int) -> ConflictError:
    return ConflictError(f"{role} version {number} cannot follow {last}: read it again and sign {last + 1}", "not_next")


def _no_repository(tenant: str) -> NotFoundError:
    return NotFoundError(f"tenant {tenant} has no signed repository: `muster keys init` makes one", "no_repository")
