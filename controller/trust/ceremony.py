"""What a key ceremony signs: the next root and the next top-level targets, from those that hold now.

Invariant: pure; what is returned is signed by enough of the old root keys and of the new ones, and is checked the way
that devices and the controller check it, so that a ceremony fails before anything was sent. Keys that are not given are
asked for by name. Reads no key file (`offline_keys.py`), asks no controller (`commands/keys.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from securesystemslib.signer import Key, Signer  # type: ignore[attr-defined]
from tuf.api.metadata import Metadata, Root, Targets

from controller.errors import ConflictError, InvalidError, NotFoundError
from controller.trust import layout, metadata

SHORT: Final = 16  # hex digits by which a key is called
Signers = Mapping[str, Signer]  # by key id


@dataclass(frozen=True)
class Current:
    """What holds now. ``co_signed``: the controller adds the signatures of the old root keys itself (trial keys)."""

    root: Metadata[Root]
    targets: Metadata[Targets]
    co_signed: bool = False

    def keyids(self, role: str) -> list[str]:
        """Return the ids of the keys of a top-level role."""
        return list(self.root.signed.roles[role].keyids)

    def key(self, keyid: str) -> Key:
        """Return a key that the root names."""
        return self.root.signed.keys[keyid]

    def builders(self) -> list[Key]:
        """Return the keys that vouch for builds."""
        role = _delegated(self.targets)[layout.TRIAL]
        return [_delegation_keys(self.targets)[keyid] for keyid in role.keyids]

    def profiles(self) -> set[str]:
        """Return the profiles that have a role."""
        return set(_delegated(self.targets)) - {layout.SOFTWARE, layout.TRIAL}


@dataclass(frozen=True)
class Wanted:
    """Who shall hold the keys of the top-level roles from now on."""

    roots: Sequence[Key]
    targets: Key
    snapshot: Key
    timestamp: Key
    builders: Sequence[Key]


@dataclass(frozen=True)
class Signed:
    """What is to be sent: new roots, oldest first, and new top-level targets."""

    roots: tuple[bytes, ...]
    targets: bytes


def wanted_now(current: Current) -> Wanted:
    """Return the keys as they are."""
    return Wanted(
        roots=[current.key(keyid) for keyid in current.keyids(layout.ROOT)],
        targets=current.key(current.keyids(layout.TARGETS)[0]),
        snapshot=current.key(current.keyids(layout.SNAPSHOT)[0]),
        timestamp=current.key(current.keyids(layout.TIMESTAMP)[0]),
        builders=current.builders(),
    )


def sign(current: Current, wanted: Wanted, signers: Signers, profiles: Iterable[str], now: float) -> Signed:
    """Return root and targets that follow ``current`` and name the keys of ``wanted``, both with their full life again.

    ``profiles``: that shall have a role; those that have one keep it. Raises InvalidError (a key is missing; too few
    would be left).
    """
    if len(wanted.roots) < layout.ROOT_THRESHOLD:
        raise InvalidError(
            f"{len(wanted.roots)} root keys would be left, {layout.ROOT_THRESHOLD} must sign: put a new one in the "
            "place of one that goes, with --new DIRECTORY",
            "too_few_keys",
        )
    if not wanted.builders:
        raise InvalidError(
            "no builder would be left that vouches for builds: name the one that shall, `muster keys rotate builder "
            "--builder FILE`",
            "too_few_keys",
        )
    root = metadata.new_root(
        current.root.signed.version + 1,
        wanted.roots,
        wanted.targets,
        wanted.snapshot,
        wanted.timestamp,
        now,
        layout.ROOT_THRESHOLD,
    )
    top = metadata.new_targets(
        current.targets.signed.version + 1, {*profiles, *current.profiles()}, wanted.builders, wanted.roots, now
    )
    old, new = current.keyids(layout.ROOT), [key.keyid for key in wanted.roots]
    if not current.co_signed:
        _require(signers, old, current.root.signed.roles[layout.ROOT].threshold, "of the root keys that hold now")
    _require(signers, new, layout.ROOT_THRESHOLD, "of the root keys that shall hold")
    _require(signers, [wanted.targets.keyid], 1, "targets key")
    signing = [signers[keyid] for keyid in dict.fromkeys([*old, *new]) if keyid in signers]
    done = Signed((metadata.sign(root, signing),), metadata.sign(top, [signers[wanted.targets.keyid]]))
    made = metadata.read(done.roots[0], Root)
    if not current.co_signed:
        metadata.check_root(current.root, made)
    metadata.check_role(made, layout.ROOT, made)
    metadata.check_role(made, layout.TARGETS, metadata.read(done.targets, Targets))
    return done


def role_of(current: Current, beginning: str) -> tuple[str, str]:
    """Return the role and the full id of the key whose id begins with ``beginning``. Raises NotFoundError.

    The builder's role is "builder". Raises ConflictError when several keys begin so.
    """
    known = {keyid: role for role in layout.TOP for keyid in current.keyids(role)}
    known |= {key.keyid: BUILDER for key in current.builders()}
    found = [keyid for keyid in known if keyid.startswith(beginning.lower())] if beginning else []
    if not found:
        names = ", ".join(f"{keyid[:SHORT]} ({role})" for keyid, role in known.items())
        raise NotFoundError(f"no key in use begins with {beginning[:80]!r}; there are {names}", "no_key")
    if len(found) > 1:
        raise ConflictError(
            f"{beginning[:80]!r} is the beginning of {len(found)} keys: give more of the one you mean", "ambiguous"
        )
    return known[found[0]], found[0]


def concerns(current: Current, now: float) -> list[str]:
    """Return what the person at the ceremony should know, as sentences."""
    said = []
    for role, document in ((layout.ROOT, current.root), (layout.TARGETS, current.targets)):
        expires: Any = document.signed.expires
        if expires.timestamp() <= now:
            said.append(
                f"{role} expired on {expires:%Y-%m-%d}: devices go on serving and install nothing until this ceremony "
                "is over"
            )
    return said


BUILDER: Final = "builder"


def _require(signers: Signers, keyids: Sequence[str], number: int, what: str) -> None:
    there = [keyid for keyid in keyids if keyid in signers]
    if len(there) >= number:
        return
    missing = ", ".join(keyid[:SHORT] for keyid in keyids if keyid not in signers)
    raise InvalidError(
        f"{number} {what} must sign and {len(there)} {'is' if len(there) == 1 else 'are'} here: "
        f"name the directories of {missing} with --keys",
        "too_few_signatures",
    )


def _delegated(targets: Metadata[Targets]) -> Mapping[str, Any]:
    delegations = targets.signed.delegations
    if delegations is None or delegations.roles is None:
        raise InvalidError("the top-level targets delegate to nobody: this repository was not made here", "odd_targets")
    return delegations.roles


def _delegation_keys(targets: Metadata[Targets]) -> Mapping[str, Key]:
    assert targets.signed.delegations is not None, "asked for after `_delegated`"
    return targets.signed.delegations.keys
