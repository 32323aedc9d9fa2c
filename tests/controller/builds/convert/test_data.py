"""The data file: what is read, and what is refused before memory is taken."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from controller.builds.convert.data import InputRefusedError, TensorSpec, count, read_data

SPECS = (TensorSpec("x", "FP32", (-1, 4)),)
ROWS = np.zeros((20, 4), np.float32)


def test_rows_come_back_as_they_were_written(write_data: Any) -> None:
    rows = np.arange(80, dtype=np.float32).reshape(20, 4)
    data = read_data(write_data(golden_x=rows, calibration_x=np.asfortranarray(rows)), SPECS)
    assert np.array_equal(data.golden["x"], rows[:16]), "no more than 16 golden rows"
    assert np.array_equal(data.calibration["x"], rows)
    assert data.labels is not None
    assert (count(data.heldout), len(data.labels)) == (100, 100)


def test_compressed_files_are_read(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "data.npz", golden_x=ROWS)
    assert count(read_data(tmp_path / "data.npz", SPECS).golden) == 16


def test_golden_rows_are_taken_from_elsewhere_when_there_are_none(write_data: Any) -> None:
    assert count(read_data(write_data(golden_x=None), SPECS).golden) == 16
    only = write_data(golden_x=None, heldout_x=None, heldout_label=None)
    assert count(read_data(only, SPECS).golden) == 16


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (Path("/tmp/muster-pickle-ran"), "ran"))


def test_a_pickled_object_is_refused_and_never_loaded(write_data: Any) -> None:
    objects = np.empty(100, object)
    objects[0] = Evil()
    with pytest.raises(InputRefusedError, match="pickled"):
        read_data(write_data(heldout_label=objects), SPECS)
    assert not Path("/tmp/muster-pickle-ran").exists()


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("wrong dtype", {"golden_x": np.zeros((4, 4))}, "float64"),
    ("wrong shape", {"golden_x": np.zeros((4, 5), np.float32)}, r"shape \(4, 5\)"),
    ("wrong rank", {"golden_x": np.zeros(4, np.float32)}, "shape"),
    ("unknown name", {"calibraton_x": ROWS}, "calibraton_x"),
    (
        "no rows at all",
        {"golden_x": None, "heldout_x": None, "heldout_label": None, "calibration_x": None},
        "no golden",
    ),
    ("labels without rows", {"heldout_x": None}, "one whole number"),
    ("too few labels", {"heldout_label": np.zeros(99, np.int64)}, "one whole number"),
    ("labels are no numbers", {"heldout_label": np.zeros(100)}, "one whole number"),
    ("too many rows", {"calibration_x": np.zeros((10_001, 4), np.float32)}, "at most 10000"),
    ("a single number", {"heldout_label": np.int64(3)}, "needs rows"),
]


@pytest.mark.parametrize(("case", "changes", "words"), REFUSED, ids=[row[0] for row in REFUSED])
def test_what_does_not_fit_is_refused(case: str, changes: dict[str, Any], words: str, write_data: Any) -> None:
    with pytest.raises(InputRefusedError, match=words):
        read_data(write_data(**changes), SPECS)


def test_inputs_must_have_equally_many_rows(write_data: Any) -> None:
    two = (*SPECS, TensorSpec("z", "INT64", (-1,)))
    with pytest.raises(InputRefusedError, match="some inputs only"):
        read_data(write_data(), two)
    zeros = {f"{part}_z": np.zeros(size, np.int64) for part, size in (("calibration", 64), ("heldout", 100))}
    with pytest.raises(InputRefusedError, match="different numbers"):
        read_data(write_data(golden_z=np.zeros(3, np.int64), **zeros), two)


def forged(path: Path, shape: str, body: bytes = b"") -> Path:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("golden_x.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + body)
    return path


@pytest.mark.parametrize(
    "shape", ["(1000000000000, 4)", "(9, 4)", "(-1, 4)", "(2, -2)", "('a',)", "__import__('os')", "(True, 4)", "((((("]
)
def test_a_header_that_promises_more_than_there_is(tmp_path: Path, shape: str) -> None:
    with pytest.raises(InputRefusedError):
        read_data(forged(tmp_path / "data.npz", shape, bytes(64)), SPECS)


def test_an_archive_that_unpacks_to_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controller.builds.convert.data.MAX_BYTES", 1000)
    np.savez_compressed(tmp_path / "data.npz", golden_x=np.zeros((100, 4), np.float32))
    with pytest.raises(InputRefusedError, match="1000 are allowed"):
        read_data(tmp_path / "data.npz", SPECS)


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x05\x06" + bytes(18), pickle.dumps([1])])
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "data.npz"
    path.write_bytes(content)
    with pytest.raises(InputRefusedError):
        read_data(path, SPECS)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_an_archive_with_a_wrong_byte_is_refused_however_it_was_packed(tmp_path: Path, method: int) -> None:
    array, path = io.BytesIO(), tmp_path / "data.npz"
    np.save(array, np.random.default_rng(1).random((200, 4), np.float32))
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("golden_x.npy", array.getvalue())
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(InputRefusedError):
        read_data(path, SPECS)


def test_a_truncated_archive_is_refused(write_data: Any) -> None:
    path = write_data()
    whole = path.read_bytes()
    buffer = io.BytesIO(whole)
    assert zipfile.is_zipfile(buffer)
    for share in (0.2, 0.9, 0.999):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(InputRefusedError):
            read_data(path, SPECS)
