from __future__ import annotations

import datetime
import socket
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from agent import durable
from agent.errors import AgentError, ControllerError, DeviceError, TrustError, UnreachableError, UsageError
from agent.identity import exchange
from agent.identity.enrol import Identity, enrol, load_identity
from wire import codec, enrolment
from wire.enrolment import JoinToken, TrustBundle


def join(far: Any, data: Path, token: str | None = None) -> Identity:
    return enrol(data, token or far.token, far.url, {"arch": "x86_64"}, "bench")


def test_joins_and_keeps_what_it_was_given(far: Any, data: Path, device_id: str) -> None:
    assert load_identity(data) is None
    identity = join(far, data)
    assert identity.device == device_id
    assert (identity.directory / "trust.json").read_bytes() == far.bundle
    assert identity.ca_file.read_text() == far.authority.pem
    assert far.requests[0].facts == {"arch": "x86_64"}
    assert far.requests[0].name == "bench"
    loaded = load_identity(data)
    assert loaded is not None
    assert (loaded.device, loaded.api_url, loaded.mqtt_port) == (device_id, far.url, 8883)
    assert loaded.key.private_numbers() == identity.key.private_numbers()
    assert "b" * 32 not in repr(identity) + "".join(p.read_text() for p in identity.directory.iterdir())


def test_a_second_run_asks_nobody(far: Any, data: Path) -> None:
    first = join(far, data)
    heard = len(far.seen)
    assert join(far, data).device == first.device
    assert len(far.seen) == heard


def test_an_identity_is_not_given_up_for_another_controller(far: Any, data: Path) -> None:
    join(far, data)
    for token in (JoinToken("default", "a" * 16, "b" * 32, "c" * 52), JoinToken("other", *parts(far.token))):
        with pytest.raises(UsageError) as info:
            join(far, data, str(token))
        assert info.value.code == "other_controller"


def parts(token: str) -> tuple[str, str, str]:
    parsed = enrolment.parse_token(token)
    return parsed.id, parsed.secret, parsed.fingerprint


def test_a_lost_answer_costs_nothing(far: Any, data: Path, device_id: str) -> None:
    far.drop_answer = 1
    with pytest.raises(UnreachableError):
        join(far, data)
    assert load_identity(data) is None
    assert join(far, data).device == device_id
    assert len(far.joined) == 1


def test_a_cut_at_any_point_leads_to_the_same_device(far: Any, data: Path, device_id: str) -> None:
    points: list[str] = []
    durable.set_hook(points.append)
    try:
        join(far, data.with_name("whole"))
        far.joined.clear()
        for number in range(len(points)):
            directory = data / str(number)
            left = number

            def cut(_: str) -> None:
                nonlocal left
                left -= 1
                if left < 0:
                    raise durable.PowerCut

            durable.set_hook(cut)
            with pytest.raises(durable.PowerCut):
                join(far, directory)
            durable.set_hook(None)
            far.joined = dict.fromkeys(list(far.joined)[:1], device_id) if far.joined else {}
            assert join(far, directory).device == device_id
            assert len(far.joined) == 1  # one key, so one device
            far.joined.clear()
    finally:
        durable.set_hook(None)
    assert len(points) > 15


def test_a_controller_with_another_fingerprint_learns_nothing(far: Any, data: Path) -> None:
    token = str(JoinToken("default", "a" * 16, "b" * 32, "c" * 52))
    with pytest.raises(TrustError) as info:
        join(far, data, token)
    assert info.value.code == "wrong_fingerprint"
    assert far.requests == []
    assert not (data / "identity" / "trust.json").exists()


def test_a_server_outside_the_pinned_ca_gets_no_token(far: Any, data: Path, authority: Any, tmp_path: Path) -> None:
    """Someone in the middle can pass the public bundle on, and gets no further."""
    other = tmp_path / "other"
    other.mkdir()
    foreign = type(authority)(other)
    bundle = codec.decode(TrustBundle, far.bundle)
    raw = codec.encode(codec.msgspec.structs.replace(bundle, ca_pem=foreign.pem))
    far.answers["/api/v1/enrolment/trust"] = (200, raw)
    with pytest.raises(ControllerError) as info:
        join(far, data, str(JoinToken("default", "a" * 16, "b" * 32, enrolment.fingerprint(raw))))
    assert info.value.code == "wrong_controller"
    assert far.requests == []


