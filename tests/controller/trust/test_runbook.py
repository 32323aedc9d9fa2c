"""The commands of docs/guide/keys.md, one after the other, as somebody would type them."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from controller.builds.sign import builder_key
from tests.controller.trust.conftest import Device, Done, Served, entry

PAGE = Path(__file__).parents[3] / "docs/guide/keys.md"
NAMED = {"init", "renew", "rotate", "revoke", "finish", "status"}


def lines() -> list[str]:
    """Every line of every block, with continued lines joined."""
    blocks = re.findall(r"^```(?:sh)?\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def test_the_page_names_every_command() -> None:
    assert {name for name in NAMED if f"muster keys {name}" in PAGE.read_text()} == NAMED


def test_every_command_works_in_the_order_of_the_page(
    served: Served,
    muster: Callable[..., Done],
    new_device: Callable[..., Device],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    served.publish(1)
    device = new_device()
    monkeypatch.chdir(tmp_path)
    Path("passphrase.txt").write_text("a passphrase of the page\n")
    Path("builder.pub").write_text(builder_key(served.data).public)
    ran = 0
    for line in lines():
        program, *words = shlex.split(line)
        if program == "mkdir":
            for name in words[1:]:
                Path(name).mkdir(parents=True)
            continue
        assert program == "muster", line
        status = json.loads(muster("keys", "status", "--json").out)
        root = next(key["keyid"] for key in status["keys"] if key["role"] == "root")
        done = muster(*[root[:12] if word == "KEYID" else word for word in words])
        assert done.code == 0, f"{line}\n{done.err}"
        device.must_find(entry(1).path)
        ran += 1
    assert ran >= 8
