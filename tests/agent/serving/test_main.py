"""The command itself, as a process."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from agent.serving_protocol import SOCKET_NAME
from agent.supervision.client import ServingClient
from tests.agent.serving.builds import as_json, make_build, make_model, request


class Running:
    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "agent.serving", "--port", "0", *arguments]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd="/")

    def ready(self) -> str:
        """Return the address once the ready line is there."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if "event='ready'" in line and (found := re.search(r"url='([^']+)'", line)):
                return found[1]
        raise AssertionError(f"ended with {self.process.wait()}")

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)


@pytest.fixture
def start() -> Iterator[type[Running]]:
    made: list[Running] = []

    class Tracked(Running):
        def __init__(self, *arguments: str) -> None:
            super().__init__(*arguments)
            made.append(self)

    yield Tracked
    for running in made:
        running.process.kill()
        running.process.wait()


def post(url: str, path: str, body: object, **headers: str) -> httpx.Response:
    return httpx.post(url + path, content=as_json(body), headers=headers, trust_env=False, timeout=30)


def test_serves_a_directory_of_models_until_sigterm(tmp_path: Path, start: type[Running]) -> None:
    make_model(tmp_path / "tiny/1/model.onnx")
    running = start("--models", str(tmp_path))
    url = running.ready()
    assert post(url, "/v2/models/tiny/infer", request()).status_code == 200
    assert running.end() == 0
    with pytest.raises(httpx.ConnectError):
        post(url, "/infer", request())


def test_sigterm_answers_what_is_on_its_way(tmp_path: Path, start: type[Running]) -> None:
    make_model(tmp_path / "slow/1/model.onnx", work=1024)
    running = start("--models", str(tmp_path))
    url = running.ready()

    async def go() -> list[int]:
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=30) as http:
            await http.get("/v2")
            tasks = [asyncio.create_task(http.post("/infer", content=as_json(request()))) for _ in range(4)]
            async with asyncio.timeout(10):
                while 'queue_rows{model="slow"} 0.0' in (await http.get("/metrics")).text:
                    await asyncio.sleep(0.002)
            running.process.send_signal(signal.SIGTERM)
            return [reply.status_code for reply in await asyncio.gather(*tasks)]

    assert asyncio.run(go()) == [200] * 4
    assert running.process.wait(20) == 0


def test_data_mode_has_a_private_socket_and_one_process(tmp_path: Path, start: type[Running]) -> None:
    running = start("--data", str(tmp_path))
    url = running.ready()
    assert (tmp_path / SOCKET_NAME).stat().st_mode & 0o777 == 0o600
    assert httpx.get(url + "/v2/health/ready", trust_env=False).status_code == 503
    assert httpx.get(url + "/control/v1/state", trust_env=False).status_code == 404
    build = make_build(tmp_path / "build")

    async def control() -> int:
        client = ServingClient(tmp_path / SOCKET_NAME)
        await client.load("tiny", build, tmp_path / "build")
        await client.activate("tiny", build)
        return (await client.state()).http_port

    assert url.endswith(f":{asyncio.run(control())}")
    assert httpx.get(url + "/v2/health/ready", trust_env=False).status_code == 200
    second = start("--data", str(tmp_path))
    assert second.process.stderr is not None
    assert second.process.wait(20) == 1
    assert "another muster-serving already runs" in second.process.stderr.read()
    assert post(url, "/infer", request()).status_code == 200
    running.process.kill()
    running.process.wait()
    again = start("--data", str(tmp_path))  # over the left-over socket, with the model it had
    assert post(again.ready(), "/infer", request()).status_code == 200
    assert again.end() == 0


def test_stop_by_the_control_socket(tmp_path: Path, start: type[Running]) -> None:
    running = start("--data", str(tmp_path))
    running.ready()
    asyncio.run(ServingClient(tmp_path / SOCKET_NAME).stop())
    assert running.process.wait(20) == 0


def test_ends_with_its_owner(tmp_path: Path, start: type[Running]) -> None:
    owner = subprocess.Popen(["sleep", "60"])
    running = start("--data", str(tmp_path), "--owner-pid", str(owner.pid))
    running.ready()
    owner.kill()
    owner.wait()
    assert running.process.wait(20) == 0


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (("--data", "{}/missing"), 1, "is missing"),
        (("--models", "{}/missing"), 1, "give a directory of models"),
        (("--models", "{}"), 1, "holds no model"),
        (("--data", "{}", "--port", "99999"), 2, "'99999' is not a port"),
        (("--data", "{}", "--host", "203.0.113.9"), 1, "cannot listen on 203.0.113.9"),
        ((), 2, "one of the arguments"),
    ],
)
def test_what_cannot_be_served_is_one_sentence(
    tmp_path: Path, start: type[Running], arguments: tuple[str, ...], code: int, reason: str
) -> None:
    running = start(*(argument.format(tmp_path) for argument in arguments))
    assert running.process.stderr is not None
    output = running.process.stderr.read()
    assert running.process.wait(20) == code
    assert reason in output
    assert "Traceback" not in output


def test_a_taken_port_is_named(tmp_path: Path, start: type[Running]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        running = start("--data", str(tmp_path), "--port", str(port))
        assert running.process.stderr is not None
        assert f"port {port} on 127.0.0.1 is taken" in running.process.stderr.read()
        assert running.process.wait(20) == 1


@pytest.mark.timing
def test_idle_costs_next_to_nothing(tmp_path: Path, start: type[Running]) -> None:
    make_model(tmp_path / "tiny/1/model.onnx")
    running = start("--models", str(tmp_path))
    post(running.ready(), "/infer", request())
    ticks = os.sysconf("SC_CLK_TCK")

    def used() -> float:
        fields = Path(f"/proc/{running.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / ticks

    before, begun = used(), time.monotonic()
    time.sleep(4)
    assert (used() - before) / (time.monotonic() - begun) <= 0.005
