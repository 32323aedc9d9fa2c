"""What this device believes: the keys pinned when it joined (wire 5, wire 8.2), and what the repository vouches for.

Invariant: only bytes that a pinned key signed for the right purpose leave this module, or bytes with the hash that an
assignment names, and only as parsed values. No key that vouches for assignments vouches for a build: that is the signed
repository's (`voucher.py`), so who steals the controller can only choose among builds that a builder signed. Does not
judge whether an assignment is for this device, fresh or newer (`wire.assignment.judge`), nor whether a build fits
(`updates/precheck.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from agent.errors import TrustError
from wire import envelope
from wire.assignment import Assignment, parse_assignment
from wire.codec import decode
from wire.enrolment import TrustBundle
from wire.errors import SignatureError, VersionError, WireError
from wire.manifest import Manifest, build_id, parse_manifest
from wire.messages import Command


class Pinned:
    """The pinned keys. Raises TrustError ("malformed") when the bundle's keys cannot be read."""

    def __init__(self, bundle: TrustBundle) -> None:
        try:
            self._assigners = _by_id(bundle.assignment_keys)
        except WireError as error:
            raise TrustError(
                f"the pinned trust bundle is broken: {error}; enrol the device again", "malformed"
            ) from error

    def open_assignment(self, data: bytes) -> Assignment:
        """Return the assignment in the envelope ``data``.

        Raises TrustError: "bad_signature" (unknown key, wrong purpose, changed bytes), "version" or "malformed".
        """
        try:
            return parse_assignment(envelope.open_envelope(data, envelope.ASSIGNMENT, self._assigners))
        except WireError as error:
            raise _refusal("assignment", error) from error

    def open_command(self, data: bytes) -> Command:
        """Return the command in the envelope ``data``. Raises TrustError as ``open_assignment`` does."""
        try:
            return decode(Command, envelope.open_envelope(data, envelope.COMMAND, self._assigners))
        except WireError as error:
            raise _refusal("command", error) from error

    def open_manifest(self, data: bytes, sha256: str) -> tuple[str, Manifest, bytes]:
        """Return the build id, the manifest and its bytes, from the envelope ``data``, which must have ``sha256``.

        The hash stands for the signature: nothing is installed before the repository vouched for it.
        Raises TrustError: "wrong_hash", "version" or "malformed".
        """
        if hashlib.sha256(data).hexdigest() != sha256:
            raise TrustError(f"the manifest's bytes are not those of {sha256}: fetch it again", "wrong_hash")
        try:
            payload = envelope.payload_of(data)
            return build_id(payload), parse_manifest(payload), payload
        except WireError as error:
            raise _refusal("manifest", error) from error


def _by_id(keys: list[str]) -> Mapping[str, envelope.PublicKey]:
    decoded = [envelope.decode_public_key(text) for text in keys]
    return {envelope.key_id(key): key for key in decoded}


def _refusal(what: str, error: WireError) -> TrustError:
    if isinstance(error, SignatureError):
        return TrustError(
            f"{what} refused: {error}; if the fleet's keys changed, enrol the device again", "bad_signature"
        )
    if isinstance(error, VersionError):
        return TrustError(f"{what} refused: {error}; update the agent", "version")
    return TrustError(f"{what} refused: {error}", "malformed")
