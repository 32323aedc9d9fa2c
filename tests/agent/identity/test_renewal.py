"""Renewing: when, with what, and that the certificate in use is kept until the newer one has proved itself."""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import durable
from agent.errors import DeviceError
from agent.identity import keys, renewal
from agent.identity.certificates import NEXT_FILE, ROOTS_FILE, Certificates
from agent.identity.credentials import Credentials
from agent.identity.enrol import Identity, enrol, load_identity
from agent.identity.renewal import LOOK_AT_MOST, SHARE, SPREAD, Life
from agent.identity.renewing import RENEW_PATH, Renewing

DAY = 86_400.0
LIFE = Life(0.0, 30 * DAY)


@pytest.fixture
def identity(far: Any, data: Path) -> Identity:
    return enrol(data, far.token, far.url, {})


@pytest.fixture
def certificates(identity: Identity) -> Certificates:
    return Certificates(identity.directory, identity.device, identity.key)


def test_it_is_due_after_two_thirds_and_not_for_all_at_once() -> None:
    assert renewal.wait(LIFE, 20 * DAY - 10, 0.0) == pytest.approx(10)
    assert renewal.wait(LIFE, 20 * DAY, 0.0) == 0
    assert renewal.wait(LIFE, 20 * DAY, 0.5) == LOOK_AT_MOST
    assert renewal.wait(LIFE, 23 * DAY, 0.999) == 0
    assert renewal.wait(LIFE, 31 * DAY, 0.0) == 0  # ended while the device was away
    assert renewal.wait(LIFE, -1.0, 0.0) == LOOK_AT_MOST


def test_the_ca_is_asked_about_once_a_day() -> None:
    assert renewal.wait_for_roots(0.0, 0.5) == LOOK_AT_MOST
    assert renewal.wait_for_roots(DAY - 10, 0.5) == pytest.approx(10)
    assert [renewal.wait_for_roots(1.05 * DAY, place) for place in (0.0, 0.999)] == [0, 0]
    assert renewal.wait_for_roots(0.96 * DAY, 0.0) == 0 < renewal.wait_for_roots(0.96 * DAY, 0.999)


