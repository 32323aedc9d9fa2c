"""The far side: a small certificate authority, a real mosquitto as the contract wants it (wire 3), and a controller
that admits devices over real HTTPS (wire 8)."""

from __future__ import annotations

import base64
import datetime
import hashlib
import ipaddress
import json
import os
import secrets
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID

from wire import codec, enrolment, envelope
from wire.enrolment import EnrolAnswer, EnrolRequest, JoinToken, RenewAnswer, TrustBundle

NOW = datetime.datetime.now(datetime.UTC)


def new_device_id() -> str:
    return "d-" + base64.b32encode(secrets.token_bytes(16)).decode().rstrip("=").lower()


def name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


class Authority:
    """Issues certificates for servers on this machine and for devices."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = (
            self._builder("test fleet", self.key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self.key, hashes.SHA256())
        )
        self.pem = self.certificate.public_bytes(serialization.Encoding.PEM).decode()
        self.ca_file = directory / "ca.pem"
        self.ca_file.write_text(self.pem)

    def _builder(
        self, subject: str, key: ec.EllipticCurvePublicKey, life: tuple[float, float] | None = None
    ) -> x509.CertificateBuilder:
        begins, ends = NOW - datetime.timedelta(days=1), NOW + datetime.timedelta(days=30)
        if life is not None:
            begins, ends = (datetime.datetime.fromtimestamp(at, datetime.UTC) for at in life)
        return (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name("test fleet"))
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(begins)
            .not_valid_after(ends)
        )

    def sign(
        self,
        subject: str,
        key: ec.EllipticCurvePublicKey,
        hosts: tuple[str, ...] = (),
        life: tuple[float, float] | None = None,
    ) -> str:
        names = [x509.IPAddress(ipaddress.ip_address(h)) if h[0].isdigit() else x509.DNSName(h) for h in hosts]
        builder = self._builder(subject, key, life)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()

    def issue(self, subject: str, hosts: tuple[str, ...] = ()) -> tuple[Path, Path]:
        """Return the files of a new certificate and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        stem = self.directory / f"{subject}-{secrets.token_hex(4)}"
        certificate_file, key_file = stem.with_suffix(".crt"), stem.with_suffix(".key")
        certificate_file.write_text(self.sign(subject, key.public_key(), hosts))
        key_file.write_bytes(pem(key))
        return certificate_file, key_file


class Mosquitto:
    """One broker on one port, that can be killed and started again with what it had on disk."""

    def __init__(self, authority: Authority, directory: Path) -> None:
        self.authority = authority
        self.directory = directory
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        certificate, key = authority.issue("broker", ("127.0.0.1", "localhost"))
        (directory / "acl").write_text(
            "pattern write muster/1/+/%u/up/#\npattern read muster/1/+/%u/down/#\n"
            "user controller\ntopic readwrite muster/1/#\n"
        )
        (directory / "mosquitto.conf").write_text(
            f"listener {self.port} 127.0.0.1\nuser root\ncafile {authority.ca_file}\ncertfile {certificate}\n"
            f"keyfile {key}\nrequire_certificate true\nuse_identity_as_username true\nallow_anonymous false\n"
            f"acl_file {directory / 'acl'}\npersistence true\npersistence_location {directory}/\n"
            "autosave_on_changes true\nautosave_interval 1\nlog_dest none\n"
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            [os.environ.get("MUSTER_MOSQUITTO") or "/usr/sbin/mosquitto", "-c", str(self.directory / "mosquitto.conf")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            assert self.process.poll() is None, "mosquitto ended"
            time.sleep(0.01)
        raise AssertionError("mosquitto does not listen")

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def broker(authority: Authority, tmp_path: Path) -> Iterator[Mosquitto]:
    directory = tmp_path / "broker"
    directory.mkdir()
    mosquitto = Mosquitto(authority, directory)
    mosquitto.start()
    yield mosquitto
    mosquitto.kill()


@pytest.fixture
def device_id() -> str:
    return new_device_id()


class FakeController:
    """What it has heard, and how it behaves badly: ``answers`` by path win over the right answer."""

    def __init__(self, authority: Any, device: str) -> None:
        self.authority = authority
        self.device = device
        self.signing_key = ed25519.Ed25519PrivateKey.generate()
        self.mqtt_port = 8883
        public = envelope.encode_public_key(self.signing_key.public_key())
        self.bundle = enrolment.bundle_bytes(
            TrustBundle(ca_pem=authority.pem, assignment_keys=[public], tuf_root=b"{}")
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
        self.roots = authority.pem
        self.same = ""  # the certificate that a renewal gives, "" for a new one
        self.renewed = (time.time() - 86_400, time.time() + 60 * 86_400)
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
                self.path = self.path.partition("?")[0]
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
        if path == "/api/v1/device-certificates":
            begins, ends = self.renewed
            answer = RenewAnswer(
                certificate_pem=self.same or self.authority.sign(self.device, self.key, life=(begins, ends)),
                chain_pem=self.authority.pem,
                roots_pem=self.roots,
            )
            return 200, codec.encode(answer)
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
            mqtt_port=self.mqtt_port,
            api_url=self.url,
            gateway_url="wss://127.0.0.1:1/tunnel",
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
