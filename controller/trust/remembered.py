"""What the people who hold offline keys saw last: copies of root and top-level targets beside their key files.

Invariant: a ceremony signs on top of what follows these copies and of nothing else, so that a stolen controller cannot
show a root or a delegation of its own and have it signed. Without any copy (at the first ceremony) the controller is
believed, for until then all keys were its own.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeVar

from tuf.api.metadata import Metadata, Root, Targets

from controller.errors import DeniedError, InvalidError, UnavailableError
from controller.trust import layout, metadata
from controller.trust.ceremony import Current
from controller.trust.offline_keys import sync_directory

ROOT_FILE: Final = "muster-trusted-root.json"
TARGETS_FILE: Final = "muster-trusted-targets.json"
MAX_STEPS: Final = 1024  # roots between what is remembered and what holds now
T = TypeVar("T", Root, Targets)


def follow(
    directories: Sequence[Path], newest: int, root_of: Callable[[int], bytes], targets: bytes, co_signed: bool
) -> Current:
    """Return root and targets that hold now, if they descend from what is remembered in ``directories``.

    newest: the root's version now; root_of: gives any version of it. Raises DeniedError ("not_ours").
    """
    remembered = _newest(directories, ROOT_FILE, Root)
    if remembered is None:
        root = metadata.read(root_of(newest), Root)
        metadata.check_role(root, layout.ROOT, root)
    else:
        root = _descend(remembered, newest, root_of)
    top = metadata.read(targets, Targets)
    metadata.check_role(root, layout.TARGETS, top)
    held = _newest(directories, TARGETS_FILE, Targets)
    if held is not None and top.signed.version < held.signed.version:
        raise DeniedError(
            f"the controller shows targets version {top.signed.version}, version {held.signed.version} was signed "
            "before: it was restored from a backup or is not what it says; sign nothing until you know",
            "not_ours",
        )
    return Current(root, top, co_signed and remembered is None)


def remember(directories: Sequence[Path], root: bytes, targets: bytes) -> None:
    """Keep what was just signed in each of ``directories``. Raises UnavailableError."""
    for directory in directories:
        for name, content in ((ROOT_FILE, root), (TARGETS_FILE, targets)):
            fresh = directory / f".{name}.{secrets.token_hex(4)}"
            try:
                with fresh.open("xb") as stream:
                    stream.write(content)
                    stream.flush()
                    os.fsync(stream.fileno())
                fresh.replace(directory / name)
                sync_directory(directory)
            except OSError as error:
                fresh.unlink(missing_ok=True)
                raise UnavailableError(
                    f"{directory / name}: {error.strerror}. The ceremony is done; copy this file from another of the "
                    "directories",
                    "unwritable",
                ) from error


def _descend(root: Metadata[Root], newest: int, root_of: Callable[[int], bytes]) -> Metadata[Root]:
    if not root.signed.version <= newest <= root.signed.version + MAX_STEPS:
        raise DeniedError(
            f"the controller has root version {newest}, version {root.signed.version} was signed before: it was "
            "restored from a backup or is not what it says; sign nothing until you know",
            "not_ours",
        )
    shown = metadata.read(root_of(root.signed.version), Root)
    if shown.signed_bytes != root.signed_bytes:
        raise DeniedError(
            f"the controller's root version {root.signed.version} is not the one that was signed with these keys: "
            "is this the right controller and tenant? Sign nothing until you know",
            "not_ours",
        )
    for number in range(root.signed.version + 1, newest + 1):
        new = metadata.read(root_of(number), Root)
        metadata.check_root(root, new)
        root = new
    return root


def _newest(directories: Sequence[Path], name: str, kind: type[T]) -> Metadata[T] | None:
    found: list[Metadata[T]] = []
    for directory in directories:
        try:
            with (directory / name).open("rb") as stream:
                found.append(metadata.read(stream.read(metadata.MAX_BYTES + 1), kind))
        except FileNotFoundError:
            continue
        except OSError as error:
            raise InvalidError(f"{directory / name}: {error.strerror}", "bad_memory") from error
        except InvalidError as error:
            raise InvalidError(
                f"{directory / name}: {error}; copy it from another of the directories", error.code
            ) from error
    return max(found, key=lambda document: document.signed.version, default=None)
