"""What a controller's data directory holds: keys, certificates, ports, the first tokens. Made at the first start.

Invariant: ``prepare`` may run any number of times, also in several processes one after the other: what is there stays.
Ports that were chosen by the system are kept, because devices remember where they enrolled. Starts nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, urlsplit

import msgspec

from controller.builds.sign import builder_key
from controller.database.connection import Database
from controller.devices import rotation
from controller.devices.authority import Authority, Files
from controller.devices.revocation import Write, judge
from controller.errors import ConflictError, InvalidError, UnavailableError
from controller.rollouts.keys import assignment_key, public_text
from controller.settings import Settings
from controller.tenants import tokens
from controller.tenants.access import BUILDER
from controller.tenants.store import tenant_names
from controller.trust import store as trust_store
from controller.trust.keeping import Keeper
from device_profiles import load as load_profiles
from wire.enrolment import TrustBundle, bundle_bytes
from wire.envelope import PrivateKey, PublicKey, decode_public_key, key_id
from wire.errors import WireError

_FIRST_ADMIN: Final = "keys/first-admin-token"
PORT_NAMES: Final = ("api_port", "gateway_port", "console_port", "mqtt_port")


class Ports(msgspec.Struct, frozen=True, kw_only=True):
    """The ports in use, as `ports.json` tells them."""

    api_port: int
    gateway_port: int
    console_port: int
    mqtt_port: int


@dataclass(frozen=True)
class Installation:
    """Everything the roles need to know of this data directory.

    admin_token: the first one, until it was shown (``admin_token_shown``). builder_keys: public, by key id.
    """

    settings: Settings
    data: Path
    ports: Ports
    authority: Authority
    api_files: Files
    gateway_files: Files
    mqtt_files: Files
    client_files: Files
    operator_files: Files
    keeper: Keeper
    assignment_key: PrivateKey
    builder_keys: dict[str, PublicKey]
    session_key: bytes = field(repr=False)
    admin_token: str | None = field(repr=False)

    @property
    def database_path(self) -> Path:
        """Where `state.db` lies."""
        return self.data / "state.db"

    @property
    def broker_directory(self) -> Path:
        """Where the files of our own broker lie."""
        return self.data / "broker"

    @property
    def series_path(self) -> Path:
        """Where `series.db` lies."""
        return self.data / "series.db"

    @property
    def api_url(self) -> str:
        """Where devices and programs reach the API, without a last "/"; devices keep it for good."""
        if not self.settings.api_url:
            return self.local_api_url
        parts = urlsplit(self.settings.api_url)
        if parts.scheme != "https" or not parts.hostname or _port_of(parts) is None or parts.query or parts.fragment:
            raise InvalidError(
                f"api_url {self.settings.api_url!r}: use https://HOST or https://HOST:PORT", "bad_api_url"
            )
        return self.settings.api_url.rstrip("/")

    @property
    def local_api_url(self) -> str:
        """Where this machine reaches its own API, whatever stands in front of it."""
        return f"https://{_bracketed(self.settings.host)}:{self.ports.api_port}"

    @property
    def mqtt_host(self) -> str:
        """The broker's host: our own, or that of ``settings.broker_url``."""
        return self._broker[0]

    @property
    def mqtt_port(self) -> int:
        """The broker's port."""
        return self._broker[1]

    @property
    def _broker(self) -> tuple[str, int]:
        if not self.settings.broker_url:
            return self.settings.host, self.ports.mqtt_port
        parts = urlsplit(self.settings.broker_url)
        port = _port_of(parts)
        if parts.scheme != "mqtts" or not parts.hostname or port is None:
            raise InvalidError(f"broker_url {self.settings.broker_url!r}: use mqtts://HOST:PORT", "bad_broker_url")
        return parts.hostname, port or 8883

    @property
    def gateway_url(self) -> str:
        """Where programs reach the gateway."""
        return f"https://{_bracketed(self.settings.host)}:{self.ports.gateway_port}"

    @property
    def tunnel_url(self) -> str:
        """Where devices open their tunnels."""
        return f"wss://{_bracketed(self.settings.host)}:{self.ports.gateway_port}/tunnel"

    @property
    def console_url(self) -> str:
        """Where a browser on this machine finds the console."""
        return f"http://127.0.0.1:{self.ports.console_port}"

    @property
    def builder_token_file(self) -> Path:
        """Where the builder's API token lies."""
        return self.data / "builder" / "token"

    def admin_token_shown(self) -> None:
        """Forget the first admin token: whoever started the controller has it now."""
        (self.data / _FIRST_ADMIN).unlink(missing_ok=True)


