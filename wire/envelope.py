"""Signed bytes (wire 5): the payload travels exactly as it was signed.

Invariant: ``open_envelope`` returns only bytes that a given key signed for the given purpose. A signature for one
purpose never holds for another. Does not know which keys deserve trust: the caller hands them in.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from typing import Final

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from wire.errors import MalformedError, SignatureError

PrivateKey = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey
PublicKey = ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey

MANIFEST: Final = "manifest"
ASSIGNMENT: Final = "assignment"
COMMAND: Final = "command"
DEVICE_SESSION: Final = "device-session"
TUNNEL: Final = "tunnel"

MAX_BYTES: Final = 1024 * 1024


class Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """key_id: see ``key_id``; algorithm: "ed25519" or "ecdsa-p256-sha256"; payload, signature: base64."""

    key_id: str
    algorithm: str
    payload: bytes
    signature: bytes


def encode_public_key(key: PublicKey) -> str:
    """Return the base64 of the DER SubjectPublicKeyInfo of ``key``."""
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(der).decode()


def decode_public_key(text: str) -> PublicKey:
    """Return the key in ``text``. Raises MalformedError unless it is Ed25519 or on P-256."""
    try:
        key = serialization.load_der_public_key(base64.b64decode(text, validate=True))
    except (ValueError, TypeError) as error:
        raise MalformedError(f"not a public key: {error}") from error
    if isinstance(key, ed25519.Ed25519PublicKey):
        return key
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return key
    raise MalformedError("a public key must be Ed25519 or on the curve P-256")


def key_id(key: PublicKey) -> str:
    """Return the name of a key: the first 16 hex digits of the SHA-256 of its DER form."""
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()[:16]


def seal(payload: bytes, purpose: str, key: PrivateKey) -> bytes:
    """Return the bytes of an envelope around ``payload``, signed for ``purpose``."""
    signed = _signed_bytes(payload, purpose)
    if isinstance(key, ed25519.Ed25519PrivateKey):
        algorithm, signature = "ed25519", key.sign(signed)
    else:
        algorithm, signature = "ecdsa-p256-sha256", key.sign(signed, ec.ECDSA(hashes.SHA256()))
    envelope = Envelope(key_id=key_id(key.public_key()), algorithm=algorithm, payload=payload, signature=signature)
    return msgspec.json.encode(envelope)


def open_envelope(data: bytes, purpose: str, keys: Mapping[str, PublicKey]) -> bytes:
    """Return the payload of the envelope in ``data``, if one of ``keys`` (by key id) signed it for ``purpose``.

    Raises MalformedError or SignatureError.
    """
    if len(data) > MAX_BYTES:
        raise MalformedError(f"envelope of {len(data)} bytes, at most {MAX_BYTES} are allowed")
    try:
        envelope = msgspec.json.decode(data, type=Envelope)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedError(f"not an envelope: {error}") from error
    key = keys.get(envelope.key_id)
    if key is None:
        raise SignatureError(f"signed with key {envelope.key_id[:32]!r}, which is not trusted for a {purpose}")
    signed = _signed_bytes(envelope.payload, purpose)
    try:
        if isinstance(key, ed25519.Ed25519PublicKey) and envelope.algorithm == "ed25519":
            key.verify(envelope.signature, signed)
        elif isinstance(key, ec.EllipticCurvePublicKey) and envelope.algorithm == "ecdsa-p256-sha256":
            key.verify(envelope.signature, signed, ec.ECDSA(hashes.SHA256()))
        else:
            raise SignatureError(f"algorithm {envelope.algorithm[:32]!r} does not fit key {envelope.key_id[:32]!r}")
    except InvalidSignature as error:
        raise SignatureError(f"the signature of this {purpose} does not fit its bytes") from error
    return envelope.payload


def payload_of(data: bytes) -> bytes:
    """Return the payload of the envelope in ``data``, unverified: for bytes that are known by their hash.

    Raises MalformedError.
    """
    if len(data) > MAX_BYTES:
        raise MalformedError(f"envelope of {len(data)} bytes, at most {MAX_BYTES} are allowed")
    try:
        return msgspec.json.decode(data, type=Envelope).payload
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedError(f"not an envelope: {error}") from error


def peek_key_id(data: bytes) -> str:
    """Return the key id that the envelope in ``data`` names, unverified. Raises MalformedError."""
    try:
        return msgspec.json.decode(data, type=Envelope).key_id
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedError(f"not an envelope: {error}") from error


def _signed_bytes(payload: bytes, purpose: str) -> bytes:
    return b"muster/1/" + purpose.encode() + b"\n" + payload
