"""The builder vouches for builds: it signs the next version of its role in the repository (wire 10.2).

Invariant: the builder adds to what itself signed before, or a builder whose place it takes, and to nothing else: a
role that comes back from the controller without such a signature is not added to, so a stolen controller cannot have
foreign builds vouched for. When somebody else was first, it reads again; what it finds there already is not added
again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from securesystemslib.exceptions import UnverifiedSignatureError, VerificationError
from securesystemslib.signer import CryptoSigner, Key  # type: ignore[attr-defined]
from tuf.api.metadata import Metadata, TargetFile, Targets

from controller.builds.sign import BuilderKey
from controller.errors import ControllerError, DeniedError
from controller.trust import layout, metadata
from wire.envelope import PublicKey

ATTEMPTS: Final = 8
MAX_PART: Final = 1024**2  # bytes of documents in one request; in base64 they fit the API's bound of two mebibytes


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
        self._inherited: set[str] = set()  # roles that carry a predecessor's signature and not this builder's own
        self._foreign: set[str] = set()  # roles that neither signed

    async def add(self, tenant: str, profile: str, entries: list[Entry], now: float) -> None:
        """Vouch for ``entries``, all of one profile. Raises what the API raises, and DeniedError ("not_ours")."""
        for attempt in range(1, ATTEMPTS + 1):
            documents = await self._next(tenant, profile, entries, now)
            if not documents:
                return  # an earlier attempt's answer was lost: all is there
            try:
                await self._api.hand_in(documents)
            except ControllerError as error:
                if documents.keys() & self._foreign and error.code in ("not_signed", "would_remove"):
                    raise _not_ours(profile) from error
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
        for part in _parts({name: self._sign(name, role, now) for name, role in due.items()}):
            await self._api.hand_in(part)
        return bool(due)

    async def _next(self, tenant: str, profile: str, entries: list[Entry], now: float) -> dict[str, bytes]:
        whole = await self._go_on(tenant, profile, now)
        delegations = whole.delegations
        if delegations is not None and delegations.succinct_roles is not None:
            bins: dict[str, Targets] = {}
            for entry in entries:
                name = delegations.succinct_roles.get_role_for_target(entry.path)
                if name not in bins:
                    bins[name] = await self._go_on(tenant, name, now)
            changed = {name: role for name, role in bins.items() if _add(role, entries, name, delegations)}
            return {name: self._sign(name, role, now) for name, role in changed.items()}
        if not _add(whole, entries):
            return {}
        if len(whole.targets) <= layout.MAX_FLAT:
            return {profile: self._sign(profile, whole, now)}
        made = metadata.into_bins(profile, whole, [self._signer.public_key], now)
        for name, role in made.items():  # there are old ones where a builder whose key was revoked had bins
            old = await self._api.role(tenant, name)
            role.version = 1 if old is None else metadata.read(old, Targets).signed.version + 1
        return {profile: self._sign(profile, whole, now)} | {
            name: metadata.sign(role, [self._signer]) for name, role in made.items()
        }

    async def _go_on(self, tenant: str, role: str, now: float) -> Targets:
        """Return the role to add to: what is there if it is ours. If not, an empty one of the same version.

        The controller takes that only where the key which signed what is there may sign no more (it was revoked).
        """
        data = await self._api.role(tenant, role)
        self._foreign.discard(role)
        fresh = metadata.new_role(role, now)
        if data is None:
            return fresh
        document = metadata.read(data, Targets)
        if self._is_ours(role, document):
            return document.signed
        self._foreign.add(role)
        fresh.version = document.signed.version
        return fresh

    async def _read(self, tenant: str, role: str) -> Targets | None:
        data = await self._api.role(tenant, role)
        if data is None:
            return None
        document = metadata.read(data, Targets)
        if not self._is_ours(role, document):
            raise _not_ours(role)
        return document.signed

    def _is_ours(self, role: str, document: Metadata[Targets]) -> bool:
        signed = [key.keyid for key in self._believed if _signed(key, document)]
        if signed and self._signer.public_key.keyid not in signed:
            self._inherited.add(role)
        else:
            self._inherited.discard(role)
        return bool(signed)

    def _sign(self, role: str, signed: Targets, now: float) -> bytes:
        signed.version += 1
        signed.expires = metadata.moment(now + layout.lifetime(role))
        if signed.delegations is not None and signed.delegations.succinct_roles is not None:
            key = self._signer.public_key  # bins that were inherited are ours from now on
            signed.delegations.keys = {key.keyid: key}
            signed.delegations.succinct_roles.keyids = [key.keyid]
        return metadata.sign(signed, [self._signer])


def _parts(documents: Mapping[str, bytes]) -> Iterator[dict[str, bytes]]:
    """Cut what is to be handed in into requests that the API takes; the role above goes before its bins."""
    part: dict[str, bytes] = {}
    for name, data in documents.items():
        if part and sum(map(len, part.values())) + len(data) > MAX_PART:
            yield part
            part = {}
        part[name] = data
    if part:
        yield part


def _not_ours(role: str) -> DeniedError:
    return DeniedError(
        f"the controller's {role} was not signed by this builder: its builds are not vouched for again. If this "
        "builder takes another's place, put the other's public key into builder/predecessors/NAME.pub",
        "not_ours",
    )


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
