"""Metadata from servers that are slow, broken or hostile: real sockets, real TLS."""

from __future__ import annotations

import gzip
import socket
import ssl
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from agent.trust.metadata_fetcher import Pace
from tests.agent.trust.conftest import PATIENT, QUICK, Device
from tests.agent.trust.signed_repository import SignedRepository

Handler = BaseHTTPRequestHandler


def says(status: int, *headers: tuple[str, str], body: bytes = b"") -> Callable[[Handler], None]:
    def answer(handler: Handler) -> None:
        handler.send_response(status)
        for name, value in (("Content-Length", str(len(body))), *headers):
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def raw(*parts: bytes, pause: float = 0.0, forever: bool = False) -> Callable[[Handler], None]:
    def answer(handler: Handler) -> None:
        while True:
            for part in parts:
                handler.wfile.write(part)
                time.sleep(pause)
            if not forever:
                return

    return answer


def silent(_handler: Handler) -> None:
    time.sleep(30)


def dripping_body(handler: Handler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 460\r\n\r\n")
    raw(b" ", pause=0.02, forever=True)(handler)


def dripping_head(handler: Handler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    raw(b"X-A: b\r\n", pause=0.02, forever=True)(handler)


def dripping_chunks(handler: Handler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    raw(b"0", pause=0.02, forever=True)(handler)


def endless(handler: Handler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
    raw(b" " * 65_536, forever=True)(handler)


def endless_chunks(handler: Handler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    raw(b"10000\r\n" + b" " * 65_536 + b"\r\n", forever=True)(handler)


BOMB = gzip.compress(b" " * 20_000_000)


@pytest.mark.parametrize("name", ["2.root.json", "timestamp.json", "1.snapshot.json"])
@pytest.mark.parametrize(
    ("answer", "codes"),
    [
        (silent, {"too_slow"}),
        (dripping_body, {"too_slow"}),
        (dripping_head, {"too_slow", "unreachable"}),
        (dripping_chunks, {"too_slow", "unreachable"}),
        (endless, {"oversized"}),
        (endless_chunks, {"oversized"}),
        (raw(b"HTTP/1.1 200 OK\r\nContent-Length: 400\r\n\r\n{"), {"unreachable"}),
        (raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"), {"unreachable"}),
        (raw(b""), {"unreachable"}),
        (raw(b"\xff\xfe not http\r\n\r\n"), {"unreachable"}),
        (raw(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n"), {"oversized"}),
        (says(302, ("Location", "http://127.0.0.1:1/timestamp.json")), {"redirected"}),
        (says(301, ("Location", "file:///etc/passwd")), {"redirected"}),
        (says(200, ("Content-Encoding", "gzip"), body=BOMB), {"encoded"}),
        (says(206, body=b"{}"), {"unreachable"}),
        (says(500), {"refused"}),
        (says(503), {"refused"}),
    ],
    ids=["silent", "drip", "drip-head", "drip-chunks", "endless", "endless-chunks", "cut", "cut-chunks", "closed",
         "not-http", "huge", "redirect", "to-file", "bomb", "part", "500", "503"],
)  # fmt: skip
def test_a_bad_answer_ends_soon_and_leaves_the_old_state(
    device: Device, repository: SignedRepository, name: str, answer: Callable[[Handler], None], codes: set[str]
) -> None:
    repository.answers[name] = answer
    begun = time.monotonic()
    failure = device.refuses(pace=QUICK if "too_slow" in codes else PATIENT)
    assert failure.code in codes, failure
    assert time.monotonic() - begun < 8.0
    del repository.answers[name]
    device.accepts()


def test_all_files_together_have_one_deadline(device: Device, repository: SignedRepository) -> None:
    def slow(name: str) -> Callable[[Handler], None]:
        def answer(handler: Handler) -> None:
            time.sleep(0.3)
            body = repository.served.get(name, b"")
            says(200 if body else 404, body=body)(handler)

        return answer

    for name in ("2.root.json", "timestamp.json", "1.snapshot.json", "1.targets.json"):
        repository.answers[name] = slow(name)
    assert device.refuses(pace=Pace(deadline=0.8, window=5.0)).code == "too_slow"
    device.accepts(pace=Pace(deadline=10.0, window=5.0))


def test_the_deadline_ends_a_single_answer_too(device: Device, repository: SignedRepository) -> None:
    repository.answers["timestamp.json"] = silent
    begun = time.monotonic()
    assert device.refuses(pace=Pace(deadline=0.5, window=30.0)).code == "too_slow"
    assert time.monotonic() - begun < 4.0


def test_one_connection_serves_a_whole_refresh(device: Device, repository: SignedRepository) -> None:
    accepted: list[object] = []
    real = repository.server.process_request

    def process(request: Any, address: Any) -> None:
        accepted.append(address)
        real(request, address)

    repository.server.process_request = process  # type: ignore[method-assign]
    device.accepts()
    assert len(accepted) == 1


def test_a_connection_that_was_closed_meanwhile_is_opened_again(device: Device, repository: SignedRepository) -> None:
    def once(handler: Handler) -> None:  # says keep-alive and closes
        body = repository.served["timestamp.json"]
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    repository.answers["timestamp.json"] = once
    device.accepts()


def test_only_the_given_ca_is_believed(
    device: Device, repository: SignedRepository, authority: Any, tmp_path: Path
) -> None:
    certificate, key = authority.issue("repository", ("127.0.0.1",))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    repository.server.socket = context.wrap_socket(repository.server.socket, server_side=True)
    url = repository.url.replace("http:", "https:")
    device.accepts(url=url, ca_file=str(authority.ca_file))
    failure = device.refuses(url=url)
    assert failure.code == "bad_ca", failure
    other = tmp_path / "other.pem"
    other.write_text("nothing")
    assert device.refuses(url=url, ca_file=str(other)).code == "bad_ca"


@pytest.mark.parametrize("url", ["http://192.0.2.1/metadata", "file:///etc", "ftp://127.0.0.1/", "https://", "x", ""])
def test_an_address_that_is_none_is_refused(device: Device, url: str) -> None:
    assert device.refuses(url=url).code == "bad_address"


def test_a_handshake_that_never_ends_is_left(device: Device) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        held: list[object] = []
        threading.Thread(target=lambda: held.append(mute.accept()), daemon=True).start()
        begun = time.monotonic()
        assert device.refuses(url=f"https://127.0.0.1:{mute.getsockname()[1]}", pace=QUICK).code == "too_slow"
        assert time.monotonic() - begun < 8.0
