"""How this machine becomes a device of a fleet (wire 8): one token, one key, one identity.

Invariant: nothing received is believed before its fingerprint is the token's, and everything afterwards only from
servers that descend from the pinned CA. The key lies on disk before the controller hears of it, and ``identity.json``
is written last: whatever is cut off, the same token with the same key again leads to the same device. An identity that
lies here is never replaced. Does not renew certificates (`renewing.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

from agent import durable
from agent.errors import ControllerError, DeviceError, TrustError, UsageError
from agent.identity import exchange, keys
from agent.identity.certificates import ROOTS_FILE
from agent.identity.exchange import Address
from wire import codec, enrolment, envelope
from wire.enrolment import EnrolAnswer, EnrolRequest, JoinToken, TrustBundle
from wire.errors import WireError

DIRECTORY: Final = "identity"
IDENTITY_FILE: Final = "identity.json"
TRUST_FILE: Final = "trust.json"
TRUST_PATH: Final = "/api/v1/enrolment/trust"
ENROL_PATH: Final = "/api/v1/enrolment"

_log = structlog.get_logger()


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    """What identity.json holds. ``fingerprint``: of the trust bundle that was pinned."""

    device: str
    tenant: str
    fingerprint: str
    mqtt_host: str
    mqtt_port: int
    api_url: str
    gateway_url: str


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this device is, whom it trusts, and where its fleet is. The key is kept out of ``repr``."""

    directory: Path
    device: str
    tenant: str
    fingerprint: str
    mqtt_host: str
    mqtt_port: int
    api_url: str
    gateway_url: str
    bundle: TrustBundle
    key: keys.PrivateKey

    def __repr__(self) -> str:
        return f"Identity(device={self.device!r}, tenant={self.tenant!r}, api_url={self.api_url!r})"

    @property
    def ca_file(self) -> Path:
        """The PEM file of the CAs from which the fleet's servers descend: as renewed (wire 8.6), else as pinned."""
        renewed = self.directory / ROOTS_FILE
        return renewed if renewed.exists() else self.directory / keys.CA_FILE

    def keep_roots(self) -> None:
        """Make ``ca_file`` one that a renewal can replace under the same name. Raises DeviceError."""
        if not (self.directory / ROOTS_FILE).exists():
            durable.write_atomic(self.directory / ROOTS_FILE, self.bundle.ca_pem.encode(), "identity.roots", mode=0o644)

    @property
    def certificate_file(self) -> Path:
        """The PEM file of the device's certificate and its chain."""
        return self.directory / keys.CERTIFICATE_FILE

    @property
    def key_file(self) -> Path:
        """The PEM file of the device's key."""
        return self.directory / keys.KEY_FILE


def load_identity(data: Path) -> Identity | None:
    """Return the identity in the data directory ``data``, None when the device has not joined.

    Raises DeviceError when something of it is missing, broken or does not fit: it is never made anew.
    """
    directory = data / DIRECTORY
    path = directory / IDENTITY_FILE
    if not path.exists():
        return None
    try:
        record = msgspec.json.decode(keys.read(path), type=_Record)
    except msgspec.MsgspecError as error:
        raise DeviceError(f"{path} is broken: {error}; restore it or enrol anew", "bad_identity") from error
    raw = keys.read(directory / TRUST_FILE)
    if enrolment.fingerprint(raw) != record.fingerprint:
        raise DeviceError(f"{directory / TRUST_FILE} is not what was pinned; restore it or enrol anew", "bad_trust")
    bundle = _read_bundle(raw)
    if keys.read(directory / keys.CA_FILE) != bundle.ca_pem.encode():
        raise DeviceError(f"{directory / keys.CA_FILE} is not what was pinned; restore it or enrol anew", "bad_trust")
    key = keys.load_key(directory)
    keys.check_certificate(keys.read(directory / keys.CERTIFICATE_FILE), key, record.device)
    return Identity(directory=directory, bundle=bundle, key=key, **msgspec.to_builtins(record))


