"""A whole device in a directory, with the far side faked: a controller that serves artifacts, and a serving process.

The fakes live as long as the test and keep their memory when the agent's power is cut: they are other machines and
other processes. What belongs to the agent is opened anew from the disk by ``Device.open``.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import http.server
import random
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agent import durable
from agent.builds.fetch import Fetcher, Patience
from agent.builds.slots import Slots
from agent.builds.store import Store
from agent.errors import ServingError, TrustError, UnreachableError
from agent.serving_protocol import LoadedBuild, ProbeResult, ServingState
from agent.trust.pinned import Pinned
from agent.updates.loop import Updates
from agent.updates.precheck import Capabilities
from wire import codec, envelope
from wire.assignment import Assignment, Item, Policy
from wire.enrolment import TrustBundle
from wire.manifest import Figures, File, Limits, Manifest, Target, Tensor, build_id

COMPONENT = "model:digits"
QUICK = Policy(download_deadline=30, install_deadline=20, probation=0.0, probation_deadline=20)


class Controller:
    """Artifacts over real HTTP, signed builds and assignments, and the reports that came in."""

    def __init__(self) -> None:
        self.builder, self.assigner = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
        self.artifacts: dict[str, bytes] = {}
        self.manifests: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.reports: dict[str, dict[str, Any]] = {}
        self.acknowledges = True
        self.vouched: list[str] = []
        self.refusals: list[TrustError] = []
        self.gate: threading.Event | None = None
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.requests.append(self.path)
                if outer.gate is not None:
                    outer.gate.wait(20)
                body = outer.artifacts.get(self.path.rsplit("/", 1)[1])
                if body is None:
                    self.send_response(404)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                start = 0
                if wanted := self.headers.get("Range"):
                    start = int(wanted.removeprefix("bytes=").removesuffix("-"))
                self.send_response(206 if start else 200)
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
                self.send_header("Content-Length", str(len(body) - start))
                self.end_headers()
                with contextlib.suppress(OSError):
                    self.wfile.write(body[start:])

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=lambda: self.server.serve_forever(0.02), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    async def vouch(self, manifest: Manifest, build: str, sha256: str, size: int) -> None:
        """What the signed repository says: every build that was published, unless ``refusals`` hold an answer."""
        self.vouched.append(build)
        if self.refusals:
            raise self.refusals.pop(0)

    @property
    def bundle(self) -> TrustBundle:
        return TrustBundle(
            ca_pem="",
            assignment_keys=[envelope.encode_public_key(self.assigner.public_key())],
            tuf_root=b"{}",
        )

    def publish(self, seed: int, model: str = "digits", **changes: Any) -> str:
        """Make a build of random bytes; return its id."""
        rng = random.Random(seed)
        bodies = {"model.onnx": rng.randbytes(30_000), "golden.npz": random.Random(f"golden {model}").randbytes(3_000)}
        files = []
        for path, body in bodies.items():
            sha256 = hashlib.sha256(body).hexdigest()
            self.artifacts[sha256] = body
            files.append(File(path=path, size=len(body), sha256=sha256, role="model" if "model" in path else "golden"))
        tensor = Tensor(name="x", datatype="FP32", shape=[-1, 64])
        manifest = Manifest(
            tenant="home", model=model, model_version=seed + 1, precision="fp32",
            target=Target(profile="generic", arch=["x86_64"], runtime="onnxruntime", min_runtime="1.20"),
            files=files, inputs=[tensor], outputs=[tensor],
            figures=Figures(accuracy=0.9, accuracy_low=0.8, accuracy_high=0.95, samples=100, p50_ms=1, p95_ms=2,
                            p50_ms_batch8=None, peak_memory_bytes=1000, size_bytes=33_000, measured_on="here"),
            limits=Limits(max_p95_ms=50, max_memory_bytes=2**30, tolerance=0.01), reasons=[], created=float(seed),
        )  # fmt: skip
        payload = codec.encode(msgspec.structs.replace(manifest, **changes))
        sealed = envelope.seal(payload, envelope.MANIFEST, self.builder)
        self.artifacts[hashlib.sha256(sealed).hexdigest()] = sealed
        self.manifests[build_id(payload)] = sealed
        return build_id(payload)

    def item(self, build: str | None, generation: int, component: str = COMPONENT, policy: Policy = QUICK) -> Item:
        sealed = self.manifests[build] if build is not None else None
        return Item(
            component=component,
            generation=generation,
            execution=f"x-{component.partition(':')[2]}-{generation}",
            build=build,
            manifest_sha256=None if sealed is None else hashlib.sha256(sealed).hexdigest(),
            manifest_size=None if sealed is None else len(sealed),
            policy=policy,
        )

    def assignment(self, number: int, *items: Item, epoch: int = 1) -> Assignment:
        return Assignment(
            device="d-" + "a" * 26, epoch=epoch, number=number, issued=0.0, expires=9e12, items=list(items)
        )

    def report(self, fields: dict[str, Any], key: str) -> None:
        durable.crash_point("outbox.put:before")
        self.reports.setdefault(key, fields)  # the outbox takes a key once
        durable.crash_point("outbox.put:after")

    def states(self, execution: str) -> list[str]:
        return [fields["state"] for fields in self.reports.values() if fields["execution"] == execution]


@dataclass
class Trial:
    passed: bool = True
    reason: str = ""
    difference: float = 0.0
    p95_ms: float = 1.0
    peak_memory_bytes: int = 1000
    log_tail: str = ""


@dataclass
class FakeServing:
    """A serving process that survives the agent. ``bad``: builds that fail once they serve, by kind."""

    loaded: dict[str, dict[str, Path]] = field(default_factory=dict)
    active: dict[str, str] = field(default_factory=dict)
    bad: dict[str, str] = field(default_factory=dict)
    counters: dict[str, list[int]] = field(default_factory=dict)
    traffic: bool = False
    down: bool = False
    pid: int = 1
    calls: list[str] = field(default_factory=list)
    trials: dict[str, Trial] = field(default_factory=dict)
    hang: str = ""

    async def _enter(self, call: str) -> None:
        self.calls.append(call)
        if self.hang and call.startswith(self.hang):
            await asyncio.Event().wait()
        await asyncio.sleep(0)
        if self.down:
            raise UnreachableError("serving does not answer", "down")

    def restart(self) -> None:
        """Die and come back empty."""
        self.loaded, self.active, self.counters = {}, {}, {}
        self.pid += 1

    def _tell(self, model: str, build: str) -> LoadedBuild:
        requests, errors, probes = self.counters.setdefault(build, [0, 0, 0])
        state = "active" if self.active.get(model) == build else "loaded"
        return LoadedBuild(
            model=model,
            version="1",
            build=build,
            state=state,
            load_ms=1.0,
            requests=requests,
            errors=errors,
            probes=probes,
        )

    async def state(self) -> ServingState:
        await self._enter("state")
        for build in self.active.values():
            counter = self.counters.setdefault(build, [0, 0, 0])
            counter[0] += 10 if self.traffic else 0
            counter[1] += 9 if self.traffic and self.bad.get(build) == "errors" else 0
        if any(self.bad.get(build) == "crash" for build in self.active.values()):
            self.restart()
        builds = [self._tell(model, build) for model, builds in self.loaded.items() for build in builds]
        return ServingState(
            protocol=1, pid=self.pid, started=0.0, http_host="127.0.0.1", http_port=8000, tunnel="none",
            tunnel_error="", builds=builds,
        )  # fmt: skip

    async def load(self, model: str, build: str, directory: Path) -> LoadedBuild:
        await self._enter(f"load {build}")
        if self.bad.get(build) == "load":
            raise ServingError("out of memory", "no_memory")
        assert whole(directory, build), f"{directory} is not whole"
        self.loaded.setdefault(model, {})[build] = directory
        return self._tell(model, build)

    async def activate(self, model: str, build: str) -> LoadedBuild:
        await self._enter(f"activate {build}")
        if build not in self.loaded.get(model, {}):
            raise ServingError("not loaded", "unknown_build")
        current = self.loaded[model][build].with_name("current")
        assert str(current.readlink()) == build, "the link that a restart goes by does not name it yet"
        self.active[model] = build
        return self._tell(model, build)

    async def probe(self, model: str, build: str) -> ProbeResult:
        await self._enter(f"probe {build}")
        if build not in self.loaded.get(model, {}):
            raise ServingError("not loaded", "unknown_build")
        self.counters.setdefault(build, [0, 0, 0])[2] += 1
        passed = self.bad.get(build) != "probe"
        return ProbeResult(
            passed=passed, reason="" if passed else "off by 1", difference=0.0, runs=1, p50_ms=1, p95_ms=1
        )

    async def unload(self, model: str, build: str) -> None:
        await self._enter(f"unload {build}")
        assert self.active.get(model) != build
        self.loaded.get(model, {}).pop(build, None)

    async def remove(self, model: str) -> None:
        await self._enter(f"remove {model}")
        self.active.pop(model, None)
        self.loaded.pop(model, None)

    async def trial(self, directory: Path, memory_bytes: int, deadline: float) -> Trial:
        await self._enter(f"trial {directory.name}")
        assert memory_bytes > 0
        assert deadline > 0
        return self.trials.get(directory.name, Trial())


def whole(directory: Path, build: str) -> bool:
    """Whether the build in ``directory`` is complete, byte by byte."""
    try:
        Slots(directory.parents[2]).verify(f"model:{directory.parent.name}", build)
    except Exception:
        return False
    return True


class Device:
    """One agent's updates. ``open`` begins them from the disk, ``closed`` ends them as a power cut does: at once."""

    def __init__(self, root: Path, controller: Controller, serving: FakeServing) -> None:
        self.root, self.controller, self.serving = root, controller, serving
        self.free = 10**12
        self.capabilities = Capabilities("x86_64", {"onnxruntime": "1.23.0"}, 10**9)
        self.patience = Patience(window=2.0, backoff=0.01, longest_wait=0.05, attempts=5)
        self.updates: Updates | None = None
        self.now = 1_000_000.0

    def clock(self) -> float:
        self.now += 0.001
        return self.now

    def open(self) -> Updates:
        store = Store(self.root / "blobs", 1000, lambda _path: self.free)
        fetcher = Fetcher(
            store, self.controller.url, None, lambda: "token", patience=self.patience, rng=random.Random(1)
        )
        self.updates = Updates.open(
            self.root,
            store=store,
            fetcher=fetcher,
            trust=Pinned(self.controller.bundle),
            voucher=self.controller,
            serving=self.serving,
            trial=self.serving.trial,
            acked=lambda key: self.controller.acknowledges and key in self.controller.reports,
            capabilities=lambda: self.capabilities,
            report=self.controller.report,
            tick=0.01,
            now=self.clock,
        )
        return self.updates

    @property
    def slots(self) -> Slots:
        return Slots(self.root / "builds")

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Updates]:
        updates = self.open()
        task = asyncio.create_task(updates.run())
        try:
            yield updates
        finally:
            task.cancel()
            await asyncio.wait([task])
            updates.close()
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error

    async def until(self, condition: Callable[[], bool], seconds: float = 10.0) -> None:
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.002)

    async def ended(self, execution: str, seconds: float = 10.0) -> str:
        """Wait until ``execution`` was reported to have ended; return how."""
        ends = ("SUCCEEDED", "SKIPPED", "FAILED", "INCONSISTENT", "REJECTED", "TIMED_OUT", "CANCELED", "SUPERSEDED")
        await self.until(lambda: any(state in ends for state in self.controller.states(execution)), seconds)
        return next(state for state in self.controller.states(execution) if state in ends)


@pytest.fixture
def controller() -> Iterator[Controller]:
    made = Controller()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def serving() -> FakeServing:
    return FakeServing()


@pytest.fixture
def device(tmp_path: Path, controller: Controller, serving: FakeServing) -> Device:
    return Device(tmp_path / "device", controller, serving)


@pytest.fixture
def trial_result() -> type[Trial]:
    return Trial


@pytest.fixture(autouse=True)
def _no_hook_left() -> Iterator[None]:
    yield
    durable.set_hook(None)
