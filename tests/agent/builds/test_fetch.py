"""Downloads from servers that are slow, broken or hostile: real HTTP and real TLS on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import hashlib
import ipaddress
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from agent.builds.fetch import Fetcher, Patience
from agent.builds.store import Store
from agent.errors import AgentError, ControllerError, DeviceError, TrustError

BODY = random.Random(5).randbytes(300_000)
SHA256 = hashlib.sha256(BODY).hexdigest()
QUICK = Patience(window=0.5, minimum_bytes=1000, attempts=3, backoff=0.01, longest_wait=0.02)
Answer = Callable[[dict[str, str], Callable[[bytes], None]], None]


class Server:
    """Plays one scripted answer per connection; the last one again and again. Keeps the heads of the requests."""

    def __init__(self, *answers: Answer, context: ssl.SSLContext | None = None) -> None:
        self.answers = list(answers)
        self.requests: list[dict[str, str]] = []
        self._context = context
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def url(self, scheme: str = "http") -> str:
        return f"{scheme}://127.0.0.1:{self.port}"

    def close(self) -> None:
        self._socket.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=(self._socket.accept()[0],), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError, IndexError):
            if self._context is not None:
                connection = self._context.wrap_socket(connection, server_side=True)
            head = b""
            while b"\r\n\r\n" not in head:
                head += connection.recv(4096)
            lines = head.decode().split("\r\n")
            request = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:] if line)}
            request["path"] = lines[0].split(" ")[1]
            self.requests.append(request)
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            answer(request, connection.sendall)
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        connection.close()


def good(request: dict[str, str], send: Callable[[bytes], None], body: bytes = BODY, tag: str = '"t"') -> None:
    start = 0
    if "range" in request and request.get("if-range", tag) == tag:
        start = int(request["range"].removeprefix("bytes=").removesuffix("-"))
    status = f"206 Partial Content\r\nContent-Range: bytes {start}-{len(body) - 1}/{len(body)}" if start else "200 OK"
    send(f"HTTP/1.1 {status}\r\nETag: {tag}\r\nContent-Length: {len(body) - start}\r\n\r\n".encode())
    send(body[start:])


def says(status: str, *headers: str, body: bytes = b"") -> Answer:
    head = "\r\n".join((f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers))
    return lambda _request, send: send(f"{head}\r\n\r\n".encode() + body)


def cut_after(size: int) -> Answer:
    def answer(request: dict[str, str], send: Callable[[bytes], None]) -> None:
        start = int(request.get("range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        status = f"206 Partial\r\nContent-Range: bytes {start}-{len(BODY) - 1}/{len(BODY)}" if start else "200 OK"
        send(f'HTTP/1.1 {status}\r\nETag: "t"\r\nContent-Length: {len(BODY) - start}\r\n\r\n'.encode())
        send(BODY[start : start + size])

    return answer


def endless(_request: dict[str, str], send: Callable[[bytes], None]) -> None:
    send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    send(b"%x\r\n%b\r\n" % (len(BODY), BODY))
    while True:
        send(b"10000\r\n" + b"x" * 65536 + b"\r\n")


def dripping(_request: dict[str, str], send: Callable[[bytes], None]) -> None:
    send(f"HTTP/1.1 200 OK\r\nContent-Length: {len(BODY)}\r\n\r\n".encode())
    for byte in BODY:
        send(bytes([byte]))
        time.sleep(0.02)


def silent(_request: dict[str, str], _send: Callable[[bytes], None]) -> None:
    time.sleep(30)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "blobs", 0)


@pytest.fixture
def play(store: Store) -> Iterator[Callable[..., tuple[Server, Fetcher]]]:
    servers: list[Server] = []

    def start(*answers: Answer, patience: Patience = QUICK, **options: Any) -> tuple[Server, Fetcher]:
        server = Server(*answers)
        servers.append(server)
        authorise = options.pop("authorise", lambda: "token")
        return server, Fetcher(store, server.url(), None, authorise, patience=patience, rng=random.Random(1), **options)

    yield start
    for server in servers:
        server.close()


async def fetch(fetcher: Fetcher, seconds: float = 10.0) -> Path:
    async with asyncio.timeout(seconds):
        return await fetcher.fetch(SHA256, len(BODY))


async def test_a_good_server_gives_the_file_and_progress_is_told(store: Store, play: Any) -> None:
    server, fetcher = play(good)
    told: list[tuple[int, int]] = []
    path = await fetcher.fetch(SHA256, len(BODY), lambda done, size: told.append((done, size)))
    assert path == store.path(SHA256)
    assert path.read_bytes() == BODY
    assert told[-1] == (len(BODY), len(BODY))
    assert server.requests[0]["authorization"] == "Bearer token"
    assert server.requests[0]["accept-encoding"] == "identity"
    assert server.requests[0]["path"] == f"/api/v1/artifacts/{SHA256}"
    assert await fetch(fetcher) == path
    assert len(server.requests) == 1
    assert list((path.parents[2] / "parts").iterdir()) == []


async def test_a_broken_transfer_goes_on_where_it_broke(store: Store, play: Any) -> None:
    server, fetcher = play(cut_after(100_000), cut_after(50_000), good)
    assert (await fetch(fetcher)).read_bytes() == BODY
    assert [request.get("range") for request in server.requests] == [None, "bytes=100000-", "bytes=150000-"]
    assert server.requests[1]["if-range"] == '"t"'


async def test_after_a_restart_it_goes_on_from_the_disk(store: Store, play: Any) -> None:
    store.part(SHA256).write_bytes(BODY[:123_456])
    server, fetcher = play(good)
    assert (await fetch(fetcher)).read_bytes() == BODY
    assert server.requests[0]["range"] == "bytes=123456-"


async def test_a_server_that_cannot_resume_or_has_a_new_tag_begins_anew(store: Store, play: Any) -> None:
    server, fetcher = play(cut_after(100_000), lambda request, send: good({}, send))
    assert (await fetch(fetcher)).read_bytes() == BODY
    assert len(server.requests) == 2


async def test_garbage_on_the_disk_costs_one_more_download(store: Store, play: Any) -> None:
    store.part(SHA256).write_bytes(b"\0" * 200_000)
    server, fetcher = play(good)
    assert (await fetch(fetcher)).read_bytes() == BODY
    assert [request.get("range") for request in server.requests] == ["bytes=200000-", None]


async def test_a_part_that_is_too_long_is_thrown_away(store: Store, play: Any) -> None:
    store.part(SHA256).write_bytes(BODY + b"more")
    _, fetcher = play(good)
    assert (await fetch(fetcher)).read_bytes() == BODY


async def test_a_complete_part_needs_no_server(store: Store, play: Any) -> None:
    store.part(SHA256).write_bytes(BODY)
    server, fetcher = play(silent)
    assert (await fetch(fetcher)).read_bytes() == BODY
    assert server.requests == []


async def test_a_wrong_file_is_tried_once_more_and_then_refused(store: Store, play: Any) -> None:
    wrong = bytes(len(BODY))
    server, fetcher = play(lambda request, send: good(request, send, wrong))
    with pytest.raises(TrustError) as caught:
        await fetch(fetcher)
    assert caught.value.code == "wrong_hash"
    assert len(server.requests) == 2
    assert not store.has(SHA256, len(BODY))
    assert not store.part(SHA256).exists()


@pytest.mark.parametrize(
    ("answer", "code", "kind"),
    [
        (says("404 Not Found"), "not_found", ControllerError),
        (says("403 Forbidden"), "refused", ControllerError),
        (says("302 Found", "Location: http://127.0.0.1:1/"), "redirected", ControllerError),
        (says("200 OK", "Content-Encoding: gzip", body=b"x"), "encoded", TrustError),
        (says("200 OK", body=BODY[:-1]), "wrong_length", TrustError),
        (says("200 OK", body=BODY + b"x"), "wrong_length", TrustError),
        (says("206 Partial Content", f"Content-Range: bytes 5-{len(BODY) - 1}/{len(BODY)}", body=BODY[5:]),
         "wrong_length", TrustError),
        (endless, "wrong_length", TrustError),
    ],
    ids=["404", "403", "redirect", "gzip", "short", "long", "other-part", "endless"],
)  # fmt: skip
async def test_answers_that_will_not_get_better_end_it_at_once(
    store: Store, play: Any, answer: Answer, code: str, kind: type[AgentError]
) -> None:
    server, fetcher = play(answer)
    with pytest.raises(kind) as caught:
        await fetch(fetcher)
    assert caught.value.code == code
    assert len(server.requests) == 1
    assert not store.has(SHA256, len(BODY))
    part = store.part(SHA256)
    assert not part.exists() or part.stat().st_size <= len(BODY)


@pytest.mark.parametrize(
    "answer",
    [says("503 Busy"), says("429 Slow"), says("408 Late"), dripping],
    ids=["503", "429", "408", "dripping"],
)
async def test_what_may_get_better_is_tried_again_and_not_for_ever(play: Any, answer: Answer) -> None:
    server, fetcher = play(answer)
    with pytest.raises(ControllerError) as caught:
        await fetch(fetcher)
    assert caught.value.code == "no_progress"
    assert 3 <= len(server.requests) <= 5
    server, fetcher = play(answer, good)
    assert (await fetch(fetcher)).read_bytes() == BODY


@pytest.mark.parametrize(
    "answer",
    [silent, lambda _request, send: send(b"\xff\xfe not http\r\n\r\n"), lambda _request, send: send(b"")],
    ids=["silent", "not-http", "closed"],
)
async def test_who_gives_no_answer_at_all_is_as_good_as_away(play: Any, answer: Answer) -> None:
    server, fetcher = play(answer, patience=Patience(window=0.1, attempts=1, backoff=0.1, longest_wait=0.2))
    with pytest.raises(TimeoutError):
        await fetch(fetcher, 0.6)
    assert 2 <= len(server.requests) <= 8
    server, fetcher = play(answer, good)
    assert (await fetch(fetcher)).read_bytes() == BODY


async def test_a_link_that_wastes_bytes_without_end_is_given_up(play: Any) -> None:
    def waste(_request: dict[str, str], send: Callable[[bytes], None]) -> None:  # never resumes, always breaks
        send(f"HTTP/1.1 200 OK\r\nContent-Length: {len(BODY)}\r\n\r\n".encode() + BODY[:290_000])

    server, fetcher = play(waste, patience=Patience(window=1, attempts=10_000, backoff=0.001, longest_wait=0.001))
    with pytest.raises(ControllerError) as caught:
        await fetch(fetcher)
    assert caught.value.code == "no_progress"
    assert len(server.requests) < 12


async def test_a_token_that_is_refused_is_made_anew_once(play: Any) -> None:
    tokens = ["old", "new", "newer"]
    server, fetcher = play(says("401 Who"), good, authorise=lambda: tokens[0], forget=lambda: tokens.pop(0))
    await fetch(fetcher)
    assert [request["authorization"] for request in server.requests] == ["Bearer old", "Bearer new"]


async def test_a_device_that_is_not_known_any_more_is_told_so(play: Any) -> None:
    async def authorise() -> str:
        return "token"

    server, fetcher = play(says("401 Who"), authorise=authorise)
    with pytest.raises(ControllerError) as caught:
        await fetch(fetcher)
    assert caught.value.code == "unauthorised"
    assert len(server.requests) == 2


async def test_a_controller_that_is_away_is_waited_for_until_the_deadline(store: Store) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    fetcher = Fetcher(store, f"http://127.0.0.1:{port}", None, lambda: "token", patience=QUICK)
    with pytest.raises(TimeoutError):
        await fetch(fetcher, 0.5)


@pytest.mark.parametrize("answer", [silent, dripping, endless], ids=["silent", "dripping", "endless"])
async def test_cancelling_ends_it_within_a_second_and_nobody_writes_on(store: Store, play: Any, answer: Answer) -> None:
    server, fetcher = play(answer, patience=Patience(window=60))
    task = asyncio.create_task(fetcher.fetch(SHA256, len(BODY) * (2 if answer is endless else 1)))
    async with asyncio.timeout(5):
        while not server.requests:
            await asyncio.sleep(0.005)
    begun = time.monotonic()
    task.cancel()
    with pytest.raises((asyncio.CancelledError, AgentError)):
        await task
    assert time.monotonic() - begun < 1.0
    async with asyncio.timeout(5):
        while any(thread.name.startswith("fetch-") for thread in threading.enumerate()):
            await asyncio.sleep(0.005)


async def test_two_that_want_the_same_file_fetch_it_once(play: Any) -> None:
    server, fetcher = play(good)
    paths = await asyncio.gather(*(fetch(fetcher) for _ in range(5)))
    assert len(set(paths)) == 1
    assert len(server.requests) == 1


async def test_a_disk_without_room_refuses_before_the_first_byte(tmp_path: Path) -> None:
    server = Server(good)
    store = Store(tmp_path / "small", 100_000, lambda _path: 350_000)
    with pytest.raises(DeviceError) as caught:
        await fetch(Fetcher(store, server.url(), None, lambda: "token"))
    server.close()
    assert caught.value.code == "disk_full"
    assert server.requests == []


def certificate(directory: Path) -> tuple[Path, ssl.SSLContext]:
    """A CA that is its own server's certificate: enough to be pinned."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "here")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    pem = made.public_bytes(serialization.Encoding.PEM)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (directory / "ca.pem").write_bytes(pem)
    (directory / "both.pem").write_bytes(secret + pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "both.pem")
    return directory / "ca.pem", context


