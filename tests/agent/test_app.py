"""The agent as a program: real processes, a real broker, a small controller."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from aiomqtt import Client, ProtocolVersion, TLSParameters

from agent.identity.enrol import enrol
from wire import codec, envelope, topics
from wire.assignment import Assignment, Item
from wire.messages import Ack


async def until(condition: Callable[[], Any], what: str, seconds: float = 25.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"did not come true: {what}"
        await asyncio.sleep(0.02)
    return found


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


class Listener:
    """Hears everything that devices say, and acknowledges it."""

    def __init__(self, broker: Any) -> None:
        self.broker = broker
        self.heard: list[tuple[str, Any]] = []
        self.client: Client | None = None

    def of(self, channel: str) -> list[Any]:
        return [message for name, message in self.heard if name == channel]

    async def run(self) -> None:
        certificate, key = self.broker.authority.issue("controller")
        tls = TLSParameters(ca_certs=str(self.broker.authority.ca_file), certfile=str(certificate), keyfile=str(key))
        async with Client("127.0.0.1", self.broker.port, protocol=ProtocolVersion.V311, tls_params=tls) as client:
            await client.subscribe(topics.subscription(topics.Direction.UP), qos=1)
            self.client = client
            async for message in client.messages:
                address = topics.parse(str(message.topic))
                assert isinstance(message.payload, bytes)
                fields = json.loads(message.payload)
                self.heard.append((address.channel.name, fields))
                if "stream" in fields:
                    ack = Ack(stream=fields["stream"], sequence=fields["sequence"])
                    await self.send(topics.ACK, address.device, codec.encode(ack))

    async def send(self, channel: topics.Channel, device: str, payload: bytes) -> None:
        assert self.client is not None
        await self.client.publish(topics.topic_for(channel, device), payload, qos=1, retain=channel.retained)


@pytest.fixture
async def listener(broker: Any) -> AsyncIterator[Listener]:
    far = Listener(broker)
    task = asyncio.create_task(far.run())
    await until(lambda: far.client, "the far side is connected")
    yield far
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


class Program:
    """`muster-agent` with one data directory."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.started: list[subprocess.Popen[bytes]] = []
        self.environment = {**os.environ, "MUSTER_SERVING_PORT": "0", "MUSTER_HEALTH_INTERVAL": "1"}

    def run(self, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "agent", "run", "--data", str(self.data), *arguments]
        with self.log.open("ab") as log:
            self.started.append(subprocess.Popen(command, stderr=log, env=self.environment))
        return self.started[-1]

    def ask(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "agent", *arguments]
        return subprocess.run(
            command, input=stdin, capture_output=True, text=True, timeout=30, env=self.environment, check=False
        )

    @property
    def log(self) -> Path:
        return self.data.with_name("agent.log")

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.ask("status", "--json", "--data", str(self.data)).stdout)
        return found

    def serving_pid(self) -> int:
        serving = self.status()["serving"]
        return int(serving["pid"]) if serving else 0


@pytest.fixture
def program(tmp_path: Path) -> Any:
    found = Program(tmp_path / "data")
    yield found
    for process in found.started:
        process.kill()
        process.wait()
    # serving outlives its agent, also one that had not told of it yet: it is known by the data directory it was given
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "agent.serving" in words and str(found.data) in words:
            process.kill()
            process.wait(10)


@pytest.fixture
def enrolled(program: Program, far: Any, broker: Any) -> Program:
    far.mqtt_port = broker.port
    enrol(program.data, far.token, far.url, {})
    return program


