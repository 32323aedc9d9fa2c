"""The answer of `muster-agent profile`: plain JSON with the promised keys, for any directory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from agent.hardware import describe
from wire import codec
from wire.messages import Facts

BOARDS = Path(__file__).parent / "boards"
KEYS = {"profile", "aliases", "title", "confidence", "evidence", "facts", "accelerators", "runtimes", "budgets"}


@pytest.mark.parametrize("root", ["/", str(BOARDS / "reconstructed/pi4"), "/does/not/exist"])
def test_the_answer_is_plain_json_and_fits_the_facts_message(root: str) -> None:
    found = describe(Path(root))
    assert set(found) == KEYS
    assert json.loads(json.dumps(found)) == found
    fields = {key: found[key] for key in ("profile", "title", "confidence", "evidence", "facts", "runtimes")}
    message = msgspec.convert(fields | {"at": 1.0, "agent_version": "1"}, Facts)
    assert len(codec.encode(message)) < 65_536


def test_budgets_come_from_the_memory_that_may_be_used() -> None:
    found = describe(BOARDS / "reconstructed/pi4")
    assert found["budgets"] == {
        "agent_memory_bytes": 120 * 1024**2,
        "model_memory_bytes": int(3833280 * 1024 * 0.4),
    }
    assert describe(Path("/does/not/exist"))["budgets"]["model_memory_bytes"] is None


def test_engines_of_this_machine_are_not_told_of_a_folder() -> None:
    rows = describe(BOARDS / "reconstructed/pi4")["runtimes"]
    assert [(row["name"], row["version"], row["usable"]) for row in rows] == [("onnxruntime", None, False)]
    assert rows[0]["reasons"] == ["whether it is installed cannot be seen in a folder"]


def test_describing_imports_no_engine() -> None:
    code = (
        "import sys; from agent.hardware import describe; describe(); "
        "print([name for name in ('onnxruntime', 'numpy', 'openvino') if name in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert output.stdout.strip() == "[]"
