"""Who opens a tunnel: the credential that a device's key signed (wire 9.1).

Invariant: only a device that is registered and not revoked, with a credential that its own registered key signed for
the purpose "tunnel" and that holds now, is let in. Keeps nothing: a credential that expires later does not close its
tunnel, because expired trust stops changes and never serving; a revocation does.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from typing import Final

import msgspec

from controller.errors import DeniedError, UnauthenticatedError
from controller.routing.store import RegisteredDevice
from wire.enrolment import TunnelCredential
from wire.envelope import TUNNEL, Envelope, decode_public_key, key_id, open_envelope
from wire.errors import WireError

MAX_TEXT: Final = 6 * 1024  # characters of the header
SKEW: Final = 300.0  # seconds by which a device's clock may be ahead
MAX_LIFE: Final = 24 * 3600.0  # seconds: a credential that claims more is not believed

_parse = msgspec.json.Decoder(TunnelCredential).decode


def claimed_device(text: str) -> str:
    """Return the device that the credential in ``text`` (base64url of an envelope) names, not yet verified.

    Raises UnauthenticatedError.
    """
    return _open(text)[1].device


def admit(text: str, registered: Callable[[str], RegisteredDevice | None], now: float) -> tuple[str, str]:
    """Return (device, tenant) of the credential in ``text``. ``now``: seconds since 1970.

    Raises UnauthenticatedError when the credential does not hold, DeniedError when the device was revoked.
    """
    data, claimed = _open(text)
    device = registered(claimed.device)
    if device is None:
        raise UnauthenticatedError(f"no device {claimed.device[:64]!r} is enrolled here: enrol it again", "no_device")
    try:
        key = decode_public_key(device.public_key)
        credential = _parse(open_envelope(data, TUNNEL, {key_id(key): key}))
    except (WireError, msgspec.MsgspecError) as error:
        raise UnauthenticatedError(f"the tunnel credential does not hold: {error}", "bad_credential") from error
    if credential.expires <= now:
        raise UnauthenticatedError(
            f"the tunnel credential expired {now - credential.expires:.0f} s ago: check the device's clock", "expired"
        )
    if credential.issued > now + SKEW or credential.expires - credential.issued > MAX_LIFE:
        raise UnauthenticatedError(
            "the tunnel credential begins in the future or lasts too long: check the device's clock", "bad_times"
        )
    if device.revoked:
        raise DeniedError(f"device {credential.device} was revoked: enrol it again", "revoked")
    return credential.device, device.tenant


def _open(text: str) -> tuple[bytes, TunnelCredential]:
    if len(text) > MAX_TEXT:
        raise UnauthenticatedError("the tunnel credential is too long", "bad_credential")
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        return data, _parse(msgspec.json.decode(data, type=Envelope).payload)
    except (binascii.Error, ValueError, msgspec.MsgspecError, RecursionError) as error:
        raise UnauthenticatedError(
            "send `Authorization: Bearer` and the base64url of a tunnel credential", "bad_credential"
        ) from error
