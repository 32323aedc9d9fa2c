"""What assignment and repository must agree on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.errors import TrustError
from agent.trust.protocol import TEMPORARY, Target
from agent.trust.vouching import build_path, require_vouched
from tests.agent.trust.conftest import CODES

PATH = build_path("pi5", "digits", "b-" + "0" * 32)
SHA256 = "a" * 64
TARGET = Target(path=PATH, length=300, sha256=SHA256, custom={}, hashes={"sha256": SHA256}, file="x")


def test_every_code_is_explained_in_the_guide() -> None:
    guide = (Path(__file__).parents[3] / "docs/guide/trust-on-the-device.md").read_text()
    assert len(CODES) > 15
    missing = {code for code in CODES | TEMPORARY | {"not_vouched", "disagree"} if f"`{code}`" not in guide}
    assert not missing


def test_a_build_lies_below_its_profile_and_model() -> None:
    assert PATH == "builds/pi5/digits/b-00000000000000000000000000000000.json"


def test_what_both_name_may_be_installed() -> None:
    require_vouched(PATH, TARGET, SHA256, 300)


def test_what_the_repository_does_not_have_may_not() -> None:
    with pytest.raises(TrustError, match="wait until") as caught:
        require_vouched(PATH, None, SHA256, 300)
    assert caught.value.code == "not_vouched"


@pytest.mark.parametrize(
    "changes", [{"sha256": "b" * 64}, {"sha256": ""}, {"length": 301}, {"path": PATH.replace("pi5", "pi4")}]
)
def test_what_they_name_differently_may_not(changes: dict[str, Any]) -> None:
    with pytest.raises(TrustError) as caught:
        require_vouched(PATH, msgspec.structs.replace(TARGET, **changes), SHA256, 300)
    assert caught.value.code == "disagree"
