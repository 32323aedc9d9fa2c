from __future__ import annotations

import json
import ssl
import stat
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import pytest

from controller.commands import client
from controller.commands.client import Api, Gateway, Login, at, raise_for, read_login, write_login
from controller.devices.authority import Authority
from controller.errors import (
    ConflictError,
    ControllerError,
    DeniedError,
    InvalidError,
    NotFoundError,
    TooManyError,
    UnauthenticatedError,
    UnavailableError,
)

LOGIN = Login(api_url="https://127.0.0.1:1", gateway_url="https://127.0.0.1:1", console_url="", ca_file="", token="t")


@pytest.mark.parametrize(
    ("status", "kind", "exit_code"),
    [
        (400, InvalidError, 2),
        (401, UnauthenticatedError, 4),
        (403, DeniedError, 4),
        (404, NotFoundError, 3),
        (409, ConflictError, 5),
        (429, TooManyError, 6),
        (503, UnavailableError, 6),
        (504, UnavailableError, 6),
        (500, ControllerError, 1),
    ],
)
def test_a_refusal_keeps_its_words_and_gives_the_documented_exit_code(
    status: int, kind: type[ControllerError], exit_code: int
) -> None:
    with pytest.raises(kind, match="because of this") as caught:
        raise_for(status, b'{"error": "because of this", "code": "why"}')
    assert (caught.value.code, caught.value.exit_code) == ("why", exit_code)


def test_an_answer_that_is_not_ours_still_ends_in_an_error() -> None:
    with pytest.raises(UnavailableError, match="502"):
        raise_for(502, b"<html>bad gateway</html>")
    raise_for(204, b"")


def test_a_login_is_kept_for_its_owner_alone(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "login.json"
    write_login(file, LOGIN)
    write_login(file, msgspec.structs.replace(LOGIN, token="other"))
    assert read_login(file).token == "other"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_missing_and_a_broken_login_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UnauthenticatedError, match="muster local"):
        read_login(tmp_path / "none.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(InvalidError, match=r"broken\.json"):
        read_login(tmp_path / "broken.json")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Login]:
    """An HTTPS server under a fleet CA that answers with what it was asked, a POST after half a second."""

    class Echo(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"path": self.path, "token": self.headers["Authorization"]}).encode()
            self.answer(b"<html>a proxy" if self.path == "/proxy" else body)

        def do_POST(self) -> None:
            time.sleep(0.5)  # of a model that takes its time
            self.rfile.read(int(self.headers["Content-Length"]))
            self.answer(json.dumps({"path": self.path, "deadline": self.headers["Muster-Deadline-Ms"]}).encode())

        def answer(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    authority = Authority(tmp_path / "ca", time.time())

    files = authority.server_files("api", ["127.0.0.1"], time.time())
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)
    httpd.socket = context.wrap_socket(httpd.socket, server_side=True)
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    url = f"https://127.0.0.1:{httpd.server_address[1]}"
    yield Login(api_url=url, gateway_url=url, console_url="", ca_file=str(authority.root_file), token="secret")
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def test_requests_carry_the_token_and_leave_out_what_was_not_chosen(server: Login) -> None:
    api = Api(server)
    assert api.get("/x", state=None, limit=5) == {"path": "/x?limit=5", "token": "Bearer secret"}
    api.close()


def test_a_server_under_another_authority_is_not_believed(server: Login, tmp_path: Path) -> None:
    other = Authority(tmp_path / "other", time.time())
    with pytest.raises(UnavailableError, match="cannot be reached"):
        Api(msgspec.structs.replace(server, ca_file=str(other.root_file))).get("/x")


def test_nobody_there_is_said_so(server: Login) -> None:
    away = msgspec.structs.replace(server, gateway_url="https://127.0.0.1:1")
    with pytest.raises(UnavailableError, match="is it running"):
        Gateway(away).infer("digits", b"{}")


def test_an_answer_is_awaited_as_long_as_it_is_of_use(server: Login, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "TIMEOUT", 0.2)
    with pytest.raises(UnavailableError):
        Gateway(server).infer("digits", b"{}", deadline_ms=1)
    answer, _ = Gateway(server).infer("a/b c", b"{}", deadline_ms=5000)
    assert answer == {"path": "/v2/models/a%2Fb%20c/infer", "deadline": "5000"}


def test_what_answers_but_is_no_controller_is_told(server: Login) -> None:
    with pytest.raises(UnavailableError, match="is it a controller"):
        Api(server).get("/proxy")


@pytest.mark.parametrize(
    "changes",
    [{"ca_file": "/no/such/file"}, {"api_url": "https://a:b", "gateway_url": "https://a:b"}, {"token": "\u20ac"}],
)
def test_a_login_that_cannot_be_used_is_explained(server: Login, changes: dict[str, str]) -> None:
    for kind in (Api, Gateway):
        with pytest.raises(InvalidError, match="the login's"):
            kind(msgspec.structs.replace(server, **changes))


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_what_is_no_name_goes_into_no_address(name: str) -> None:
    with pytest.raises(InvalidError, match="is not a name"):
        at("/api/v1/tokens/{}", name)
