"""Profiles of device families: what a board is recognised by, what it can run, and how much memory it may use.

Invariant: every profile handed out is complete (what it leaves open is filled in from the one it extends) and checked:
an unknown key, a name used twice or a circle of `extends` stops the reading with a message that names file and key.
Plain data for any part to import; does not look at hardware and does not choose (that is ``agent.hardware.match``).

A profile is one TOML file whose name is the profile's id; docs/guide/hardware.md shows how to add one.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from types import MappingProxyType
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

GENERIC: Final = "generic"
_MAX_FILE: Final = 64 * 1024

ProfileId = Annotated[str, Meta(pattern="^[a-z0-9][a-z0-9_-]{0,62}$")]
Word = Annotated[str, Meta(min_length=1, max_length=128)]
Version = Annotated[str, Meta(pattern=r"^[0-9]{1,4}(\.[0-9]{1,4}){1,3}$")]


class ProfileError(ValueError):
    """A profile file that cannot be used; the message names the file and the key."""


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One way to recognise the profile: every key that is stated must hold, each by any one of its values.

    confidence: how sure a match makes us, over 0 to 1. arch: machine names as `uname -m` gives them. system: as
    `uname -s` does. compatible: entries of the device tree's compatible list, where `*` stands for any text.
    """

    confidence: Annotated[float, Meta(gt=0, le=1)]
    arch: tuple[Word, ...] = ()
    system: tuple[Word, ...] = ()
    compatible: tuple[Word, ...] = ()


class Requirements(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a runtime needs here. arch: any one of them. features: all of them. glibc, python: at least this version."""

    arch: tuple[Word, ...] = ()
    features: tuple[Word, ...] = ()
    glibc: Version | None = None
    python: Version | None = None


class Runtime(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An engine that suits the family. precision: the best one first."""

    name: Word
    precision: Annotated[tuple[Word, ...], Meta(min_length=1)]
    requires: Requirements = Requirements()


class Budgets(msgspec.Struct, frozen=True, kw_only=True):
    """Memory: MiB for the agent itself, and the share (0 to 1) of the device's memory that models may take."""

    agent_memory_mb: int
    model_memory_share: float


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """One family, complete. lineage: its own id, then what it extends, nearest first. runtimes: preferred first.

    arch: the machine names that devices of the family are known to have.
    """

    id: str
    title: str
    aliases: tuple[str, ...]
    lineage: tuple[str, ...]
    arch: tuple[str, ...]
    match: tuple[Rule, ...]
    runtimes: tuple[Runtime, ...]
    budgets: Budgets


class _Budgets(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    agent_memory_mb: Annotated[int, Meta(ge=1, le=65_536)] | None = None
    model_memory_share: Annotated[float, Meta(ge=0, le=1)] | None = None


class _Document(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file as it was written. None: taken from the profile that it extends."""

    schema: Literal[1]
    id: ProfileId
    title: Annotated[str, Meta(min_length=1, max_length=200)]
    aliases: tuple[ProfileId, ...] = ()
    extends: ProfileId | None = None
    arch: tuple[Word, ...] | None = None
    match: tuple[Rule, ...] = ()
    runtimes: tuple[Runtime, ...] | None = None
    budgets: _Budgets = _Budgets()


def load() -> Mapping[str, Profile]:
    """Return the profiles that come with Muster, by id. Raises ProfileError."""
    return read_profiles(resources.files(__name__))


def read_profiles(directory: Traversable) -> Mapping[str, Profile]:
    """Return the profiles in the .toml files of ``directory``, by id. Raises ProfileError."""
    documents: dict[str, _Document] = {}
    for file in sorted(directory.iterdir(), key=lambda entry: entry.name):
        if file.name.endswith(".toml"):
            documents[file.name.removesuffix(".toml")] = _read(file)
    _check_names(documents)
    return MappingProxyType({name: _complete(name, documents) for name in documents})


def find(profiles: Mapping[str, Profile], name: str) -> Profile | None:
    """Return the profile whose id or alias is ``name``, or None."""
    if name in profiles:
        return profiles[name]
    return next((profile for profile in profiles.values() if name in profile.aliases), None)


def _read(file: Traversable) -> _Document:
    try:
        with file.open("rb") as stream:
            content = stream.read(_MAX_FILE + 1)
        if len(content) > _MAX_FILE:
            raise ProfileError(f"{file.name}: larger than {_MAX_FILE} bytes; a profile is a page, not a book")
        document = msgspec.convert(tomllib.loads(content.decode()), _Document)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ProfileError(f"{file.name}: {error}") from error
    if file.name != f"{document.id}.toml":
        raise ProfileError(f"{file.name}: id is {document.id!r}; the file must be named {document.id}.toml")
    for index, rule in enumerate(document.match):
        if not (rule.arch or rule.system or rule.compatible):
            raise ProfileError(f"{file.name}: match[{index}] has no condition and would fit every machine")
    return document


def _check_names(documents: Mapping[str, _Document]) -> None:
    owners = {name: name for name in documents}
    for name, document in documents.items():
        for alias in document.aliases:
            if owners.setdefault(alias, name) != name or alias == name:
                raise ProfileError(f"{name}.toml: aliases: {alias!r} already names {owners[alias]}")


def _complete(name: str, documents: Mapping[str, _Document]) -> Profile:
    lineage = _lineage(name, documents)
    chain = [documents[ancestor] for ancestor in lineage]
    agent = next((d.budgets.agent_memory_mb for d in chain if d.budgets.agent_memory_mb is not None), None)
    share = next((d.budgets.model_memory_share for d in chain if d.budgets.model_memory_share is not None), None)
    if agent is None or share is None:
        missing = "agent_memory_mb" if agent is None else "model_memory_share"
        raise ProfileError(f"{name}.toml: budgets.{missing} is stated neither here nor in what it extends")
    return Profile(
        id=name,
        title=chain[0].title,
        aliases=chain[0].aliases,
        lineage=tuple(lineage),
        arch=next((d.arch for d in chain if d.arch is not None), ()),
        match=chain[0].match,
        runtimes=next((d.runtimes for d in chain if d.runtimes is not None), ()),
        budgets=Budgets(agent_memory_mb=agent, model_memory_share=share),
    )


def _lineage(name: str, documents: Mapping[str, _Document]) -> list[str]:
    lineage = [name]
    while (parent := documents[lineage[-1]].extends) is not None:
        if parent not in documents:
            raise ProfileError(f"{lineage[-1]}.toml: extends: there is no profile {parent!r}")
        if parent in lineage:
            raise ProfileError(f"{lineage[-1]}.toml: extends: {' > '.join([*lineage, parent])} is a circle")
        lineage.append(parent)
    return lineage
