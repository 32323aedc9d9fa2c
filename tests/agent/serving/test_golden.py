from pathlib import Path

import numpy as np
import pytest

from agent.errors import ServingError
from agent.serving.golden import NOT_COMPARABLE, compare, percentile, read_golden


def arrays(*values: float) -> dict[str, np.ndarray]:
    return {"y": np.array(values, np.float32)}


def test_reads_inputs_and_outputs(tmp_path: Path) -> None:
    np.savez(tmp_path / "g.npz", input_x=np.zeros(2), output_y=np.ones(2))
    golden = read_golden(tmp_path / "g.npz")
    assert list(golden.inputs) == ["x"]
    assert golden.outputs["y"].tolist() == [1, 1]


def test_pickles_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "g.npz", input_x=np.array([{}], dtype=object), output_y=np.ones(2))
    with pytest.raises(ServingError, match="cannot be read"):
        read_golden(tmp_path / "g.npz")


def test_nonsense_and_half_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "g.npz").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(ServingError, match="cannot be read"):
        read_golden(tmp_path / "g.npz")
    np.savez(tmp_path / "h.npz", input_x=np.zeros(2))
    with pytest.raises(ServingError, match="no output_"):
        read_golden(tmp_path / "h.npz")


def test_tolerance_is_the_largest_absolute_difference() -> None:
    assert compare(arrays(1, 2), arrays(1, 2.5), 0.5).passed
    found = compare(arrays(1, 2), arrays(1, 2.5), 0.4)
    assert (found.passed, found.difference) == (False, 0.5)


@pytest.mark.parametrize(
    "actual", [{}, arrays(1), {"y": np.ones((2, 1))}, arrays(1, float("nan")), arrays(1, float("inf"))]
)
def test_what_cannot_be_compared_fails(actual: dict[str, np.ndarray]) -> None:
    found = compare(arrays(1, 2), actual, 1e9)
    assert (found.passed, found.difference) == (False, NOT_COMPARABLE)


def test_equal_infinities_and_labels_compare() -> None:
    assert compare(arrays(float("inf"), 1), arrays(float("inf"), 1), 0.0).passed
    assert not compare({"y": np.array([3])}, {"y": np.array([4])}, 0.5).passed
    assert compare({"y": np.array([True])}, {"y": np.array([True])}, 0.0).passed


def test_percentile_is_a_value_that_was_seen() -> None:
    values = [5.0, 1.0, 3.0, 2.0, 4.0]
    assert [percentile(values, share) for share in (0.0, 0.5, 0.95, 1.0)] == [1.0, 3.0, 5.0, 5.0]