async def test_over_tls_with_the_pinned_ca_and_with_no_other(store: Store, tmp_path: Path) -> None:
    ca, context = certificate(tmp_path)
    (tmp_path / "other").mkdir()
    other, _ = certificate(tmp_path / "other")
    server = Server(cut_after(100_000), good, context=context)
    with pytest.raises(TimeoutError):
        await fetch(Fetcher(store, server.url("https"), other, lambda: "token", patience=QUICK), 0.3)
    assert server.requests == []
    fetcher = Fetcher(store, server.url("https"), other, lambda: "token", patience=QUICK)
    other.write_bytes(ca.read_bytes())  # the fleet CA was replaced while this fetcher lives (wire 8.6)
    assert (await fetch(fetcher)).read_bytes() == BODY
    server.close()


async def test_over_tls_a_silent_server_is_left_within_a_second(store: Store, tmp_path: Path) -> None:
    ca, context = certificate(tmp_path)
    server = Server(silent, context=context)
    task = asyncio.create_task(Fetcher(store, server.url("https"), ca, lambda: "token").fetch(SHA256, len(BODY)))
    async with asyncio.timeout(5):
        while not server.requests:
            await asyncio.sleep(0.005)
    begun = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - begun < 1.0
    server.close()


async def test_a_handshake_that_never_ends_is_left_within_a_second(store: Store, tmp_path: Path) -> None:
    ca, _ = certificate(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        fetcher = Fetcher(store, f"https://127.0.0.1:{mute.getsockname()[1]}", ca, lambda: "token")
        task = asyncio.create_task(fetcher.fetch(SHA256, len(BODY)))
        connection = await asyncio.to_thread(lambda: mute.accept()[0])
        assert await asyncio.to_thread(connection.recv, 1)  # its hello
        begun = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(5):
            while any(thread.name.startswith("fetch-") for thread in threading.enumerate()):
                await asyncio.sleep(0.005)
        assert time.monotonic() - begun < 1.0
        connection.close()


@pytest.mark.parametrize("url", ["http://192.0.2.1:7070", "ftp://127.0.0.1", "https://", "https://h:x", "nonsense"])
def test_an_address_that_is_none_is_refused(store: Store, url: str) -> None:
    with pytest.raises(DeviceError) as caught:
        Fetcher(store, url, None, lambda: "token")
    assert caught.value.code == "bad_address"
