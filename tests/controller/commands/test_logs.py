"""What the controller's processes log, and what never."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import pytest
import structlog

from controller.commands.logs import configure

SECRET = "mut.abcdefghijklmnop.a-secret-that-nobody-may-read-in-a-log"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    structlog.reset_defaults()


@pytest.mark.parametrize("output", [io.StringIO(), Terminal()], ids=["file", "terminal"])
def test_a_traceback_says_where_and_never_what_a_variable_held(output: io.StringIO) -> None:
    configure("info", output)

    def fail(token: str) -> None:
        headers = {"authorization": f"Bearer {token}"}
        raise ValueError(f"{len(headers)} headers")

    try:
        fail(SECRET)
    except ValueError:
        structlog.get_logger().exception("a request failed")
    logged = output.getvalue()
    assert "1 headers" in logged
    assert "test_logs.py" in logged
    assert "a-secret" not in logged
    if not output.isatty():
        assert json.loads(logged)["exception"][0]["exc_type"] == "ValueError"
