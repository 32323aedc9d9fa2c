from __future__ import annotations

import asyncio
import os
import socket
import subprocess
from pathlib import Path

import pytest

from agent.errors import DeviceError
from agent.instance import is_running, notify, single_instance, watch_owner


def test_one_agent_a_data_directory(tmp_path: Path) -> None:
    assert not is_running(tmp_path)
    with single_instance(tmp_path / "a"):
        assert is_running(tmp_path / "a")
        with pytest.raises(DeviceError) as info, single_instance(tmp_path / "a"):
            pass
        assert info.value.code == "running"
        with single_instance(tmp_path / "b"):
            pass
    assert not is_running(tmp_path / "a")


async def test_the_owners_end_is_noticed() -> None:
    end = asyncio.Event()
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    await asyncio.wait_for(watch_owner(gone.pid, end), 5)
    assert end.is_set()
    none = asyncio.Event()
    await asyncio.wait_for(watch_owner(0, none), 5)
    assert not none.is_set()
    task = asyncio.create_task(watch_owner(os.getpid(), none))
    await asyncio.sleep(0.05)
    task.cancel()
    assert not none.is_set()


def test_the_service_manager_is_told_where_it_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(2)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        notify("READY=1")
        assert manager.recv(100) == b"READY=1"
    notify("READY=1")  # nobody listens any more: not this program's business
