"""Installed builds: DATA/builds/KIND/NAME/BUILD/ with the build's files, manifest.json and manifest.envelope.

Invariant: a directory under a build's name is complete and was verified, because it is made as ``BUILD.tmp`` and then
renamed. Three links stand beside the builds of a component, and they are the authority on what runs:

    current    the build that requests go to
    committed  the last known good one: proven, and what a rollback goes back to
    previous   the known good one before that, kept so that going back needs no download

Each link is swapped in one step. That they are links, and not rows of the journal, is what lets the device serve on
when the journal is lost. manifest.json holds the manifest's bytes exactly as signed. Does not decide what is active.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Final

from agent import durable
from agent.builds.store import Check, Store, hash_file
from agent.errors import DeviceError, TrustError
from wire.errors import WireError
from wire.manifest import Manifest, build_id, parse_manifest

MANIFEST: Final = "manifest.json"
ENVELOPE: Final = "manifest.envelope"
CURRENT: Final = "current"
COMMITTED: Final = "committed"
PREVIOUS: Final = "previous"
_CHUNK: Final = 1024 * 1024
_COMPONENT: Final = re.compile(r"(model):([a-z0-9][a-z0-9._-]{0,62})")
_BUILD: Final = re.compile(r"b-[0-9a-f]{32}")


class Slots:
    """The installed builds below ``root``, which is made when missing."""

    def __init__(self, root: Path) -> None:
        self._root = root
        durable.make_directory(root, "slots.mkdir")

    def components(self) -> list[str]:
        """Return every component that has a directory here, sorted."""
        found = (f"{path.parent.name}:{path.name}" for path in self._root.glob("*/*") if path.is_dir())
        return sorted(component for component in found if _COMPONENT.fullmatch(component))

    def directory(self, component: str, build: str) -> Path:
        """Return where ``build`` lies, or would lie. Raises TrustError for a name that is not plain."""
        if not _BUILD.fullmatch(build):
            raise TrustError(f"{build[:80]!r} is not a build id", "malformed")
        return self._component(component) / build

    def current(self, component: str) -> str | None:
        """Return the build that requests go to."""
        return self._read(component, CURRENT)

    def committed(self, component: str) -> str | None:
        """Return the last known good build."""
        return self._read(component, COMMITTED)

    def previous(self, component: str) -> str | None:
        """Return the known good build before the committed one."""
        return self._read(component, PREVIOUS)

    def installed(self, component: str, build: str) -> Manifest | None:
        """Return the manifest of ``build`` if it is installed with every file in its size, else None. Reads no file."""
        try:
            manifest = self.manifest(component, build)
            whole = all((self.directory(component, build) / f.path).stat().st_size == f.size for f in manifest.files)
        except (OSError, TrustError):
            return None
        return manifest if whole else None

    def manifest(self, component: str, build: str) -> Manifest:
        """Return the manifest of an installed build. Raises TrustError ("missing" or "malformed")."""
        directory = self.directory(component, build)
        try:
            payload = (directory / MANIFEST).read_bytes()
        except OSError as error:
            raise TrustError(f"{build} of {component} is not installed", "missing") from error
        if build_id(payload) != build:
            raise TrustError(f"{directory / MANIFEST} does not belong to {build}; install it again", "malformed")
        try:
            return parse_manifest(payload)
        except WireError as error:
            raise TrustError(f"{directory / MANIFEST}: {error}; install it again", "malformed") from error

    def verify(self, component: str, build: str, check: Check = lambda: None) -> Manifest:
        """Read every file of ``build`` through. Raises TrustError ("missing", "malformed" or "wrong_hash")."""
        manifest = self.manifest(component, build)
        _verify(self.directory(component, build), manifest, check)
        return manifest

    def install(
        self,
        component: str,
        manifest: Manifest,
        payload: bytes,
        envelope: bytes,
        store: Store,
        check: Check = lambda: None,
    ) -> Path:
        """Make the build's directory from blobs of ``store``; nothing live is touched. May be repeated after a cut.

        Raises TrustError for bytes that do not have their hash, DeviceError for a disk that is full or broken.
        """
        directory = self.directory(component, build_id(payload))
        temporary = directory.with_name(f"{directory.name}.tmp")
        durable.make_directory(directory.parent, "slots.mkdir")
        durable.remove_tree(temporary, "slots.remove")
        durable.make_directory(temporary, "slots.mkdir")
        for file in manifest.files:
            _place(store.path(file.sha256), temporary / file.path, check)
        durable.write_atomic(temporary / MANIFEST, payload, "slots.manifest")
        durable.write_atomic(temporary / ENVELOPE, envelope, "slots.envelope")
        _verify(temporary, manifest, check)
        durable.sync_directory(temporary, "slots.sync")
        durable.remove_tree(directory, "slots.remove")  # a damaged one: a whole one would not be installed again
        durable.replace(temporary, directory, "slots.install")
        return directory

    def activate(self, component: str, build: str) -> None:
        """Let ``current`` point at ``build``. Raises TrustError when it is not installed."""
        self._point(component, CURRENT, build)

    def deactivate(self, component: str) -> None:
        """Remove ``current``: the component is not served any more."""
        durable.remove(self._component(component) / CURRENT, "slots.current")

    def commit(self, component: str, build: str | None) -> None:
        """Let ``committed`` point at ``build`` and ``previous`` at the one before. May be repeated after a cut."""
        before = self.committed(component)
        if before == build:
            return
        if before is not None and self.installed(component, before) is not None:
            self._point(component, PREVIOUS, before)
        if build is None:
            durable.remove(self._component(component) / COMMITTED, "slots.committed")
        else:
            self._point(component, COMMITTED, build)

    def prune(self, component: str, keep: Collection[str] = ()) -> list[str]:
        """Remove what no link names and ``keep`` does not hold, left-overs of cuts included. Returns the removed."""
        home = self._component(component)
        if not home.is_dir():
            return []
        wanted = {self.current(component), self.committed(component), self.previous(component), *keep}
        removed = []
        for path in sorted(home.iterdir()):
            if path.is_symlink() or path.name in wanted:
                continue
            if path.is_dir():
                name = path.name.removeprefix(".").removesuffix(".gone") if path.name.startswith(".") else path.name
                durable.remove_tree(path.with_name(name), "slots.remove")
                removed.append(name)
        return removed

    def kept(self, component: str) -> dict[str, Manifest]:
        """Return the installed builds of ``component`` with their manifests. Damaged ones are left out."""
        home = self._component(component)
        builds = (path.name for path in home.iterdir() if _BUILD.fullmatch(path.name)) if home.is_dir() else ()
        found: dict[str, Manifest] = {}
        for build in builds:
            with suppress(TrustError):
                found[build] = self.manifest(component, build)
        return found

    def _component(self, component: str) -> Path:
        match = _COMPONENT.fullmatch(component)
        if match is None:
            raise TrustError(f"{component[:80]!r} is not a component", "malformed")
        return self._root / match[1] / match[2]

    def _read(self, component: str, link: str) -> str | None:
        try:
            target = str((self._component(component) / link).readlink())
        except OSError:
            return None
        return target if _BUILD.fullmatch(target) else None

    def _point(self, component: str, link: str, build: str) -> None:
        if not self.directory(component, build).is_dir():
            raise TrustError(f"{build} of {component} is not installed", "missing")
        durable.switch_link(self._component(component) / link, build, f"slots.{link}")


def _place(blob: Path, target: Path, check: Check) -> None:
    """Put the blob's bytes under ``target``: a second name for the same bytes where that is possible, else a copy."""
    try:
        try:
            os.link(blob, target)
        except FileNotFoundError:
            raise
        except OSError:  # another file system, or one without hard links
            with blob.open("rb") as source, target.open("xb") as copy:
                while chunk := source.read(_CHUNK):
                    check()
                    copy.write(chunk)
                durable.sync_file(copy, "slots.copy")
    except FileNotFoundError as error:
        raise TrustError(f"blob {blob.name} is missing; it will be fetched again", "missing") from error
    except OSError as error:
        raise durable.disk_error(error, target) from error


def _verify(directory: Path, manifest: Manifest, check: Check) -> None:
    for file in manifest.files:
        path = directory / file.path
        try:
            size = path.stat().st_size
        except OSError as error:
            raise TrustError(f"{path} is missing; install the build again", "missing") from error
        try:
            digest = hash_file(path, check) if size == file.size else None
        except DeviceError as error:
            raise TrustError(f"{path} cannot be read: {error}", "unreadable") from error
        if digest != file.sha256:
            raise TrustError(f"{path} is not what the manifest names; install the build again", "wrong_hash")
