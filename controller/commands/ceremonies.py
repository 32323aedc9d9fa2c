"""How a ceremony reaches the controller: what holds now is read, what was signed is sent, once and for certain.

Invariant: what is sent is written beside the keys first. A refusal takes that file and the new keys away again; when no
answer came both stay, because the controller may have taken it: `muster keys finish` sends the same documents again.
Signs nothing itself.
"""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
from securesystemslib.signer import Key  # type: ignore[attr-defined]
from tuf.api.metadata import Root

from controller.commands.client import Api, at
from controller.errors import (
    ConflictError,
    DeniedError,
    InvalidError,
    NotFoundError,
    TooLargeError,
    TooManyError,
    UnauthenticatedError,
    UnavailableError,
)
from controller.installation import write_private_bytes
from controller.trust import layout, metadata
from controller.trust.ceremony import Current, Signed
from controller.trust.offline_keys import NewKeys
from controller.trust.remembered import follow, remember

MAX_FILE: Final = 4 * metadata.MAX_BYTES
REFUSALS: Final = (
    *(InvalidError, UnauthenticatedError, DeniedError, NotFoundError, ConflictError, TooLargeError, TooManyError),
)


class Ceremony(msgspec.Struct, frozen=True, kw_only=True):
    """What was signed and where its keys lie. roots, targets: base64; made: new key files; keep: the directories."""

    tenant: str
    version: int
    roots: list[str]
    targets: str
    reason: str
    made: list[str]
    keep: list[str]


@dataclass(frozen=True)
class Standing:
    """How the controller says that the repository stands. status: the answer of GET /api/v1/trust."""

    tenant: str
    status: dict[str, Any]

    def version(self, role: str) -> int:
        """Return the newest version of ``role``."""
        return next((row["version"] for row in self.status["roles"] if row["role"] == role), 0)


def standing(api: Api) -> Standing:
    """Ask how the repository stands."""
    return Standing(api.get("/api/v1/whoami")["tenant"], api.get("/api/v1/trust"))


def current(api: Api, stands: Standing, directories: Sequence[Path]) -> Current:
    """Return root and targets that hold now, checked against what ``directories`` remember."""
    targets = document(api, stands.tenant, layout.TARGETS, stands.version(layout.TARGETS))
    newest = stands.version(layout.ROOT)
    return follow(
        directories,
        newest,
        lambda number: document(api, stands.tenant, layout.ROOT, number),
        targets,
        bool(stands.status["trial"]),
    )


def new_online_key(api: Api, role: str) -> Key:
    """Have the controller make a new key of its own for ``role``; return the public half."""
    answer = api.post("/api/v1/trust/online-keys", {"role": role})
    try:
        return Key.from_dict(answer["keyid"], answer["key"])
    except (KeyError, TypeError, ValueError) as error:
        raise UnavailableError(f"the controller answered something odd for a new {role} key: {error}", "odd") from error


def document(api: Api, tenant: str, role: str, version: int) -> bytes:
    """Return one version of a role's metadata. Its signatures hold over the canonical form, not over these bytes."""
    return msgspec.json.encode(api.get(at("/tuf/{}/metadata/{}", tenant, f"{version}.{role}.json")))


def send(api: Api, stands: Standing, signed: Signed, new: NewKeys, keep: Sequence[Path], reason: str) -> dict[str, Any]:
    """Send what was signed. Raises what the controller says; on a refusal nothing is left behind."""
    version = stands.version(layout.ROOT) + len(signed.roots)
    ceremony = Ceremony(
        tenant=stands.tenant,
        version=version,
        roots=[base64.b64encode(root).decode() for root in signed.roots],
        targets=base64.b64encode(signed.targets).decode(),
        reason=reason,
        made=[str(one.file) for one in new.made],
        keep=[str(directory.absolute()) for directory in keep],
    )
    file = keep[0] / f"muster-ceremony-{version}.json"
    try:
        write_private_bytes(file, msgspec.json.encode(ceremony))
    except OSError as error:
        new.remove()
        raise UnavailableError(f"{file}: {error.strerror}; nothing was changed", "unwritable") from error
    try:
        answer = _post(api, ceremony)
    except REFUSALS:
        new.remove()
        file.unlink(missing_ok=True)
        raise
    except BaseException as error:
        raise UnavailableError(
            f"no answer came, so the controller may have taken it or not ({error or type(error).__name__}). Keep "
            f"the new keys. When the controller answers again: muster keys finish {file}",
            "unknown_end",
        ) from error
    _over(ceremony, file)
    return answer


def finish(api: Api, file: Path) -> bool:
    """Bring a ceremony to its end whose answer got lost; return whether it had to be sent again."""
    ceremony = _read(file)
    stands = standing(api)
    if stands.tenant != ceremony.tenant:
        raise ConflictError(f"{file} is of tenant {ceremony.tenant}, this login of {stands.tenant}", "other_tenant")
    newest = stands.version(layout.ROOT)
    if newest >= ceremony.version:
        taken = metadata.read(document(api, stands.tenant, layout.ROOT, ceremony.version), Root)
        ours = metadata.read(base64.b64decode(ceremony.roots[-1]), Root)
        if taken.signed_bytes == ours.signed_bytes:
            _over(ceremony, file)
            return False
    if newest != ceremony.version - len(ceremony.roots):
        raise ConflictError(
            f"something else was signed meanwhile: root version {newest} holds. {file} can be removed, and the keys "
            f"that were made for it: {', '.join(ceremony.made) or 'none'}",
            "not_next",
        )
    _post(api, ceremony)
    _over(ceremony, file)
    return True


def _post(api: Api, ceremony: Ceremony) -> dict[str, Any]:
    body = {"roots": ceremony.roots, "targets": ceremony.targets, "reason": ceremony.reason}
    answer: dict[str, Any] = api.post("/api/v1/trust/root", body)
    return answer


def _over(ceremony: Ceremony, file: Path) -> None:
    remember(
        [Path(directory) for directory in ceremony.keep],
        base64.b64decode(ceremony.roots[-1]),
        base64.b64decode(ceremony.targets),
    )
    with contextlib.suppress(OSError):
        file.unlink()


def _read(file: Path) -> Ceremony:
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_FILE + 1)
        if len(data) > MAX_FILE:
            raise InvalidError(f"{file} is too large to be a ceremony's file", "bad_ceremony")
        found = msgspec.json.decode(data, type=Ceremony)
        for text in (*found.roots, found.targets):
            base64.b64decode(text, validate=True)
    except (OSError, msgspec.MsgspecError, ValueError) as error:
        raise InvalidError(f"{file}: {error}; name the file that the ceremony told", "bad_ceremony") from error
    if not found.roots or not found.keep:
        raise InvalidError(f"{file} holds nothing to send", "bad_ceremony")
    return found
