import asyncio
import time
from pathlib import Path

import pytest

from agent import trial_child as trial
from agent.errors import DeviceError
from agent.trial_child import run_trial
from tests.agent.serving.builds import make_build


async def test_a_good_build_passes_with_its_figures(tmp_path: Path) -> None:
    make_build(tmp_path)
    found = await run_trial(tmp_path, 512 * 1024**2, 30.0)
    assert found.passed, found
    assert found.difference < 1e-4
    assert 0 < found.p50_ms <= found.p95_ms
    assert found.load_ms > 0
    assert 10 * 1024**2 < found.peak_memory_bytes < 512 * 1024**2


async def test_wrong_outputs_fail(tmp_path: Path) -> None:
    make_build(tmp_path, wrong=0.5)
    found = await run_trial(tmp_path, 0, 30.0)
    assert (found.passed, round(found.difference, 3)) == (False, 0.5)
    assert "differ from the golden ones" in found.reason


async def test_what_cannot_be_loaded_fails_with_the_reason(tmp_path: Path) -> None:
    make_build(tmp_path / "broken", model_bytes=b"no model")
    assert "ONNX Runtime refuses" in (await run_trial(tmp_path / "broken", 0, 30.0)).reason
    assert "install the build again" in (await run_trial(tmp_path / "nothing", 0, 30.0)).reason


async def test_the_memory_limit_holds(tmp_path: Path) -> None:
    make_build(tmp_path, work=2048)  # 16 MiB of weights, and as much again for each product
    found = await run_trial(tmp_path, 20 * 1024**2, 60.0)
    assert not found.passed
    assert "memory" in found.reason


def child(monkeypatch: pytest.MonkeyPatch, program: Path, code: str) -> None:
    """Run ``code`` in the place of the trial."""
    program.write_text(f"#!/usr/bin/env -S {trial.sys.executable} -I\nimport os, signal, sys, time\n{code}\n")
    program.chmod(0o755)
    monkeypatch.setattr(trial.sys, "executable", str(program))


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("sys.stderr.write('last words'); os.kill(os.getpid(), signal.SIGSEGV)", "segmentation fault"),
        ("sys.stderr.write('last words'); os.kill(os.getpid(), signal.SIGILL)", "instruction that this processor"),
        ("sys.stderr.write('last words'); os.kill(os.getpid(), signal.SIGKILL)", "killed"),
        ("sys.stderr.write('last words'); os.kill(os.getpid(), signal.SIGALRM)", "no verdict within"),
        ("sys.stderr.write('last words'); os.kill(os.getpid(), signal.SIGUSR1)", "ended by SIGUSR1"),
        ("sys.stderr.write('last words'); sys.exit(3)", "exit code 3"),
        ("sys.stderr.write('last words'); print('nonsense')", "without a verdict"),
        ("sys.stderr.write('x' * 10**6 + 'last words'); print('y' * 10**6)", "without a verdict"),
    ],
)
async def test_every_end_of_the_child_has_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, reason: str
) -> None:
    child(monkeypatch, tmp_path / "child", code.replace("; os.kill", "; sys.stderr.flush(); os.kill"))
    found = await run_trial(tmp_path, 0, 20.0)
    assert not found.passed
    assert reason in found.reason
    assert found.log_tail.endswith("last words")
    assert len(found.log_tail) <= trial.LOG_TAIL


async def test_a_deadline_ends_the_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child(
        monkeypatch, tmp_path / "child", f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    )
    begun = time.monotonic()
    found = await run_trial(tmp_path, 0, 1.0)
    assert time.monotonic() - begun < 10
    assert (found.passed, found.reason) == (False, "no verdict within 1 s")
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text()}").exists()


async def test_cancelling_ends_the_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child(
        monkeypatch, tmp_path / "child", f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    )
    task = asyncio.create_task(run_trial(tmp_path, 0, 50.0))
    async with asyncio.timeout(10):
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text()}").exists()


async def test_what_the_child_has_started_does_not_outlive_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    note = f"open({str(tmp_path / 'pid')!r}, 'w').write(str(other.pid))"
    start = "import subprocess; other = subprocess.Popen(['sleep', '60'])"
    child(monkeypatch, tmp_path / "child", f"{start}\n{note}\nsys.exit(3)")
    async with asyncio.timeout(20):  # it holds the pipes
        assert not (await run_trial(tmp_path, 0, 2.0)).passed
        while running(int((tmp_path / "pid").read_text())):  # it was sent the signal, and may still be dying
            await asyncio.sleep(0.005)


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_a_trial_that_cannot_be_started_says_nothing_about_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial.sys, "executable", str(tmp_path / "nothing"))
    with pytest.raises(DeviceError, match="cannot be started") as caught:
        await run_trial(tmp_path, 0, 2.0)
    assert caught.value.code == "no_trial"