async def test_new_roots_are_taken_from_a_server_of_the_old_ones(
    far: Any, identity: Identity, certificates: Certificates, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    newer = type(far.authority)(other)
    far.roots = far.authority.pem + newer.pem
    far.same = keys.read(identity.certificate_file).decode()
    identity.keep_roots()
    told: list[int] = []
    assert not await renewing(identity, certificates, time.time(), told)._renew()
    assert told == []
    assert identity.ca_file.read_text() == far.roots
    far.roots = newer.pem  # the old one is dropped
    assert not await renewing(identity, certificates, time.time(), told)._renew()
    with pytest.raises(Exception, match="not the controller"):
        await renewing(identity, certificates, time.time(), told)._renew()


@given(st.floats(0, 1, exclude_max=True), st.floats(-1e9, 1e9))
def test_a_wait_is_bounded_and_leaves_time_before_the_end(place: float, now: float) -> None:
    pause = renewal.wait(LIFE, now, place)
    assert 0 <= pause <= LOOK_AT_MOST
    if now >= LIFE.ends * (SHARE + SPREAD):
        assert pause == 0


def renewing(identity: Identity, certificates: Certificates, at: float, told: list[int]) -> Renewing:
    return Renewing(
        identity, certificates, Credentials(identity), lambda: told.append(1), random.Random(1), clock=lambda: at
    )


async def until(condition: Any) -> None:
    async with asyncio.timeout(15):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_due_certificate_is_renewed_once(far: Any, identity: Identity, certificates: Certificates) -> None:
    told: list[int] = []
    before = certificates.life()
    task = asyncio.create_task(renewing(identity, certificates, time.time() + 25 * DAY, told).run())
    try:
        await until(lambda: told)
        await asyncio.sleep(0.2)
    finally:
        task.cancel()
    assert far.seen.count(RENEW_PATH) == 1
    assert certificates.life().ends > before.ends
    assert certificates.for_connection() == identity.directory / NEXT_FILE
    first = keys.read(identity.certificate_file)
    certificates.worked(certificates.for_connection())
    assert keys.read(identity.certificate_file) != first
    assert certificates.for_connection() == identity.certificate_file
    assert not (identity.directory / NEXT_FILE).exists()
    again = load_identity(identity.directory.parent)
    assert again is not None
    assert again.device == identity.device


async def test_nothing_is_asked_before_it_is_due(far: Any, identity: Identity, certificates: Certificates) -> None:
    work = renewing(identity, certificates, time.time(), [])
    task = asyncio.create_task(work.run())
    try:
        for _ in range(3):
            work.look_again()
            await asyncio.sleep(0.05)
    finally:
        task.cancel()
    assert RENEW_PATH not in far.seen


async def test_a_refusal_changes_nothing_and_is_tried_again(
    far: Any, identity: Identity, certificates: Certificates
) -> None:
    far.answers[RENEW_PATH] = (403, b'{"error": "this device was revoked", "code": "device_revoked"}')
    told: list[int] = []
    work = renewing(identity, certificates, time.time() + 25 * DAY, told)
    task = asyncio.create_task(work.run())
    try:
        await until(lambda: RENEW_PATH in far.seen)
        await asyncio.sleep(0.1)
        assert far.seen.count(RENEW_PATH) == 1  # not at once
        del far.answers[RENEW_PATH]
        work.look_again()
        await until(lambda: told)
    finally:
        task.cancel()
    assert certificates.for_connection() == identity.directory / NEXT_FILE


@pytest.mark.parametrize("answer", [b"", b"{}", b'{"v":1,"certificate_pem":"x","chain_pem":"","roots_pem":""}'])
async def test_a_useless_answer_is_not_kept(
    far: Any, identity: Identity, certificates: Certificates, answer: bytes
) -> None:
    far.answers[RENEW_PATH] = (200, answer)
    work = renewing(identity, certificates, time.time() + 25 * DAY, [])
    with pytest.raises(Exception, match="cannot be used"):
        await work._renew()
    assert sorted(path.name for path in identity.directory.iterdir()) == [
        "ca.pem", "certificate.pem", "identity.json", "key.pem", "trust.json",
    ]  # fmt: skip


async def test_a_certificate_for_another_is_refused_and_one_that_is_held_is_left(
    far: Any, identity: Identity, certificates: Certificates, authority: Any
) -> None:
    work = renewing(identity, certificates, time.time() + 25 * DAY, [])
    life = (time.time() - DAY, time.time() + 60 * DAY)
    other_name = authority.sign("d-" + "a" * 26, identity.key.public_key(), life=life)
    other_key = authority.sign(identity.device, keys.make_or_load_key(identity.directory / "x").public_key(), life=life)
    for pem in (other_name, other_key):
        with pytest.raises(DeviceError):
            certificates.put(pem, "")
    held = keys.read(identity.certificate_file).decode()
    assert not certificates.put(held, "")
    assert certificates.for_connection() == identity.certificate_file
    far.same = held
    assert not await work._renew()
    task = asyncio.create_task(work.run())  # it asks, is told that there is nothing newer, and waits
    try:
        await until(lambda: far.seen.count(RENEW_PATH) == 2)
        await asyncio.sleep(0.2)
    finally:
        task.cancel()
    assert far.seen.count(RENEW_PATH) == 2
    assert certificates.for_connection() == identity.certificate_file


def test_a_newer_one_that_is_refused_is_tried_in_turn(identity: Identity, certificates: Certificates, far: Any) -> None:
    far.authority.sign(identity.device, identity.key.public_key())
    pem = far.authority.sign(identity.device, identity.key.public_key(), life=far.renewed)
    certificates.put(pem, "")
    newer = identity.directory / NEXT_FILE
    tried = []
    for _ in range(4):
        tried.append(certificates.for_connection())
        certificates.failed(tried[-1])
    assert tried == [newer, identity.certificate_file, newer, identity.certificate_file]
    certificates.worked(identity.certificate_file)  # the old one is still taken: the newer one keeps its chance
    assert certificates.for_connection() == newer


def test_a_cut_at_any_point_leaves_a_whole_certificate(far: Any, data: Path) -> None:
    pem = None
    for number in range(100):
        identity = enrol(data / str(number), far.token, far.url, {})
        far.joined.clear()
        held = Certificates(identity.directory, identity.device, identity.key)
        pem = far.authority.sign(identity.device, identity.key.public_key(), life=far.renewed)
        left = number

        def cut(_: str) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt

        durable.set_hook(cut)
        try:
            held.put(pem, "")
            held.worked(held.for_connection())
            whole = True
        except KeyboardInterrupt:
            whole = False
        finally:
            durable.set_hook(None)
        after = load_identity(data / str(number))
        assert after is not None
        again = Certificates(after.directory, after.device, after.key)
        keys.check_certificate(keys.read(again.for_connection()), after.key, after.device)
        if whole:
            break
    assert whole
    assert number > 4


def test_roots_are_replaced_only_by_certificates_of_authorities(
    identity: Identity, certificates: Certificates, authority: Any
) -> None:
    assert identity.ca_file.name == "ca.pem"
    identity.keep_roots()
    assert identity.ca_file.name == ROOTS_FILE
    for text in ("", "nonsense", authority.sign("server", identity.key.public_key()), authority.pem * 5):
        with pytest.raises(DeviceError):
            certificates.put_roots(text)
    assert not certificates.put_roots(authority.pem)
    assert certificates.put_roots(authority.pem + authority.pem)
    assert identity.ca_file.read_text() == authority.pem + authority.pem
    loaded = load_identity(identity.directory.parent)
    assert loaded is not None
    assert loaded.ca_file == identity.ca_file
