from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.errors import ControllerError
from agent.identity.credentials import Credentials
from agent.identity.enrol import Identity, enrol
from wire import envelope
from wire.enrolment import TunnelCredential
from wire.errors import SignatureError


@pytest.fixture
def identity(far: Any, data: Path) -> Identity:
    return enrol(data, far.token, far.url, {})


async def test_a_session_is_fetched_once_and_again_before_it_ends(far: Any, identity: Identity) -> None:
    now = time.time()
    credentials = Credentials(identity, clock=lambda: now)
    first = await credentials.session_token()
    assert first != "re-encoded"
    assert await credentials.session_token() == first
    now += 539
    assert await credentials.session_token() == first
    now += 2
    second = await credentials.session_token()
    assert second != first
    credentials.forget_session()
    assert await credentials.session_token() not in {first, second}


async def test_a_clock_that_is_behind_does_not_keep_an_old_token(
    identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    credentials = Credentials(identity, clock=lambda: 0.0)
    first = await credentials.session_token()
    real = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: real() + 541)
    assert await credentials.session_token() != first


async def test_signs_no_challenge_for_another_device(far: Any, identity: Identity) -> None:
    far.challenged = "d-" + "z" * 26
    with pytest.raises(ControllerError, match="asked this device to sign"):
        await Credentials(identity).session_token()


async def test_garbage_is_an_error(far: Any, identity: Identity) -> None:
    far.answers["/api/v1/device-sessions"] = (200, b"[]")
    with pytest.raises(ControllerError):
        await Credentials(identity).session_token()
    far.answers["/api/v1/device-sessions"] = (401, b'{"error": "revoked", "code": "device_revoked"}')
    with pytest.raises(ControllerError, match="revoked") as info:
        await Credentials(identity).session_token()
    assert info.value.code == "device_revoked"


async def test_the_tunnel_credential_is_for_the_tunnel_only(identity: Identity) -> None:
    sealed = Credentials(identity).tunnel_credential(1000.0)
    keys = {envelope.key_id(identity.key.public_key()): identity.key.public_key()}
    payload = envelope.open_envelope(sealed, envelope.TUNNEL, keys)
    expected = TunnelCredential(device=identity.device, issued=1000.0, expires=4600.0)
    assert msgspec.json.decode(payload, type=TunnelCredential) == expected
    with pytest.raises(SignatureError):
        envelope.open_envelope(sealed, envelope.DEVICE_SESSION, keys)
