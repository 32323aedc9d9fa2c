"""A small controller that admits devices over real HTTPS (wire 8)."""

from __future__ import annotations

import hashlib
import json
import ssl
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from wire import codec, enrolment, envelope
from wire.enrolment import EnrolAnswer, EnrolRequest, JoinToken, TrustBundle


class FakeController:
    """What it has heard, and how it behaves badly: ``answers`` by path win over the right answer."""

    def __init__(self, authority: Any, device: str) -> None:
        self.authority = authority
        self.device = device
        public = envelope.encode_public_key(ed25519.Ed25519PrivateKey.generate().public_key())
        self.bundle = enrolment.bundle_bytes(
            TrustBundle(ca_pem=authority.pem, builder_keys=[public], assignment_keys=[public])
        )
        self.token = str(JoinToken("default", "a" * 16, "b" * 32, enrolment.fingerprint(self.bundle)))
        self.answers: dict[str, tuple[int, bytes]] = {}
        self.drip: set[str] = set()
        self.drop_answer = 0
        self.seen: list[str] = []
        self.joined: dict[str, str] = {}
        self.key: ec.EllipticCurvePublicKey | None = None
        self.session_seconds = 600.0
        self.challenged = device
        self.requests: list[EnrolRequest] = []
        certificate, key = authority.issue("controller-api", ("127.0.0.1",))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.reply(b"")

            def do_POST(self) -> None:
                self.reply(self.rfile.read(int(self.headers["Content-Length"])))

            def reply(self, body: bytes) -> None:
                outer.seen.append(self.path)
                status, data = outer.answers.get(self.path) or outer.right(self.path, body)
                if outer.drop_answer and self.path.endswith("/enrolment"):
                    outer.drop_answer -= 1
                    return
                self.send_response(status)
                if self.path in outer.drip:
                    self.end_headers()
                    try:
                        for _ in range(2000):
                            self.wfile.write(b" ")
                            self.wfile.flush()
                            time.sleep(0.02)
                    except OSError:
                        return
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                return

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                return

        self.server = Server(("127.0.0.1", 0), Handler)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.url = f"https://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def right(self, path: str, body: bytes) -> tuple[int, bytes]:
        if path == "/api/v1/enrolment/trust":
            return 200, self.bundle
        if path == "/api/v1/enrolment":
            return self.admit(codec.decode(EnrolRequest, body))
        if path == "/api/v1/device-sessions/challenge":
            asked = {"device": self.challenged, "nonce": "n", "expires": time.time() + 60}
            return 200, json.dumps(asked, indent=1).encode()  # spaces: the device must sign the bytes, not the values
        assert self.key is not None
        keys = {envelope.key_id(self.key): self.key}
        payload = envelope.open_envelope(body, envelope.DEVICE_SESSION, keys)
        token = f"t{len(self.seen)}" if b'{\n "device"' in payload else "re-encoded"
        return 200, json.dumps({"token": token, "expires": time.time() + self.session_seconds}).encode()

    def admit(self, request: EnrolRequest) -> tuple[int, bytes]:
        self.requests.append(request)
        csr = x509.load_pem_x509_csr(request.csr_pem.encode())
        assert csr.is_signature_valid
        key = csr.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        fingerprint = hashlib.sha256(envelope.encode_public_key(key).encode()).hexdigest()
        if request.token != "a" * 16 + "." + "b" * 32:
            return 403, json.dumps({"error": "the secret does not fit", "code": "token_wrong"}).encode()
        if self.joined and fingerprint not in self.joined:
            return 403, json.dumps({"error": "used as often as it may be", "code": "token_used"}).encode()
        self.key = key
        self.joined[fingerprint] = self.device
        answer = EnrolAnswer(
            device=self.device,
            certificate_pem=self.authority.sign(self.device, key),
            chain_pem=self.authority.pem,
            mqtt_host="127.0.0.1",
            mqtt_port=8883,
            api_url=self.url,
            gateway_url="wss://127.0.0.1:7071",
        )
        return 200, codec.encode(answer)

    def refuse(self, status: int, **fields: object) -> None:
        self.answers["/api/v1/enrolment"] = (status, msgspec.json.encode(fields))


@pytest.fixture
def far(authority: Any, device_id: str) -> Iterator[FakeController]:
    controller = FakeController(authority, device_id)
    yield controller
    controller.server.shutdown()
    controller.server.server_close()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"
