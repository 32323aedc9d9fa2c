from __future__ import annotations

import contextlib

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from wire import envelope
from wire.envelope import PrivateKey, PublicKey, key_id, open_envelope, peek_key_id, seal
from wire.errors import MalformedError, SignatureError, WireError

ED = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32))
P256 = ec.derive_private_key(7, ec.SECP256R1())
KEYS: list[PrivateKey] = [ED, P256]


def trusted(*keys: PrivateKey) -> dict[str, PublicKey]:
    return {key_id(key.public_key()): key.public_key() for key in keys}


@pytest.mark.parametrize("key", KEYS)
def test_the_payload_comes_back_byte_for_byte(key: PrivateKey) -> None:
    payload = b'{"b": 1,  "a":2}\n'
    assert open_envelope(seal(payload, envelope.MANIFEST, key), envelope.MANIFEST, trusted(key)) == payload


@pytest.mark.parametrize("key", KEYS)
def test_a_signature_for_one_purpose_does_not_hold_for_another(key: PrivateKey) -> None:
    with pytest.raises(SignatureError):
        open_envelope(seal(b"x", envelope.MANIFEST, key), envelope.ASSIGNMENT, trusted(key))


def test_an_unknown_key_is_refused_by_name() -> None:
    with pytest.raises(SignatureError, match=key_id(ED.public_key())):
        open_envelope(seal(b"x", envelope.MANIFEST, ED), envelope.MANIFEST, trusted(P256))


@settings(max_examples=200)
@given(position=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_no_flipped_bit_yields_other_bytes(position: int, bit: int) -> None:
    sealed = bytearray(seal(b'{"model":"digits"}', envelope.MANIFEST, ED))
    sealed[position % len(sealed)] ^= 1 << bit
    with contextlib.suppress(WireError):
        assert open_envelope(bytes(sealed), envelope.MANIFEST, trusted(ED)) == b'{"model":"digits"}'


def test_the_algorithm_must_be_the_keys_own() -> None:
    fields = msgspec.json.decode(seal(b"x", envelope.MANIFEST, ED))
    fields["algorithm"] = "ecdsa-p256-sha256"
    with pytest.raises(SignatureError, match="algorithm"):
        open_envelope(msgspec.json.encode(fields), envelope.MANIFEST, trusted(ED))


@pytest.mark.parametrize("data", [b"", b"{}", b"[1]", b"\xff", b'{"key_id":1}', b"[" * 200_000])
def test_what_is_no_envelope_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedError):
        open_envelope(data, envelope.MANIFEST, trusted(ED))
    with pytest.raises(MalformedError):
        peek_key_id(data)


def test_an_endless_envelope_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(MalformedError, match="at most"):
        open_envelope(b" " * (envelope.MAX_BYTES + 1), envelope.MANIFEST, trusted(ED))


@pytest.mark.parametrize("key", KEYS)
def test_public_keys_travel_as_text(key: PrivateKey) -> None:
    text = envelope.encode_public_key(key.public_key())
    assert key_id(envelope.decode_public_key(text)) == key_id(key.public_key())


def test_other_kinds_of_key_are_refused() -> None:
    weak = rsa.generate_private_key(65_537, 1024).public_key()
    other_curve = ec.derive_private_key(7, ec.SECP384R1()).public_key()
    for key in (weak, other_curve):
        with pytest.raises(MalformedError, match="Ed25519"):
            envelope.decode_public_key(envelope.encode_public_key(key))  # type: ignore[arg-type]  # on purpose
    with pytest.raises(MalformedError):
        envelope.decode_public_key("not base64 !")
