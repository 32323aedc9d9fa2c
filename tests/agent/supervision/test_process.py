"""A real serving process under the supervisor: started, killed, adopted, replaced, stopped."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest

from agent.errors import ServingError
from agent.serving_protocol import SOCKET_NAME, ServingState
from agent.settings import Settings
from agent.supervision import client as client_module
from agent.supervision import process as module
from agent.supervision.process import ServingProcess
from tests.agent.serving.builds import as_json, make_build, request


@pytest.fixture
async def supervise(tmp_path: Path) -> AsyncIterator[Callable[..., ServingProcess]]:
    """Returns a started supervisor; at the end every serving process of the directory is gone."""
    tasks: list[asyncio.Task[None]] = []
    made: list[ServingProcess] = []

    def begin(on_start: Callable[[ServingState], object] | None = None, **settings: object) -> ServingProcess:
        async def started(state: ServingState) -> None:
            if on_start is not None:
                on_start(state)

        chosen = Settings(**({"data": str(tmp_path), "serving_port": 0} | settings))  # type: ignore[arg-type]
        made.append(ServingProcess(chosen, started))
        tasks.append(asyncio.create_task(made[-1].run()))
        made[-1].task = tasks[-1]  # type: ignore[attr-defined]
        return made[-1]

    yield begin
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await ServingProcess(Settings(data=str(tmp_path))).stop()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)


async def infer(port: int) -> int:
    async with httpx.AsyncClient(trust_env=False) as http:
        reply = await http.post(f"http://127.0.0.1:{port}/v2/models/tiny/infer", content=as_json(request()))
        return reply.status_code


async def test_starts_serves_and_comes_back_after_a_crash_with_its_models(
    tmp_path: Path, supervise: Callable[..., ServingProcess]
) -> None:
    states: list[ServingState] = []
    process = supervise(states.append)
    await until(lambda: states)
    build = make_build(tmp_path / "build")
    await process.client.load("tiny", build, tmp_path / "build")
    await process.client.activate("tiny", build)
    assert await infer(states[0].http_port) == 200
    assert process.pid == states[0].pid
    os.kill(process.pid, signal.SIGKILL)
    await until(lambda: len(states) == 2)
    assert states[1].pid != states[0].pid
    async with asyncio.timeout(30):  # restores by itself what was active
        while await infer(states[1].http_port) != 200:
            await asyncio.sleep(0.005)
    await process.stop()
    await until(lambda: process.task.done())  # type: ignore[attr-defined]
    assert process.client.peer_pid() is None
    assert b"Traceback" not in (tmp_path / "serving.log").read_bytes()


async def test_serving_outlives_a_killed_agent_and_is_adopted(
    tmp_path: Path, supervise: Callable[..., ServingProcess]
) -> None:
    code = (
        "import asyncio, sys\nfrom agent.settings import Settings\n"
        "from agent.supervision.process import ServingProcess\n"
        "async def started(state):\n    print('pid', state.pid, flush=True)\n"
        "asyncio.run(ServingProcess(Settings(data=sys.argv[1], serving_port=0), started).run())\n"
    )
    agent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, str(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert agent.stdout is not None
    line = b""
    while not line.startswith(b"pid "):
        line = await asyncio.wait_for(agent.stdout.readline(), 30)
    pid = int(line.split()[1])
    assert os.getsid(pid) == pid  # a Ctrl-C at the agent's terminal does not reach it
    agent.kill()
    await agent.wait()
    states: list[ServingState] = []
    process = supervise(states.append)
    await until(lambda: states)
    assert [state.pid for state in states] == [pid]
    os.kill(pid, signal.SIGKILL)  # not its child: noticed all the same
    await until(lambda: len(states) == 2)
    assert process.pid not in (0, pid)


async def test_a_taken_port_is_the_problem_until_it_is_free(
    tmp_path: Path, supervise: Callable[..., ServingProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BACKOFF_BASE", 0.01)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = supervise(serving_port=port)
        await until(lambda: f"port {port} on 127.0.0.1 is taken" in process.problem)
        assert process.pid == 0
    await until(lambda: process.pid)
    assert process.problem == ""
    assert (await process.client.state()).http_port == port


async def test_a_process_of_another_protocol_is_replaced(
    tmp_path: Path, supervise: Callable[..., ServingProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    states: list[ServingState] = []
    old = supervise(states.append)
    await until(lambda: states)
    old.task.cancel()  # type: ignore[attr-defined]
    real, refuse = client_module.ServingClient.state, [True]

    async def state(self: client_module.ServingClient, seconds: float = 5.0) -> ServingState:
        if refuse and not refuse.clear():
            raise ServingError("speaks version 0", "protocol")
        return await real(self, seconds)

    monkeypatch.setattr(client_module.ServingClient, "state", state)
    supervise(states.append)
    await until(lambda: len(states) == 2)
    assert states[0].pid != states[1].pid
    assert old._child is not None
    assert old._child.poll() is not None


async def test_a_stuck_process_is_ended_and_replaced(
    tmp_path: Path, supervise: Callable[..., ServingProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHECK_SECONDS", 0.02)
    states: list[ServingState] = []
    process = supervise(states.append)
    await until(lambda: states)
    monkeypatch.setattr(process.client, "state", stuck(process, states[0].pid))
    os.kill(states[0].pid, signal.SIGSTOP)
    await until(lambda: len(states) == 2)
    assert states[0].pid != states[1].pid


def stuck(process: ServingProcess, pid: int) -> Callable[[], object]:
    real = process.client.state

    async def state(seconds: float = 0.05) -> ServingState:
        return await real(0.05 if Path(f"/proc/{pid}").exists() else 5.0)

    return state


async def test_unmanaged_serving_is_only_watched(
    tmp_path: Path, supervise: Callable[..., ServingProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BACKOFF_BASE", 0.01)
    process = supervise(serving_managed=False)
    await until(lambda: "start it" in process.problem)
    assert not (tmp_path / SOCKET_NAME).exists()


async def test_the_log_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LOG", 1000)
    monkeypatch.setattr(module, "KEPT_LOG", 100)
    process = ServingProcess(Settings(data=str(tmp_path)))
    with (tmp_path / "serving.log").open("ab", buffering=0) as writer:
        writer.write(b"x" * 1000 + b"the end")
        process._bound_log()
        writer.write(b", and more")
    data = (tmp_path / "serving.log").read_bytes()
    assert data.endswith(b"the end, and more")
    assert len(data) == 110


async def test_stop_ends_a_process_that_is_still_starting(
    tmp_path: Path, supervise: Callable[..., ServingProcess]
) -> None:
    process = supervise()
    await until(lambda: process._child is not None)  # it has begun, and listens nowhere yet
    assert process._child is not None
    assert process.client.peer_pid() is None
    await process.stop()
    assert process._child.poll() is not None
    await until(lambda: process.task.done())  # type: ignore[attr-defined]


async def test_a_slow_process_is_asked_again_before_it_is_replaced(
    tmp_path: Path, supervise: Callable[..., ServingProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    states: list[ServingState] = []
    old = supervise(states.append)
    await until(lambda: states)
    old.task.cancel()  # type: ignore[attr-defined]
    real, late = client_module.ServingClient.state, [1, 2]

    async def state(self: client_module.ServingClient, seconds: float = 5.0) -> ServingState:
        if late and late.pop():
            raise ServingError("serving did not answer within 10 s", "timeout")
        return await real(self, seconds)

    monkeypatch.setattr(client_module.ServingClient, "state", state)
    supervise(states.append)
    await until(lambda: len(states) == 2)
    assert states[0].pid == states[1].pid


async def test_stop_without_a_process_is_nothing(tmp_path: Path) -> None:
    with contextlib.suppress(ServingError):
        await ServingProcess(Settings(data=str(tmp_path))).stop()
    assert not (tmp_path / SOCKET_NAME).exists()
