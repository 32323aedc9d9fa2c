"""Who may join (wire 8): the decisions, and the same over the real application."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import text

from controller.devices.enrolment import Admit, Known, Refuse, Repeat, Token, decide, split
from controller.devices.joining import enrol
from tests.controller.devices.conftest import csr
from wire.codec import decode
from wire.enrolment import EnrolAnswer, EnrolRequest, fingerprint, parse_token

NOW = 1_000.0
KeyMaker = Callable[[], ec.EllipticCurvePrivateKey]


def token(uses: int = 1, expires: float = NOW + 1) -> Token:
    return Token("id", "default", hashlib.sha256(b"secret").hexdigest(), uses, expires, ("a",))


@pytest.mark.parametrize(
    ("held", "secret", "known", "verdict"),
    [
        (token(), "secret", None, Admit("default", ("a",))),
        (token(uses=5), "secret", None, Admit("default", ("a",))),
        (None, "secret", None, "token_unknown"),
        (token(), "Secret", None, "token_wrong"),
        (token(), "", None, "token_wrong"),
        (token(expires=NOW), "secret", None, "token_expired"),
        (token(uses=0), "secret", None, "token_used"),
        (token(), "secret", Known("d-1", False), Repeat("d-1", "default")),
        (token(uses=0), "secret", Known("d-1", False), Repeat("d-1", "default")),
        (token(expires=NOW), "secret", Known("d-1", False), Repeat("d-1", "default")),
        (token(), "secret", Known("d-1", True), "device_revoked"),
        (token(), "wrong", Known("d-1", False), "token_wrong"),
        (token(uses=0, expires=NOW), "wrong", None, "token_wrong"),
    ],
)
def test_decisions(held: Token | None, secret: str, known: Known | None, verdict: Any) -> None:
    decision = decide(held, secret, known, NOW)
    if isinstance(verdict, str):
        assert isinstance(decision, Refuse)
        assert decision.code == verdict
        assert "secret" not in decision.reason.replace("token's secret", "")
    else:
        assert decision == verdict


def test_split() -> None:
    assert split("id.secret") == ("id", "secret")
    assert split("id") == ("id", "")


def test_a_device_joins(api: Any, make_key: KeyMaker) -> None:
    joined = parse_token(api.join_token(tags=["site:a", "gpu"]))
    bundle = api.stranger.get("/api/v1/enrolment/trust")
    assert fingerprint(bundle.content) == joined.fingerprint
    assert joined.tenant == "default"
    key = make_key()
    answer = decode(EnrolAnswer, api.enrol(str(joined), key, name="press 7/left").content)
    certificate = x509.load_pem_x509_certificate(answer.certificate_pem.encode())
    assert certificate.public_key() == key.public_key()
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(answer.chain_pem.encode()))
    assert (answer.mqtt_host, answer.mqtt_port) == ("127.0.0.1", 8883)
    shown = api.admin.get(f"/api/v1/devices/{answer.device}").json()
    assert (shown["name"], shown["tags"], shown["state"]) == ("press7left", ["site:a", "gpu"], "lost")
    assert shown["certificate_expires"] == pytest.approx(time.time() + 30 * 86_400, abs=60)


def test_a_lost_answer_is_given_again_to_the_same_key_only(api: Any, make_key: KeyMaker) -> None:
    joined, key = api.join_token(), make_key()
    first, second = api.enrol(joined, key).json(), api.enrol(joined, key).json()
    assert first["device"] == second["device"]
    assert first["certificate_pem"] == second["certificate_pem"], "asking without end makes no heap of certificates"
    with api.db.read() as c:
        assert c.exec_driver_sql("SELECT count(*) FROM certificates").scalar_one() == 1
    parsed = parse_token(joined)
    request = EnrolRequest(token=f"{parsed.id}.{parsed.secret}", csr_pem=csr(key))
    later = enrol(api.db, api.fleet, request, time.time() + 20 * 86_400)
    assert (later.device, later.certificate_pem != first["certificate_pem"]) == (first["device"], True)
    other = api.enrol(joined, make_key())
    assert (other.status_code, other.json()["code"]) == (403, "token_used")


def test_join_tokens_that_ended_long_ago_are_forgotten_unless_a_device_has_them(api: Any) -> None:
    joined, unused = api.join_token(), parse_token(api.join_token()).id
    assert api.enrol(joined).status_code == 200
    used = parse_token(joined).id
    with api.db.begin() as c:
        c.execute(text("UPDATE join_tokens SET expires = expires - 91 * 86400"))
    api.join_token()
    with api.db.read() as c:
        kept = set(c.scalars(text("SELECT id FROM join_tokens")))
    assert used in kept
    assert unused not in kept


def test_a_token_for_two_admits_two(api: Any) -> None:
    joined = api.join_token(uses=2)
    answers = [api.enrol(joined) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 403]
    assert len({answer.json().get("device") for answer in answers}) == 3


def test_refusals_over_http(api: Any) -> None:
    joined = parse_token(api.join_token())
    wrong = str(joined).replace(joined.secret, "a" * 32)
    unknown = str(joined).replace(joined.id, "a" * 16)
    for sent, code in ((wrong, "token_wrong"), (unknown, "token_unknown")):
        answer = api.enrol(sent)
        assert (answer.status_code, answer.json()["code"]) == (403, code)
        assert joined.secret not in answer.text
    with api.db.begin() as c:
        c.execute(text("UPDATE join_tokens SET expires = 1"))
    assert api.enrol(str(joined)).json()["code"] == "token_expired"
    with api.db.read() as c:
        assert c.execute(text("SELECT count(*) FROM devices")).scalar_one() == 0
        assert joined.secret not in str(c.execute(text("SELECT * FROM join_tokens")).all())


def test_malformed_requests(api: Any) -> None:
    for body, status in (
        (b"", 400),
        (b"{", 400),
        (b'{"v":2}', 400),
        (b'{"v":1,"token":"a.b"}', 400),
        (b"x" * 70_000, 413),
    ):
        assert api.stranger.post("/api/v1/enrolment", content=body).status_code == status
    bad_key = b'{"v":1,"token":"a.b","csr_pem":"no"}'
    assert api.stranger.post("/api/v1/enrolment", content=bad_key).json()["code"] == "bad_csr"


def test_attempts_are_limited_by_address(api: Any) -> None:
    codes = [api.stranger.post("/api/v1/enrolment", content=b"").status_code for _ in range(41)]
    assert codes == [400] * 40 + [429]
    assert api.stranger.get("/api/v1/enrolment/trust").status_code == 200


def test_making_join_tokens_is_for_operators(api: Any) -> None:
    assert api.client("operator").post("/api/v1/join-tokens", json={}).status_code == 201
    assert api.client("viewer").post("/api/v1/join-tokens", json={}).status_code == 403
    assert api.stranger.post("/api/v1/join-tokens", json={}).status_code == 401
    for body in ({"uses": 0}, {"seconds": 0}, {"tags": ["a b"]}, {"more": 1}):
        assert api.admin.post("/api/v1/join-tokens", json=body).status_code == 400


def test_enrolment_is_in_the_audit_trail_without_secrets(api: Any) -> None:
    joined = parse_token(api.join_token())
    device = api.enrol(str(joined)).json()["device"]
    with api.db.read() as c:
        rows = c.execute(text("SELECT * FROM audit")).all()
    assert [row.action for row in rows] == ["tenants.first_start", "devices.make_join_token", "devices.enrol"]
    assert rows[-1].thing == f"device:{device}"
    assert joined.secret not in str(rows)
