"""A signed repository on a real socket that does what a test tells it: honest, behind, mixed up or hostile."""

from __future__ import annotations

import datetime
import hashlib
import threading
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import quote, unquote

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    SuccinctRoles,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization.json import JSONSerializer

TOP = ("root", "timestamp", "snapshot", "targets")
LIFETIMES = {"root": 365, "targets": 90, "snapshot": 7, "timestamp": 1}
Answer = Callable[[BaseHTTPRequestHandler], None]


class SignedRepository:
    """Metadata in ``mds`` may be changed by hand; ``publish`` signs and serves. Times are seconds since 1970.

    served: files by name; answers: what is played in place of a file, by name. asked: names in the order of requests.
    """

    def __init__(self, now: float) -> None:
        self.now = now
        self.signers: dict[str, list[CryptoSigner]] = {}
        self.mds: dict[str, Metadata[Any]] = {}
        self.served: dict[str, bytes] = {}
        self.answers: dict[str, Answer] = {}
        self.asked: list[str] = []
        self.tokens: list[str | None] = []
        self.published: set[str] = set()
        root = Root(expires=self._in("root"), consistent_snapshot=True)
        for role in TOP:
            self.signers[role] = [CryptoSigner.generate_ed25519()]
            root.add_key(self.signers[role][0].public_key, role)
        self.mds["root"] = Metadata(root)
        self.mds["targets"] = Metadata(Targets(expires=self._in("targets")))
        self.mds["snapshot"] = Metadata(Snapshot(expires=self._in("snapshot")))
        self.mds["timestamp"] = Metadata(Timestamp(expires=self._in("timestamp")))
        self.publish("root", "targets", "snapshot", "timestamp")
        self.first_root = self.served["1.root.json"]
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                name = self.path.removeprefix("/repo/metadata/").removeprefix("/repo/targets/")
                outer.asked.append(name)
                outer.tokens.append(self.headers.get("Authorization"))
                if name in outer.answers:
                    self.close_connection = True
                    try:
                        outer.answers[name](self)
                    except OSError:
                        return
                    return
                body = outer.served.get(name, outer.served.get(unquote(name)))
                self.send_response(404 if body is None else 200)
                self.send_header("Content-Length", str(len(body or b"")))
                self.end_headers()
                self.wfile.write(body or b"")

            def log_message(self, *_: object) -> None:
                return

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                return

        self.server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/repo/metadata"
        self.targets_url = f"http://127.0.0.1:{self.server.server_port}/repo/targets"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def _in(self, role: str) -> datetime.datetime:
        moment = datetime.datetime.fromtimestamp(int(self.now), datetime.UTC)
        return moment + datetime.timedelta(days=LIFETIMES.get(role, 30))

    @property
    def root(self) -> Root:
        signed: Root = self.mds["root"].signed
        return signed

    def targets(self, role: str) -> Targets:
        signed: Targets = self.mds[role].signed
        return signed

    # What an honest signer does

    def publish(self, *roles: str, bump: bool = True) -> None:
        """Sign ``roles`` in this order and serve them; a role that was published before gets the next version."""
        for role in roles:
            md = self.mds[role]
            if bump and role in self.published:
                md.signed.version += 1
            if role == "timestamp":
                md.signed.unrecognized_fields.setdefault("issued", int(self.now))
            md.signatures.clear()
            for signer in self.signers[role]:
                md.sign(signer, append=True)
            data = md.to_bytes(JSONSerializer(compact=True))
            self.published.add(role)
            self.serve(role, md.signed.version, data)
            about = MetaFile(md.signed.version, len(data), {"sha256": hashlib.sha256(data).hexdigest()})
            if role == "snapshot":
                self.mds["timestamp"].signed.snapshot_meta = about
            elif role not in TOP[:2]:
                self.mds["snapshot"].signed.meta[f"{role}.json"] = about

    def release(self, *roles: str) -> None:
        """Publish ``roles`` and, on top of them, snapshot and timestamp."""
        self.publish(*roles, "snapshot", "timestamp")

    def serve(self, role: str, version: int, data: bytes) -> None:
        name = quote(role, safe="")
        self.served["timestamp.json" if role == "timestamp" else f"{version}.{name}.json"] = data

    def advance(self, seconds: float) -> None:
        """Let time go by and sign everything anew that is signed online."""
        self.now += seconds
        for role in ("snapshot", "timestamp"):
            self.mds[role].signed.expires = self._in(role)
        self.mds["timestamp"].signed.unrecognized_fields["issued"] = int(self.now)
        self.publish("snapshot", "timestamp")

    def expire(self, role: str, seconds_ago: float = 3600) -> None:
        moment = datetime.datetime.fromtimestamp(int(self.now - seconds_ago), datetime.UTC)
        self.mds[role].signed.expires = moment

    def rotate(self, role: str, keys: int = 1, threshold: int = 1) -> None:
        """Give ``role`` new keys in the root; the root is not published yet."""
        for key in list(self.root.roles[role].keyids):
            self.root.revoke_key(key, role)
        fresh = [CryptoSigner.generate_ed25519() for _ in range(keys)]
        for signer in fresh:
            self.root.add_key(signer.public_key, role)
        self.root.roles[role].threshold = threshold
        self.signers[role] = fresh

    def delegate(
        self, parent: str, name: str, paths: Iterable[str] = ("*",), *, terminating: bool = False, threshold: int = 1
    ) -> None:
        """Add the role ``name`` below ``parent``. Publish both afterwards."""
        above = self.targets(parent)
        if above.delegations is None:
            above.delegations = Delegations({}, roles={})
        assert above.delegations.roles is not None
        above.delegations.roles[name] = DelegatedRole(name, [], threshold, terminating, paths=list(paths))
        if name not in self.signers:
            self.signers[name] = [CryptoSigner.generate_ed25519() for _ in range(threshold)]
            self.mds[name] = Metadata(Targets(expires=self._in(name)))
        for signer in self.signers[name]:
            above.add_key(signer.public_key, name)

    def delegate_bins(self, parent: str, bits: int, prefix: str) -> list[str]:
        """Put 2**bits hash bins below ``parent``; returns their names. Publish them and the parent afterwards."""
        signer = CryptoSigner.generate_ed25519()
        bins = SuccinctRoles([], 1, bits, prefix)
        above = self.targets(parent)
        above.delegations = Delegations({}, succinct_roles=bins)
        above.add_key(signer.public_key)
        names = list(bins.get_roles())
        for name in names:
            self.signers[name] = [signer]
            self.mds[name] = Metadata(Targets(expires=self._in(name)))
        return names

    def add(self, role: str, path: str, data: bytes, custom: dict[str, Any] | None = None) -> TargetFile:
        """Vouch for ``data`` at ``path`` in ``role`` and serve it. Publish the role afterwards."""
        target = TargetFile.from_data(path, data, ["sha256"])
        if custom is not None:
            target.unrecognized_fields["custom"] = custom
        self.targets(role).targets[path] = target
        directory, slash, name = path.rpartition("/")
        self.served[f"{directory}{slash}{target.hashes['sha256']}.{name}"] = data
        return target
