"""What docs/guide/hardware.md tells people to type works."""

from __future__ import annotations

import re
import shutil
import subprocess
from importlib import resources
from pathlib import Path

import device_profiles
from agent.hardware import describe
from agent.hardware.facts import DeviceTree, Facts
from agent.hardware.match import match

GUIDE = (Path(__file__).parents[3] / "docs/guide/hardware.md").read_text()


def block(language: str, holding: str) -> str:
    found = [text for text in re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL) if holding in text]
    assert len(found) == 1
    return str(found[0])


def test_the_example_profile_can_be_read_and_matches(tmp_path: Path) -> None:
    with resources.as_file(resources.files(device_profiles)) as shipped:
        for file in shipped.glob("*.toml"):
            shutil.copy(file, tmp_path)
    (tmp_path / "my-board.toml").write_text(block("toml", "my-board"))
    profiles = device_profiles.read_profiles(tmp_path)
    facts = Facts(arch="aarch64", device_tree=DeviceTree(compatible=("acme,my-board-v2", "acme,soc")))
    assert match(facts, profiles).profile.id == "my-board"


def test_the_capture_commands_make_a_board_that_reads_like_this_machine(tmp_path: Path) -> None:
    subprocess.run(["sh", "-eu", "-c", block("sh", "mkdir -p board")], cwd=tmp_path, check=True, timeout=60)
    here, board = describe(), describe(tmp_path / "board")
    assert board["profile"] == here["profile"]
    for fact in ("arch", "machine", "system", "kernel", "glibc", "os", "cpu", "device_tree"):
        assert board["facts"][fact] == here["facts"][fact], fact


def test_the_evidence_in_the_guide_is_what_a_board_gives() -> None:
    found = describe(Path(__file__).parent / "boards/reconstructed/pi4")
    for sentence in found["evidence"]:
        assert sentence in GUIDE


def test_every_shipped_profile_is_named() -> None:
    assert all(f"`{name}`" in GUIDE for name in device_profiles.load())
