"""What mosquitto is told: its configuration and its access rules, as text.

Invariant: nobody without a certificate of the fleet gets in, a client's name is its certificate's common name, and a
device writes and reads below its own name only (wire 3.4). A second listener, on loopback and for a root of its own,
is where the controller cuts connections: whoever comes there chooses the client id, and so takes over a session. All
settings are global: per-listener settings are not used, because mosquitto has crashed on reloading them. What differs
between 2.0 and 2.1 is decided here; 2.1 was written from its documentation and not run. Writes no file
(`mosquitto.py`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from controller.errors import InvalidError, UnavailableError
from wire.topics import CHANNELS, ROOT, Direction, subscription

_OVERHEAD: Final = 4_096  # topic, headers and room to grow
MAX_PACKET: Final = max(channel.limit for channel in CHANNELS) + _OVERHEAD
_MAX_QUEUED: Final = 10_000  # messages kept for a client that is away; what is dropped is sent again (wire 4.2)
_MAX_QUEUED_BYTES: Final = 64 * 1024**2
_TLS: Final = (
    "tls_version tlsv1.2",  # at least
    "require_certificate true",
    "use_identity_as_username true",
)


Version = tuple[int, int]
OLDEST: Final[Version] = (2, 0)
_SPEAKS = re.compile(r"version (\d+)\.(\d+)")


@dataclass(frozen=True, slots=True)
class Listener:
    """Where mosquitto listens and whom it believes. ``roots``: the CAs of its clients, root and issuers in one file.

    revoked: the file with a list of revoked certificates of each issuer of clients, loaded again at SIGHUP.
    operator_root: the CA of those who may cut connections, through the loopback port ``operator_port``.
    """

    host: str
    port: int
    certificate: Path
    key: Path
    roots: Path
    revoked: Path
    operator_root: Path
    operator_port: int = 0


def read_version(text: str) -> Version:
    """Return the version in what `mosquitto -h` says. Raises UnavailableError for an unknown or too old one."""
    found = _SPEAKS.search(text)
    version = (int(found[1]), int(found[2])) if found else (0, 0)
    if version < OLDEST:
        raise UnavailableError(
            f"mosquitto 2.0 or newer is needed; this one says {text.strip()[:100]!r}", "broker_too_old"
        )
    return version


def configuration(listener: Listener, rules: Path, state: Path, *, as_root: bool, version: Version = OLDEST) -> str:
    """Return mosquitto.conf; ``state`` is a directory, ``rules`` the file of ``access_rules``."""
    lines = [
        "# Written by Muster at each start: changes are lost.",
        *(["user root"] if as_root else []),  # it would drop to a user that cannot read these files
        f"listener {listener.port} {listener.host}",
        f"cafile {listener.roots}",
        f"certfile {listener.certificate}",
        f"keyfile {listener.key}",
        f"crlfile {listener.revoked}",
        *_TLS,
        "use_username_as_clientid true",
        f"listener {listener.operator_port} 127.0.0.1",
        f"cafile {listener.operator_root}",
        f"certfile {listener.certificate}",
        f"keyfile {listener.key}",
        *_TLS,
        "allow_anonymous false",
        "allow_zero_length_clientid false",
        f"acl_file {rules}",
        "persistence true",
        f"persistence_location {state}/",
        # With the defaults a killed broker comes back with an old retained assignment.
        "autosave_on_changes true",
        "autosave_interval 1",
        "persistent_client_expiration 2m",
        f"max_packet_size {MAX_PACKET}",
        *([f"message_size_limit {MAX_PACKET}"] if version < (2, 1) else []),  # deprecated since: a packet has the limit
        "max_inflight_messages 20",
        f"max_queued_messages {_MAX_QUEUED}",
        f"max_queued_bytes {_MAX_QUEUED_BYTES}",
        "set_tcp_nodelay true",
        "log_dest stderr",
        "log_type error",
        "log_type warning",
        "log_type notice",
        "log_timestamp false",
    ]
    return _text(lines)


def access_rules(controllers: Sequence[str]) -> str:
    """Return the access rules; ``controllers`` are the names in the controller's own certificates."""
    lines = ["# Written by Muster at each start: changes are lost."]
    for name in controllers:
        lines += [
            f"user {name}",
            f"topic read {subscription(Direction.UP)}",
            f"topic write {subscription(Direction.DOWN)}",
        ]
    # "%u" is the name in the certificate. The shard cannot be checked here: the controller does (broker/session.py).
    lines += [f"pattern write {ROOT}/+/%u/{Direction.UP.value}/#", f"pattern read {ROOT}/+/%u/{Direction.DOWN.value}/#"]
    return _text(lines)


def _text(lines: Sequence[str]) -> str:
    if any("\n" in line or "\r" in line for line in lines):
        raise InvalidError("a path or a host name for the broker contains a line break", "bad_settings")
    return "\n".join(lines) + "\n"