async def test_joins_runs_tells_and_ends(
    program: Program, far: Any, broker: Any, listener: Listener, device_id: str, tmp_path: Path
) -> None:
    far.mqtt_port = broker.port
    token = tmp_path / "token"
    token.write_text(far.token)
    began = time.monotonic()
    process = program.run("--controller", far.url, "--token-file", str(token), "--name", "bench")
    await until(lambda: any(m["serving"] == "ready" for m in listener.of("reported")), "reported ready")
    assert time.monotonic() - began < 15
    assert far.requests[0].name == "bench"
    assert far.requests[0].facts["arch"] == os.uname().machine
    state = listener.of("state")[0]
    assert (state["online"], state["boot"]) == (True, Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    facts = listener.of("facts")[0]
    assert facts["facts"]["arch"] == os.uname().machine
    assert facts["evidence"]
    port = json.loads((program.data / "ports.json").read_text())["serving_port"]
    status = await until(
        lambda: s if (s := program.status())["serving"]["tunnel"] != "none" else None, "the tunnel was asked for"
    )
    assert status["running"]
    assert status["device"] == device_id
    assert status["link"] == "up"
    assert status["state"] == "ready"
    assert "running, ready" in program.ask("status", "--data", str(program.data)).stdout
    assert status["serving"]["http_port"] == port
    await until(lambda: listener.of("health"), "health is reported")

    second = program.ask("run", "--data", str(program.data))
    assert second.returncode == 1
    assert "already runs" in second.stderr
    again = program.ask(
        "enrol", "--data", str(program.data), "--controller", far.url, "--token-file", "-", stdin=far.token
    )
    assert (again.returncode, again.stdout) == (0, device_id + "\n")
    assert far.token.split(".")[3] not in program.log.read_text()

    serving = program.serving_pid()
    process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(process.wait, 15) == 0
    await until(lambda: listener.of("state")[-1]["online"] is False, "it said goodbye")
    await until(lambda: gone(serving), "serving ended with it")
    stopped = program.ask("status", "--data", str(program.data))
    assert stopped.returncode == 1
    assert "not running" in stopped.stdout


async def test_serving_outlives_a_killed_agent_and_is_adopted(enrolled: Program, listener: Listener) -> None:
    first = enrolled.run()
    await until(lambda: any(m["serving"] == "ready" for m in listener.of("reported")), "ready")
    serving = enrolled.serving_pid()
    first.kill()
    first.wait()
    await until(lambda: listener.of("state")[-1]["online"] is False, "the last will")
    assert enrolled.serving_pid() == serving
    listener.heard.clear()
    second = enrolled.run()
    await until(lambda: any(m["serving"] == "ready" for m in listener.of("reported")), "ready again")
    assert listener.of("state")[-1]["session"] == 2
    assert enrolled.serving_pid() == serving

    os.kill(serving, signal.SIGKILL)  # now serving dies, and the agent brings another up
    await until(lambda: (pid := enrolled.serving_pid()) and pid != serving, "another serving process")
    state = enrolled.status()["serving"]
    await until(
        lambda: json.loads((enrolled.data / "ports.json").read_text())["serving_port"] == state["http_port"], "the port"
    )
    adopted = enrolled.serving_pid()
    second.send_signal(signal.SIGINT)
    assert await asyncio.to_thread(second.wait, 15) == 0
    await until(lambda: gone(adopted), "serving ended with the agent")


async def test_takes_what_is_signed_for_it_and_nothing_else(
    enrolled: Program, far: Any, listener: Listener, device_id: str
) -> None:
    def assignment(number: int, device: str = device_id, purpose: str = envelope.ASSIGNMENT) -> bytes:
        item = Item(
            component="model:digits",
            generation=number,
            execution=f"e{number}",
            build=None,
            manifest_sha256=None,
            manifest_size=None,
        )
        now = time.time()
        made = Assignment(device=device, epoch=1, number=number, issued=now, expires=now + 60, items=[item])
        return envelope.seal(codec.encode(made), purpose, far.signing_key)

    enrolled.run()
    await until(lambda: listener.of("reported"), "connected")
    await listener.send(topics.DESIRED, device_id, b"garbage")
    await listener.send(topics.DESIRED, device_id, assignment(1, purpose=envelope.MANIFEST))
    await listener.send(topics.DESIRED, device_id, assignment(1, device="d-" + "a" * 26))
    await listener.send(topics.DESIRED, device_id, assignment(2))
    await until(lambda: any(m["state"] == "SKIPPED" for m in listener.of("execution")), "the removal is skipped")
    await until(lambda: any(m["number"] == 2 for m in listener.of("reported")), "the position is told")
    await listener.send(topics.DESIRED, device_id, assignment(1))  # going back
    await until(lambda: enrolled.log.read_text().count("assignment refused") >= 4, "four refusals")
    assert {m["execution"] for m in listener.of("execution")} == {"e2"}


async def test_ends_with_its_owner(enrolled: Program, listener: Listener) -> None:
    with subprocess.Popen(["sleep", "60"]) as owner:
        enrolled.environment["MUSTER_OWNER_PID"] = str(owner.pid)
        process = enrolled.run()
        await until(lambda: any(m["serving"] == "ready" for m in listener.of("reported")), "ready")
        serving = enrolled.serving_pid()
        owner.kill()
    assert await asyncio.to_thread(process.wait, 15) == 0
    await until(lambda: gone(serving), "serving ended too")


async def test_goes_on_serving_without_a_broker(enrolled: Program, broker: Any) -> None:
    broker.kill()
    enrolled.run()
    status = await until(lambda: s if (s := enrolled.status())["serving"] and "link" in s else None, "it serves")
    assert status["link"] != "up"
    await until(lambda: enrolled.status()["state"] == "offline", "it says that it is offline")


async def test_waits_for_a_controller_that_is_not_there_yet(program: Program, far: Any, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(far.token)
    far.refuse(503, error="not yet")
    process = program.run("--controller", far.url, "--token-file", str(token))
    await until(lambda: far.seen.count("/api/v1/enrolment") >= 2, "it tries again")
    assert "not yet" in program.log.read_text()
    far.refuse(403, error="the join token expired", code="token_expired")
    assert await asyncio.to_thread(process.wait, 30) == 4  # a refusal does not get better by asking again
    assert "the join token expired" in program.log.read_text()


def test_without_an_identity_it_says_what_to_do(program: Program) -> None:
    answer = program.ask("run", "--data", str(program.data))
    assert answer.returncode == 2
    assert "muster-agent enrol" in answer.stderr