def enrol(data: Path, token_text: str, api_url: str, facts: dict[str, Any], name: str = "") -> Identity:
    """Join the fleet that the token is for, or return the identity with which this device joined it before. Blocks.

    Raises UsageError (not a token, not an address, joined elsewhere), TrustError (the controller's fingerprint is not
    the token's), ControllerError (refused), UnreachableError (try again later) or DeviceError (files).
    """
    try:
        token = enrolment.parse_token(token_text)
    except WireError as error:
        raise UsageError(str(error), "bad_token") from error
    address = exchange.parse_url(api_url)
    held = load_identity(data)
    if held is not None:
        if (held.fingerprint, held.tenant) != (token.fingerprint, token.tenant):
            raise UsageError(
                f"this device is {held.device} of {held.api_url}, tenant {held.tenant}, and the token is for another "
                f"controller or tenant; to leave, stop the agent and remove {held.directory}",
                "other_controller",
            )
        _log.info("already enrolled", device=held.device, controller=held.api_url)
        return held
    directory = data / DIRECTORY
    key = keys.make_or_load_key(directory)
    raw, bundle = _fetch_trust(address, token)
    durable.write_atomic(directory / TRUST_FILE, raw, "identity.trust", mode=0o644)
    durable.write_atomic(directory / keys.CA_FILE, bundle.ca_pem.encode(), "identity.ca", mode=0o644)
    answer = _request(address, directory, token, key, facts, name)
    certificate = _joined(answer.certificate_pem, answer.chain_pem).encode()
    keys.check_certificate(certificate, key, answer.device)
    record = _Record(
        device=answer.device,
        tenant=token.tenant,
        fingerprint=token.fingerprint,
        mqtt_host=answer.mqtt_host,
        mqtt_port=answer.mqtt_port,
        api_url=answer.api_url,
        gateway_url=answer.gateway_url,
    )
    durable.write_atomic(directory / keys.CERTIFICATE_FILE, certificate, "identity.certificate", mode=0o644)
    durable.write_atomic(directory / IDENTITY_FILE, msgspec.json.encode(record), "identity.record", mode=0o644)
    _log.info("enrolled", device=answer.device, tenant=token.tenant, controller=answer.api_url)
    return Identity(directory=directory, bundle=bundle, key=key, **msgspec.to_builtins(record))


def _fetch_trust(address: Address, token: JoinToken) -> tuple[bytes, TrustBundle]:
    raw = exchange.exchange(
        address, exchange.unverified(), "GET", f"{TRUST_PATH}?tenant={token.tenant}", limit=enrolment.MAX_BYTES
    )
    if enrolment.fingerprint(raw) != token.fingerprint:
        raise TrustError(
            f"{address} is not the controller that the join token is for: its fingerprint differs. Check the address; "
            "if the fleet's keys were changed since, make a new token with `muster tokens join` there",
            "wrong_fingerprint",
        )
    return raw, _read_bundle(raw)


def _read_bundle(raw: bytes) -> TrustBundle:
    try:
        bundle = codec.decode(TrustBundle, raw, enrolment.MAX_BYTES)
        for text in bundle.assignment_keys:
            envelope.decode_public_key(text)
    except WireError as error:
        raise TrustError(f"the trust bundle cannot be used: {error}", "bad_trust") from error
    return bundle


def _request(
    address: Address, directory: Path, token: JoinToken, key: keys.PrivateKey, facts: dict[str, Any], name: str
) -> EnrolAnswer:
    request = EnrolRequest(
        token=f"{token.id}.{token.secret}", csr_pem=keys.certificate_request(key), facts=facts, name=name
    )
    body = codec.encode(request)
    if len(body) > enrolment.MAX_BYTES:
        body = codec.encode(msgspec.structs.replace(request, facts={}))  # they are published after the first connect
    context = exchange.verified(directory / keys.CA_FILE)
    answer = exchange.exchange(address, context, "POST", ENROL_PATH, body, limit=enrolment.MAX_BYTES)
    try:
        return codec.decode(EnrolAnswer, answer, enrolment.MAX_BYTES)
    except WireError as error:
        raise ControllerError(f"the answer from {address} cannot be used: {error}", "bad_answer") from error


def _joined(*parts: str) -> str:
    return "".join(part if part.endswith("\n") else part + "\n" for part in parts if part)