def prepare(settings: Settings, now: float) -> Installation:
    """Make what is missing in the data directory and return all of it.

    Raises UnavailableError or InvalidError with what to do.
    """
    data = settings.data_directory
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        (data / "keys" / "builders").mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UnavailableError(f"data directory {data}: {error}; choose another with --data", "no_data") from error
    rotation.recover(data / "ca")
    authority = Authority(data / "ca", now)
    held = authority.held_list()
    serials = held.serials if held else frozenset[str]()
    if isinstance(verdict := judge(held, serials, authority.list_issuers, now), Write):
        # no broker starts without one; what it has to hold is written before anything is cut (devices/revoking.py)
        authority.write_list(serials, verdict.begins, verdict.ends)
    hosts = [settings.host]
    database = Database(data / "state.db")
    signing = assignment_key(data / "keys")
    keys = {key_id(key): key for key in map(decode_public_key, _builder_keys(data))}
    try:
        database.migrate()
        admin_token = _first_admin(database, data / _FIRST_ADMIN, now)
        _builder_token(database, data / "builder" / "token", now)
        keeper = _keeper(database, data / "keys" / "trust", keys)
        with database.begin() as connection:
            for tenant in tenant_names(connection):
                keeper.found(connection, tenant, now)
            tenants = trust_store.tenants(connection)
        for tenant in tenants:
            keeper.keep(tenant, now)  # a builder's key may have been added
    finally:
        database.close()
    return Installation(
        settings=settings,
        data=data,
        ports=settle_ports(settings, data / "ports.json"),
        authority=authority,
        api_files=authority.server_files("api", hosts, now),
        gateway_files=authority.server_files("gateway", hosts, now),
        mqtt_files=authority.server_files("mqtt", hosts, now),
        client_files=authority.controller_files(now),
        operator_files=authority.operator_files(now),
        keeper=keeper,
        assignment_key=signing,
        builder_keys=keys,
        session_key=_session_key(data / "keys" / "sessions.key"),
        admin_token=admin_token,
    )


def trust_bundle(installation: Installation, root: bytes) -> bytes:
    """Return the bytes of what a device pins (wire 8.2), with its tenant's ``root``."""
    return bundle_bytes(
        TrustBundle(
            ca_pem=installation.authority.root_file.read_text(),
            assignment_keys=[public_text(installation.assignment_key)],
            tuf_root=root,
        )
    )


def settle_ports(settings: Settings, file: Path) -> Ports:
    """Return the ports: as set; where 0, as kept in ``file``; else free ones, kept there from now on."""
    kept: dict[str, int] = {}
    if file.exists():
        try:
            kept = msgspec.json.decode(file.read_bytes(), type=dict[str, int])
        except (OSError, msgspec.MsgspecError) as error:
            raise InvalidError(f"{file}: {error}; remove it to have ports chosen again", "bad_ports") from error
    chosen: dict[str, int] = {}
    for name in PORT_NAMES:
        wanted = getattr(settings, name)
        chosen[name] = wanted or kept.get(name) or _free_port(set(chosen.values()) | set(kept.values()))
    if chosen != {name: kept.get(name) for name in PORT_NAMES}:
        write_private_bytes(file, msgspec.json.encode(chosen), 0o644)
    return Ports(**chosen)


@contextmanager
def only_one(data: Path) -> Iterator[None]:
    """Hold this data directory against a second controller. Raises ConflictError."""
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (data / "lock").open("a") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConflictError(
                f"a controller already runs in {data}: stop it first, or choose another directory with --data",
                "already_running",
            ) from error
        yield


def write_private_bytes(file: Path, content: bytes, mode: int = 0o600) -> None:
    """Write ``file`` in one step, so that a power cut leaves the old content or the new."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    beside = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    with os.fdopen(os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode), "wb") as output:
        output.write(content)
        output.flush()
        os.fsync(output.fileno())
    beside.replace(file)


def _first_admin(database: Database, file: Path, now: float) -> str | None:
    """The first admin token, kept until it was shown: a start that fails after it was made must not lose it."""
    tokens.first_start(database, now, lambda text: write_private_bytes(file, text.encode()))
    with contextlib.suppress(FileNotFoundError):
        return file.read_text()
    return None


def _builder_token(database: Database, file: Path, now: float) -> None:
    if file.exists():
        return
    with database.begin() as connection:
        token = tokens.make(connection, tenant=tokens.DEFAULT_TENANT, name="builder", role=BUILDER, now=now)
        write_private_bytes(file, token.text.encode() + b"\n")  # inside: a token that nobody knows is not kept


def _builder_keys(data: Path) -> list[str]:
    """The public keys of builders: this machine's own, and those that an operator put beside it as NAME.pub."""
    own = builder_key(data).public
    texts = [own]
    for file in sorted((data / "keys" / "builders").glob("*.pub")):
        text = file.read_text().strip()
        try:
            decode_public_key(text)
        except WireError as error:
            raise InvalidError(f"{file}: {error}", "bad_builder_key") from error
        if text not in texts:
            texts.append(text)
    return texts


def _keeper(database: Database, directory: Path, builders: Mapping[str, PublicKey]) -> Keeper:
    profiles = tuple(sorted(load_profiles()))
    return Keeper(database, directory, tuple(builders.values()), profiles)


def _session_key(file: Path) -> bytes:
    with contextlib.suppress(FileNotFoundError):
        return file.read_bytes()
    write_private_bytes(file, secrets.token_bytes(32))
    return file.read_bytes()


def _free_port(taken: set[int]) -> int:
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port not in taken:
            return port


def _port_of(parts: SplitResult) -> int | None:
    """The port, 0 when none is named, None when it is no port."""
    try:
        return parts.port or 0
    except ValueError:
        return None


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
