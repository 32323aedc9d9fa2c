from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from agent.errors import DeviceError
from agent.identity import keys


def test_the_key_is_made_once_and_private(tmp_path: Path) -> None:
    directory = tmp_path / "identity"
    key = keys.make_or_load_key(directory)
    path = directory / keys.KEY_FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert isinstance(key.curve, ec.SECP256R1)
    before = path.read_bytes()
    assert keys.make_or_load_key(directory).private_numbers() == key.private_numbers()
    assert path.read_bytes() == before


@pytest.mark.parametrize("damage", [b"", b"garbage", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_a_broken_key_is_an_error_and_stays(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / keys.KEY_FILE).write_bytes(damage)
    with pytest.raises(DeviceError) as info:
        keys.make_or_load_key(tmp_path)
    assert info.value.code == "bad_key"
    assert (tmp_path / keys.KEY_FILE).read_bytes() == damage


@pytest.mark.parametrize("key", [ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP384R1())])
def test_a_key_of_another_kind_is_refused(tmp_path: Path, key: Any) -> None:
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (tmp_path / keys.KEY_FILE).write_bytes(pem)
    with pytest.raises(DeviceError, match="P-256"):
        keys.load_key(tmp_path)


def test_a_missing_or_huge_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DeviceError) as info:
        keys.load_key(tmp_path)
    assert info.value.code == "missing_file"
    (tmp_path / keys.KEY_FILE).write_bytes(b"x" * 300_000)
    with pytest.raises(DeviceError) as info:
        keys.load_key(tmp_path)
    assert info.value.code == "unreadable_file"
    with pytest.raises(DeviceError):
        keys.read(tmp_path)


def test_the_request_proves_possession(tmp_path: Path) -> None:
    key = keys.make_or_load_key(tmp_path)
    request = x509.load_pem_x509_csr(keys.certificate_request(key).encode())
    assert request.is_signature_valid
    assert request.public_key() == key.public_key()


def test_a_certificate_must_fit_key_and_name(authority: Any, tmp_path: Path, device_id: str) -> None:
    key = keys.make_or_load_key(tmp_path)
    good = authority.sign(device_id, key.public_key()).encode()
    keys.check_certificate(good + authority.pem.encode(), key, device_id)
    other = ec.generate_private_key(ec.SECP256R1())
    for pem, device in (
        (authority.sign(device_id, other.public_key()).encode(), device_id),
        (good, "d-" + "a" * 26),
        (b"no certificate", device_id),
    ):
        with pytest.raises(DeviceError) as info:
            keys.check_certificate(pem, key, device)
        assert info.value.code == "bad_certificate"
