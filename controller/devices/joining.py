"""Carries out what `enrolment.py` and `renewal.py` decide: tokens are made, devices admitted, certificates renewed.

Invariant: device, spent use, certificate and audit row are one transaction, committed before the answer leaves; an
answer that gets lost is asked for again (wire 8.4).
"""

from __future__ import annotations

import hashlib
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection

from controller.audit.store import record
from controller.database.connection import Database
from controller.devices import enrolment, renewal, store
from controller.devices.authority import DEVICES, read_request
from controller.devices.enrolment import Admit, Refuse, Token
from controller.devices.fleet import Fleet
from controller.devices.renewal import Newest
from controller.errors import DeniedError
from controller.tenants.access import Principal
from controller.tenants.tokens import base32
from wire.enrolment import EnrolAnswer, EnrolRequest, JoinToken, RenewAnswer, fingerprint
from wire.envelope import decode_public_key, encode_public_key

_PLAIN: Final = frozenset(string.ascii_letters + string.digits + "._-")


@dataclass(frozen=True, slots=True)
class NewJoinToken:
    """A join token at its birth; ``text`` (with its secret) is shown once and never stored."""

    id: str
    text: str
    expires: float

    def __repr__(self) -> str:  # a secret must not end up in a log
        return f"NewJoinToken(id={self.id!r})"


def make_join_token(
    connection: Connection,
    fleet: Fleet,
    principal: Principal,
    *,
    uses: int,
    seconds: float,
    tags: Sequence[str],
    now: float,
) -> NewJoinToken:
    """Store a new join token of the principal's tenant, for ``uses`` devices within ``seconds``."""
    secret = base32(20)
    token = JoinToken(
        tenant=principal.tenant,
        id=base32(10),
        secret=secret,
        fingerprint=fingerprint(fleet.trust_bundle(principal.tenant)),
    )
    expires = now + seconds
    digest = hashlib.sha256(secret.encode()).hexdigest()
    store.add_join_token(connection, Token(token.id, token.tenant, digest, uses, expires, tuple(tags)), now)
    record(
        connection,
        tenant=principal.tenant,
        actor=principal.actor,
        action="devices.make_join_token",
        thing=f"join-token:{token.id}",
        at=now,
        body={"uses": uses, "expires": expires, "tags": list(tags)},
    )
    return NewJoinToken(token.id, str(token), expires)


def enrol(database: Database, fleet: Fleet, request: EnrolRequest, now: float) -> EnrolAnswer:
    """Admit the device behind ``request``, or answer it again.

    Raises InvalidError (the signing request is wrong) or DeniedError with the code of the refusal.
    """
    key = read_request(request.csr_pem)
    public_key = encode_public_key(key)
    token_id, secret = enrolment.split(request.token)
    with database.begin() as connection:
        token = store.find_join_token(connection, token_id)
        known = store.find_known(connection, token_id, public_key)
        decision = enrolment.decide(token, secret, known, now)
        if isinstance(decision, Refuse):
            raise DeniedError(decision.reason, decision.code)
        if isinstance(decision, Admit):
            device = fleet.authority.new_device_name()
            store.add_device(
                connection,
                device=device,
                tenant=decision.tenant,
                name=_name(request.name, device),
                tags=decision.tags,
                public_key=public_key,
                join_token=token_id,
                now=now,
            )
        else:
            device = decision.device
        again = renewal.decide(_newest(connection, fleet, device), revoked=False, now=now)
        if isinstance(again, renewal.Again):  # a lost answer is given again; an eager device makes no heap
            pem = again.pem
        else:
            certificate = fleet.authority.issue_device(device, decision.tenant, key, now)
            pem = certificate.pem
            store.forget_certificates(connection, device, now - renewal.GRACE)
            store.add_certificate(connection, device, certificate)
            record(
                connection,
                tenant=decision.tenant,
                actor=f"device:{device}",
                action="devices.enrol" if isinstance(decision, Admit) else "devices.enrol_again",
                thing=f"device:{device}",
                at=now,
                body={"join_token": token_id, "serial": certificate.serial},
            )
    return EnrolAnswer(
        device=device,
        certificate_pem=pem,
        chain_pem=fleet.authority.chain_pem(DEVICES),
        mqtt_host=fleet.mqtt_host,
        mqtt_port=fleet.mqtt_port,
        api_url=fleet.api_url,
        gateway_url=fleet.gateway_url,
    )


def renew(database: Database, fleet: Fleet, device: str, now: float) -> RenewAnswer:
    """Return the newest certificate of ``device``, which has proved its key. Raises DeniedError with a code."""
    authority = fleet.authority
    with database.begin() as connection:
        found = store.active_key(connection, device)
        decision = renewal.decide(_newest(connection, fleet, device), found is None, now)
        if isinstance(decision, renewal.Refuse):
            raise DeniedError(decision.reason, decision.code)
        if isinstance(decision, renewal.Again):
            pem = decision.pem
        else:
            assert found is not None, "a device that is not active is refused"
            tenant, _, public_key = found
            certificate = authority.issue_device(device, tenant, decode_public_key(public_key), now)
            pem = certificate.pem
            store.forget_certificates(connection, device, now - renewal.GRACE)
            store.add_certificate(connection, device, certificate)
            record(
                connection,
                tenant=tenant,
                actor=f"device:{device}",
                action="devices.renew",
                thing=f"device:{device}",
                at=now,
                body={"serial": certificate.serial},
            )
    return RenewAnswer(certificate_pem=pem, chain_pem=authority.chain_pem(DEVICES), roots_pem=authority.roots_pem)


def _newest(connection: Connection, fleet: Fleet, device: str) -> Newest | None:
    held = store.newest_certificate(connection, device)
    return None if held is None else Newest(*held, of_this_issuer=fleet.authority.issued_by_us(held[0]))


def _name(wanted: str, device: str) -> str:
    plain = "".join(letter for letter in wanted if letter in _PLAIN)[:63]
    return plain or f"device-{device[2:8]}"