def test_a_clock_that_is_behind_is_named_and_waited_for(
    far: Any, data: Path, authority: Any, device_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    issuing = sys.modules[type(authority).__module__]
    monkeypatch.setattr(issuing, "NOW", issuing.NOW + datetime.timedelta(days=2))  # type: ignore[attr-defined]
    later = type(far)(type(authority)(tmp_path), device_id)
    try:
        with pytest.raises(UnreachableError, match="clock") as info:  # `muster-agent run` tries these again
            join(later, data)
    finally:
        later.server.shutdown()
        later.server.server_close()
    assert info.value.code == "clock"
    assert later.requests == []


def test_a_certificate_for_another_host_is_not_believed(far: Any, data: Path) -> None:
    url = far.url.replace("127.0.0.1", "localhost")  # the certificate names the number only
    with pytest.raises((ControllerError, UnreachableError)) as info:
        enrol(data, far.token, url, {})
    assert info.value.code in {"wrong_controller", "unreachable"}
    assert far.requests == []


@pytest.mark.parametrize("code", ["token_expired", "token_used", "token_unknown"])
def test_a_refusal_keeps_the_controllers_words(far: Any, data: Path, code: str) -> None:
    far.refuse(403, error="the join token is no longer good", code=code)
    with pytest.raises(ControllerError, match="no longer good") as info:
        join(far, data)
    assert info.value.code == code
    assert info.value.exit_code == 4


def test_a_wrong_secret_is_refused_and_never_repeated(far: Any, data: Path) -> None:
    tenant, identifier, fingerprint = "default", "a" * 16, parts(far.token)[2]
    with pytest.raises(ControllerError) as info:
        join(far, data, str(JoinToken(tenant, identifier, "z" * 32, fingerprint)))
    assert info.value.code == "token_wrong"
    assert "z" * 32 not in str(info.value)


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (200, b"garbage", ControllerError),
        (200, b'{"v":2}', ControllerError),
        (200, b" " * 70_000, UnreachableError),
        (500, b"<html>", UnreachableError),
        (429, b'{"detail": "slow down"}', UnreachableError),
        (404, b"[" * 5000, ControllerError),
        (302, b"", ControllerError),
    ],
)
def test_garbage_is_an_error_with_words(far: Any, data: Path, status: int, body: bytes, kind: type) -> None:
    far.answers["/api/v1/enrolment"] = (status, body)
    with pytest.raises(AgentError) as info:
        join(far, data)
    assert type(info.value) is kind
    assert load_identity(data) is None


def test_a_certificate_that_does_not_fit_is_not_kept(far: Any, data: Path, device_id: str) -> None:
    far.device = "d-" + "b" * 26
    right = far.admit

    def wrong(request: Any) -> tuple[int, bytes]:
        status, body = right(request)
        return status, body.replace(far.device.encode(), device_id.encode())

    far.admit = wrong
    with pytest.raises(DeviceError) as info:
        join(far, data)
    assert info.value.code == "bad_certificate"
    assert load_identity(data) is None


def test_a_slow_drip_ends_in_time(far: Any) -> None:
    far.drip.add("/api/v1/enrolment/trust")
    began = time.monotonic()
    with pytest.raises(UnreachableError):
        exchange.exchange(
            exchange.parse_url(far.url), exchange.unverified(), "GET", "/api/v1/enrolment/trust", timeout=0.3
        )
    assert time.monotonic() - began < 5


def test_a_server_that_says_nothing_ends_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"https://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(UnreachableError):
            exchange.exchange(exchange.parse_url(url), exchange.unverified(), "GET", "/", timeout=0.2)


def test_nobody_there(data: Path, far: Any) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"https://127.0.0.1:{probe.getsockname()[1]}"
        with pytest.raises(UnreachableError, match="is the controller running there") as info:
            enrol(data, far.token, url, {})
    assert info.value.exit_code == 6


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "127.0.0.1:7070", "https://", "https://h:99999", "https://u@h/"])
def test_addresses(data: Path, far: Any, url: str) -> None:
    with pytest.raises(UsageError) as info:
        enrol(data, far.token, url, {})
    assert info.value.exit_code == 2


def test_what_is_not_a_token_is_not_repeated(data: Path, far: Any) -> None:
    with pytest.raises(UsageError) as info:
        enrol(data, "muster-join-1.secret", far.url, {})
    assert "secret\n" not in str(info.value)
    assert not data.exists()


@pytest.mark.parametrize("name", ["identity.json", "trust.json", "ca.pem", "certificate.pem", "key.pem"])
@pytest.mark.parametrize("damage", [None, b"", b"{}", b"garbage"])
def test_a_broken_identity_is_an_error_and_never_made_anew(
    far: Any, data: Path, name: str, damage: bytes | None
) -> None:
    join(far, data)
    path = data / "identity" / name
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage)
    heard = len(far.seen)
    if name == "identity.json" and damage is None:  # the mark that enrolment was complete: the same token leads back
        assert load_identity(data) is None
        assert join(far, data).device == far.device
        return
    with pytest.raises(DeviceError):
        load_identity(data)
    with pytest.raises(DeviceError):
        join(far, data)
    assert len(far.seen) == heard


def test_facts_that_are_too_large_do_not_stop_the_joining(far: Any, data: Path) -> None:
    enrol(data, far.token, far.url, {"dump": "x" * 100_000})
    assert far.requests[0].facts == {}
