"""The builder vouches for builds: it signs the next version of its role in the repository (wire 10.2).

Invariant: the builder adds to what itself signed before, or a builder whose place it takes, and to nothing else: a
role that comes back from the controller without such a signature is refused, so a stolen controller cannot have foreign
builds vouched for. When somebody else was first, it reads again; what it finds there already is not added again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from securesystemslib.exceptions import UnverifiedSignatureError, VerificationError
from securesystemslib.signer import CryptoSigner, Key  # type: ignore[attr-defined]
from tuf.api.metadata import Metadata, TargetFile, Targets

from controller.builds.sign import BuilderKey
from controller.errors import ConflictError, DeniedError
from controller.trust import layout, metadata
from wire.envelope import PublicKey

ATTEMPTS: Final = 8


@dataclass(frozen=True, slots=True)
class Entry:
    """One build to vouch for: the envelope of its manifest, and what the repository says about it."""

    profile: str
    model: str
    build: str
    envelope: bytes
    custom: Mapping[str, Any]

    @property
    def path(self) -> str:
        """The target's path."""
        return layout.target_path(self.profile, self.model, self.build)


class RepositoryApi(Protocol):
    """What is asked of the API (`api.py`)."""

    async def role(self, tenant: str, role: str) -> bytes | None:
        """Return the newest version of a delegated role, None where there is none yet."""

    async def hand_in(self, roles: Mapping[str, bytes]) -> None:
        """Send new versions. Raises ConflictError ("not_next") when somebody else was first."""


class Vouching:
    """Signs with ``key`` what goes into the tenant's repository behind ``api``.

    predecessors: keys whose words this builder takes over: its own earlier ones, or another builder's.
    """

    def __init__(self, api: RepositoryApi, key: BuilderKey, predecessors: Iterable[PublicKey] = ()) -> None:
        self._api = api
        self._signer = CryptoSigner(key.private)
        self._believed = [self._signer.public_key, *(metadata.public(one) for one in predecessors)]
        self._inherited: set[str] = set()  # roles that do not carry this builder's own signature

    async def add(self, tenant: str, profile: str, entries: list[Entry], now: float) -> None:
        """Vouch for ``entries``, all of one profile. Raises what the API raises, and DeniedError ("not_ours")."""
        for attempt in range(1, ATTEMPTS + 1):
            documents = await self._next(tenant, profile, entries, now)
            if not documents:
                return  # an earlier attempt's answer was lost: all is there
            try:
                await self._api.hand_in(documents)
            except ConflictError as error:
                if error.code != "not_next" or attempt == ATTEMPTS:
                    raise
            else:
                return

    async def renew(self, tenant: str, profile: str, now: float) -> bool:
        """Sign the profile's roles again when half of their life is over, or another key signed them.

        Return whether anything was signed.
        """
        whole = await self._read(tenant, profile)
        if whole is None:
            return False
        roles = {profile: whole}
        bins = None if whole.delegations is None else whole.delegations.succinct_roles
        for name in [] if bins is None else bins.get_roles():
            one = await self._read(tenant, name)
            if one is not None:
                roles[name] = one
        due = {
            name: role
            for name, role in roles.items()
            if name in self._inherited or layout.due(name, role.expires.timestamp(), now)
        }
        if due:
            await self._api.hand_in({name: self._sign(name, role, now) for name, role in due.items()})
        return bool(due)

    async def _next(self, tenant: str, profile: str, entries: list[Entry], now: float) -> dict[str, bytes]:
        whole = await self._read(tenant, profile) or metadata.new_role(profile, now)
        delegations = whole.delegations
        if delegations is not None and delegations.succinct_roles is not None:
            bins: dict[str, Targets] = {}
            for entry in entries:
                name = delegations.succinct_roles.get_role_for_target(entry.path)
                if name not in bins:
                    bins[name] = await self._read(tenant, name) or metadata.new_role(name, now)
            changed = {name: role for name, role in bins.items() if _add(role, entries, name, delegations)}
            return {name: self._sign(name, role, now) for name, role in changed.items()}
        if not _add(whole, entries):
            return {}
        if len(whole.targets) <= layout.MAX_FLAT:
            return {profile: self._sign(profile, whole, now)}
        made = metadata.into_bins(profile, whole, [self._signer.public_key], now)
        return {profile: self._sign(profile, whole, now)} | {
            name: metadata.sign(role, [self._signer]) for name, role in made.items()
        }

    async def _read(self, tenant: str, role: str) -> Targets | None:
        data = await self._api.role(tenant, role)
        if data is None:
            return None
        document = metadata.read(data, Targets)
        self._require_own(role, document)
        return document.signed

    def _require_own(self, role: str, document: Metadata[Targets]) -> None:
        signed = [key.keyid for key in self._believed if _signed(key, document)]
        if not signed:
            raise DeniedError(
                f"the controller's {role} was not signed by this builder: its builds are not vouched for again. If "
                "this builder takes another's place, put the other's public key into builder/predecessors/NAME.pub",
                "not_ours",
            )
        if self._signer.public_key.keyid in signed:
            self._inherited.discard(role)
        else:
            self._inherited.add(role)

    def _sign(self, role: str, signed: Targets, now: float) -> bytes:
        signed.version += 1
        signed.expires = metadata.moment(now + layout.lifetime(role))
        return metadata.sign(signed, [self._signer])


def _add(role: Targets, entries: list[Entry], name: str = "", delegations: Any = None) -> bool:
    added = False
    for entry in entries:
        if delegations is not None and delegations.succinct_roles.get_role_for_target(entry.path) != name:
            continue
        new: TargetFile = metadata.target(entry.path, entry.envelope, entry.custom)
        if role.targets.get(entry.path) != new:
            role.targets[entry.path] = new
            added = True
    return added


def _signed(key: Key, document: Metadata[Targets]) -> bool:
    signature = document.signatures.get(key.keyid)
    if signature is None:
        return False
    try:
        key.verify_signature(signature, document.signed_bytes)
    except (UnverifiedSignatureError, VerificationError):
        return False
    return True
