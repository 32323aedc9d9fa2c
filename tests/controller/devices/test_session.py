"""Devices known by their signature (wire 8.5), and refused everywhere once they are revoked."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from controller.devices import session
from controller.devices.session import CHALLENGE_SECONDS, TOKEN_SECONDS
from controller.errors import UnauthenticatedError
from wire.enrolment import Challenge
from wire.envelope import DEVICE_SESSION, TUNNEL, Envelope, seal

KeyMaker = Callable[[], ec.EllipticCurvePrivateKey]


def challenge(api: Any, device: str) -> bytes:
    answer = api.stranger.post("/api/v1/device-sessions/challenge", json={"device": device})
    assert answer.status_code == 200, answer.text
    content: bytes = answer.content
    return content


def open_session(api: Any, device: str, key: ec.EllipticCurvePrivateKey) -> str:
    envelope = seal(challenge(api, device), DEVICE_SESSION, key)
    answer = api.stranger.post("/api/v1/device-sessions", content=envelope)
    assert answer.status_code == 200, answer.text
    token: str = answer.json()["token"]
    assert answer.json()["expires"] == api.now[0] + TOKEN_SECONDS
    return token


def fetch(api: Any, token: str) -> Any:
    return api.stranger.get("/fetch", headers={"Authorization": f"Bearer {token}"})


def test_a_device_fetches_with_its_signature(api: Any, make_key: KeyMaker) -> None:
    key = make_key()
    device = api.enrolled(key)
    token = open_session(api, device, key)
    assert fetch(api, token).json() == device
    headers = {"Authorization": f"Bearer {token}"}
    assert api.stranger.get("/api/v1/devices", headers=headers).status_code == 403
    api.now[0] += TOKEN_SECONDS
    assert fetch(api, token).json()["code"] == "expired_session"


def test_a_wrong_signature_purpose_or_age_is_refused(api: Any, make_key: KeyMaker) -> None:
    key, other = make_key(), make_key()
    device, another = api.enrolled(key), api.enrolled(other)
    asked = challenge(api, device)
    forged = msgspec.json.encode(msgspec.structs.replace(msgspec.json.decode(asked, type=Challenge), device=another))
    own = msgspec.json.encode(Challenge(device=device, nonce="a.b", expires=api.now[0] + 1e6))
    for envelope, code in (
        (seal(asked, DEVICE_SESSION, other), "bad_signature"),
        (seal(asked, TUNNEL, key), "bad_signature"),
        (seal(forged, DEVICE_SESSION, other), "bad_challenge"),
        (seal(own, DEVICE_SESSION, key), "bad_challenge"),
        (seal(b"{}", DEVICE_SESSION, key), "bad_challenge"),
        (b"nonsense", "bad_challenge"),
    ):
        answer = api.stranger.post("/api/v1/device-sessions", content=envelope)
        assert (answer.status_code, answer.json()["code"]) == (401, code)
    api.now[0] += CHALLENGE_SECONDS
    answer = api.stranger.post("/api/v1/device-sessions", content=seal(asked, DEVICE_SESSION, key))
    assert answer.json()["code"] == "expired_challenge"


def test_a_recorded_answer_opens_nothing_a_second_time_nor_after_a_restart(
    api: Any, make_key: KeyMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = make_key()
    device = api.enrolled(key)
    recorded = seal(challenge(api, device), DEVICE_SESSION, key)
    again = seal(msgspec.json.decode(recorded, type=Envelope).payload, DEVICE_SESSION, key)  # another signature
    waiting = seal(challenge(api, device), DEVICE_SESSION, key)
    assert api.stranger.post("/api/v1/device-sessions", content=recorded).status_code == 200
    for replayed in (recorded, again):
        answer = api.stranger.post("/api/v1/device-sessions", content=replayed)
        assert (answer.status_code, answer.json()["code"]) == (401, "used_challenge")
    monkeypatch.setattr(session, "MAX_ANSWERED", 1)
    full = api.stranger.post("/api/v1/device-sessions", content=waiting)
    assert (full.status_code, full.json()["code"]) == (429, "too_many")
    api.now[0] += CHALLENGE_SECONDS
    fresh = seal(challenge(api, device), DEVICE_SESSION, key)
    assert api.stranger.post("/api/v1/device-sessions", content=fresh).status_code == 200  # what ended makes room
    left = seal(challenge(api, device), DEVICE_SESSION, key)
    restarted = session.DeviceSessions(api.db, b"k" * 32, lambda: api.now[0])
    with pytest.raises(UnauthenticatedError, match="not made here"):
        restarted.answer(left)


def test_a_strangers_signature_does_not_spend_a_challenge(api: Any, make_key: KeyMaker) -> None:
    key = make_key()
    device = api.enrolled(key)
    asked = challenge(api, device)
    assert (
        api.stranger.post("/api/v1/device-sessions", content=seal(asked, DEVICE_SESSION, make_key())).status_code == 401
    )
    assert api.stranger.post("/api/v1/device-sessions", content=seal(asked, DEVICE_SESSION, key)).status_code == 200


def test_a_token_cannot_be_altered(api: Any, make_key: KeyMaker) -> None:
    key = make_key()
    token = open_session(api, api.enrolled(key), key)
    victim = api.enrolled()
    claims, mac = token.removeprefix("mud.").split(".")
    changed = msgspec.json.decode(base64.urlsafe_b64decode(claims + "=="), type=dict[str, Any]) | {"device": victim}
    text = base64.urlsafe_b64encode(msgspec.json.encode(changed)).decode().rstrip("=")
    for forged in (f"mud.{text}.{mac}", f"mud.{claims}.", "mud.", "mud..", f"mud.{claims}.{mac}x", "mud.é.a"):
        headers = {"Authorization": f"Bearer {forged}".encode()}
        answer = api.stranger.get("/fetch", headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (401, "bad_session")


@pytest.mark.parametrize("body", [b"", b"[]", b'{"device": "x"}', b'{"device": 1}', b'{"a": "b"}', b" " * 2_000])
def test_a_challenge_needs_a_device_id(api: Any, body: bytes) -> None:
    assert api.stranger.post("/api/v1/device-sessions/challenge", content=body).status_code in (400, 413)


def test_a_revoked_device_is_refused_everywhere(api: Any, make_key: KeyMaker) -> None:
    key = make_key()
    joined = api.join_token()
    device = api.enrol(joined, key).json()["device"]
    token = open_session(api, device, key)
    waiting = seal(challenge(api, device), DEVICE_SESSION, key)
    assert api.client("viewer").delete(f"/api/v1/devices/{device}").status_code == 403
    assert api.admin.delete(f"/api/v1/devices/{device}").status_code == 204
    assert api.admin.delete(f"/api/v1/devices/{device}").status_code == 204
    assert fetch(api, token).json()["code"] == "no_device"
    assert api.stranger.post("/api/v1/device-sessions", content=waiting).json()["code"] == "no_device"
    assert api.enrol(joined, key).json()["code"] == "device_revoked"
    assert api.admin.get("/api/v1/devices").json()["devices"] == []
    assert [row["id"] for row in api.admin.get("/api/v1/devices", params={"revoked": True}).json()["devices"]] == [
        device
    ]
    assert api.admin.delete("/api/v1/devices/d-unknown").status_code == 404
