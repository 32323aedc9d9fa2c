from pathlib import Path

import pytest

from agent import durable
from agent.errors import DeviceError
from agent.serving.active import MAX_ATTEMPTS, ActiveFile, Place


def test_remembers_what_was_written(tmp_path: Path) -> None:
    file = ActiveFile(tmp_path / "serving")
    assert file.read() == {}
    file.write({"m": Place("b-1", "/builds/1")})
    assert ActiveFile(tmp_path / "serving").read() == {"m": Place("b-1", "/builds/1")}


def test_a_broken_file_counts_as_empty_and_can_be_written_again(tmp_path: Path) -> None:
    file = ActiveFile(tmp_path / "serving")
    file.write({})
    (tmp_path / "serving/active.json").write_bytes(b'{"m": 3')
    assert file.read() == {}
    file.write({"m": Place("b-1", "/1")})
    assert "m" in file.read()


def test_a_build_that_killed_the_process_is_left_out_at_last(tmp_path: Path) -> None:
    (tmp_path / "serving").mkdir()
    assert [ActiveFile(tmp_path / "serving").begin("b-1") for _ in range(MAX_ATTEMPTS + 1)] == [True] * 3 + [False]
    assert ActiveFile(tmp_path / "serving").begin("b-2")
    ActiveFile(tmp_path / "serving").done()
    assert ActiveFile(tmp_path / "serving").begin("b-1")


def test_a_power_cut_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    file = ActiveFile(tmp_path / "serving")
    file.write({"m": Place("old", "/old")})
    for point in ("serving.active:before", "serving.active:written", "serving.active:renamed"):

        def cut(name: str, at: str = point) -> None:
            if name == at:
                raise durable.PowerCut

        before = durable.set_hook(cut)
        try:
            with pytest.raises(durable.PowerCut):
                file.write({"m": Place("new", "/new")})
        finally:
            durable.set_hook(before)
        assert file.read()["m"].build in ("old", "new")


def test_a_directory_that_cannot_be_made_is_a_device_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DeviceError):
        ActiveFile(tmp_path / "file" / "serving").write({})
