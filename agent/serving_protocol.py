"""What muster-agent and muster-serving say to each other over the Unix socket.

Invariant: plain data, and a version that both sides check. HTTP/1.1 over a Unix socket with the header
``Muster-Serving-Protocol: 1``; a request with another version gets 426, so that an old half and a new half of the
agent notice each other instead of misunderstanding. Errors are ``{"error": "..."}`` with a 4xx or 5xx status.

    GET  /control/v1/state                          -> ServingState
    POST /control/v1/models/{name}/load             LoadRequest -> LoadedBuild   stands beside the active build
    POST /control/v1/models/{name}/activate         BuildRequest -> LoadedBuild  requests go to it from now on
    POST /control/v1/models/{name}/probe            BuildRequest -> ProbeResult  golden inputs, marked as probes
    POST /control/v1/models/{name}/unload           BuildRequest -> {}           409 for the active build
    POST /control/v1/models/{name}/remove           {} -> {}                     stops serving the model
    POST /control/v1/tunnel                         TunnelRequest -> {}          opens or renews the tunnel
    POST /control/v1/stop                           {} -> {}                     drains, then ends the process
"""

from __future__ import annotations

from typing import Final

import msgspec

VERSION: Final = 1
HEADER: Final = "Muster-Serving-Protocol"
SOCKET_NAME: Final = "serving.sock"
STATUS_NAME: Final = "status.json"  # what the agent leaves for people, and serving shows


class LoadRequest(msgspec.Struct, frozen=True, kw_only=True):
    """directory: absolute path of an installed build (its files under the manifest's names, and manifest.json)."""

    build: str
    directory: str


class BuildRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Names one loaded build of the model in the path."""

    build: str


class LoadedBuild(msgspec.Struct, frozen=True, kw_only=True):
    """A build in memory. state: "loaded" (beside) or "active". Times in ms, counts since it was loaded.

    errors: requests that failed through the build's own fault (not the client's). probes: golden runs.
    """

    model: str
    version: str
    build: str
    state: str
    load_ms: float
    requests: int = 0
    errors: int = 0
    probes: int = 0
    queued: int = 0
    p50_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None


class ServingState(msgspec.Struct, frozen=True, kw_only=True):
    """The whole serving process. http_port: where people and programs on this device reach it."""

    protocol: int
    pid: int
    started: float
    http_host: str
    http_port: int
    tunnel: str  # "none", "connecting", "open"
    tunnel_error: str
    builds: list[LoadedBuild]


class ProbeResult(msgspec.Struct, frozen=True, kw_only=True):
    """One pass over the golden inputs. difference: the largest absolute difference from the golden outputs."""

    passed: bool
    reason: str
    difference: float
    runs: int
    p50_ms: float
    p95_ms: float


class TunnelRequest(msgspec.Struct, frozen=True, kw_only=True):
    """url: wss://…; credential: an envelope as text; ca_file: what the gateway's certificate must descend from."""

    url: str
    credential: str
    ca_file: str
