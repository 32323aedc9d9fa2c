"""Renewal: for the same key only, never for a revoked device, long after the end, the same when asked again."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography import x509
from sqlalchemy import text

from controller.devices import joining
from controller.devices.authority import DEVICES, Authority
from controller.devices.renewal import DAY, GRACE, Again, Issue, Newest, Refuse, decide
from controller.errors import DeniedError
from wire.codec import decode
from wire.enrolment import RenewAnswer
from wire.envelope import DEVICE_SESSION, seal

NOW = 1_790_000_000.0


def newest(issued: float = NOW, expires: float = NOW + 30 * DAY, ours: bool = True) -> Newest:
    return Newest("PEM", issued, expires, ours)


@pytest.mark.parametrize(
    ("held", "revoked", "now", "expected"),
    [
        (newest(), False, NOW, Again("PEM")),
        (newest(), False, NOW + 15 * DAY - 1, Again("PEM")),
        (newest(), False, NOW + 15 * DAY, Issue()),
        (newest(ours=False), False, NOW, Issue()),  # the authority was renewed
        (newest(), False, NOW - 1, Issue()),  # this clock was put back
        (newest(), False, NOW + 30 * DAY + GRACE - 1, Issue()),
    ],
)
def test_the_decision(held: Newest, revoked: bool, now: float, expected: object) -> None:
    assert decide(held, revoked, now) == expected


@pytest.mark.parametrize(
    ("held", "revoked", "now", "code"),
    [
        (newest(), True, NOW, "device_revoked"),
        (newest(), True, NOW + 31 * DAY, "device_revoked"),
        (newest(), False, NOW + 30 * DAY + GRACE, "too_late"),
        (None, False, NOW, "too_late"),
    ],
)
def test_refusals_say_what_to_do(held: Newest | None, revoked: bool, now: float, code: str) -> None:
    refusal = decide(held, revoked, now)
    assert isinstance(refusal, Refuse)
    assert refusal.code == code
    assert "join token" in refusal.reason


def bearer(api: Any, device: str, key: Any) -> dict[str, str]:
    asked = api.stranger.post("/api/v1/device-sessions/challenge", json={"device": device}).content
    answer = api.stranger.post("/api/v1/device-sessions", content=seal(asked, DEVICE_SESSION, key))
    return {"Authorization": f"Bearer {answer.json()['token']}"}


def test_a_device_renews_over_http_with_its_key(api: Any, make_key: Any) -> None:
    key = make_key()
    device = api.enrolled(key)
    headers = bearer(api, device, key)
    first = api.stranger.post("/api/v1/device-certificates", headers=headers)
    assert first.status_code == 200
    with api.db.begin() as c:  # as if it had joined long ago, and its certificate had ended meanwhile
        c.execute(text("UPDATE certificates SET issued = issued - 40 * 86400, expires = expires - 40 * 86400"))
    answer = decode(RenewAnswer, api.stranger.post("/api/v1/device-certificates", headers=headers).content)
    made = x509.load_pem_x509_certificate(answer.certificate_pem.encode())
    assert made.public_key() == key.public_key()
    assert made.subject.rfc4514_string() == f"CN={device}"
    made.verify_directly_issued_by(x509.load_pem_x509_certificate(answer.chain_pem.encode()))
    assert answer.chain_pem == api.fleet.authority.chain_pem(DEVICES)
    assert answer.roots_pem == api.fleet.authority.root_pem
    again = api.stranger.post("/api/v1/device-certificates", headers=headers)
    assert decode(RenewAnswer, again.content) == answer  # a lost answer is given again
    with api.db.read() as c:
        assert c.execute(text("SELECT count(*) FROM certificates")).scalar_one() == 2
        told = c.execute(text("SELECT actor, body FROM audit WHERE action = 'devices.renew'")).all()
    assert [row.actor for row in told] == [f"device:{device}"]
    assert f"{made.serial_number:x}" in told[0].body
    api.admin.delete(f"/api/v1/devices/{device}")
    assert api.stranger.post("/api/v1/device-certificates", headers=headers).status_code == 401


def test_nobody_else_renews(api: Any) -> None:
    api.enrolled()
    assert api.stranger.post("/api/v1/device-certificates").status_code == 401
    for client in (api.admin, api.client("operator"), api.client("viewer"), api.client("builder")):
        assert client.post("/api/v1/device-certificates").status_code == 403


def test_a_revocation_in_between_is_seen_and_old_certificates_are_forgotten(api: Any, make_key: Any) -> None:
    key = make_key()
    device = api.enrolled(key)
    with api.db.read() as c:
        ends = c.execute(text("SELECT expires FROM certificates")).scalar_one()
    for _ in range(8):  # always at the last moment
        joining.renew(api.db, api.fleet, device, ends + GRACE - 1)
        with api.db.read() as c:
            ends = c.execute(text("SELECT max(expires) FROM certificates")).scalar_one()
            assert c.execute(text("SELECT count(*) FROM certificates")).scalar_one() <= 2
    with pytest.raises(DeniedError) as told:
        joining.renew(api.db, api.fleet, device, ends + GRACE)
    assert told.value.code == "too_late"
    api.admin.delete(f"/api/v1/devices/{device}")
    with pytest.raises(DeniedError) as told:
        joining.renew(api.db, api.fleet, device, ends)
    assert told.value.code == "device_revoked"


def test_what_another_authority_issued_is_renewed_at_once(api: Any, make_key: Any, tmp_path: Any) -> None:
    device = api.enrolled(make_key())
    with api.db.read() as c:
        pem, issued = c.execute(text("SELECT pem, issued FROM certificates")).one()
    assert api.fleet.authority.issued_by_us(pem)
    assert not Authority(tmp_path / "other", issued).issued_by_us(pem)
    assert not api.fleet.authority.issued_by_us("nonsense")
    assert joining.renew(api.db, api.fleet, device, issued + 1).certificate_pem == pem
