"""Matching: the surest rule wins, every decision has its sentence, and there is always an answer."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.hardware import describe
from agent.hardware.facts import Cpu, DeviceTree, Facts
from agent.hardware.match import UNKNOWN, UNLISTED, match, unmet
from device_profiles import Requirements, Rule, Runtime, load

BOARDS = Path(__file__).parent / "boards"
PROFILES = load()
EXPECTED = [
    ("captured/pi4-32bit-no-tree", "generic-armv7", 0.3),
    ("captured/pi4-64bit-no-tree", "generic-aarch64", 0.3),
    ("reconstructed/pi4", "raspberry_pi", 0.95),
    ("reconstructed/pi5", "raspberry_pi", 0.95),
    ("reconstructed/pi-zero-2-w-32bit-system", "raspberry_pi", 0.95),
    ("reconstructed/mac-m1", "apple-silicon", 0.9),
    ("reconstructed/nuc11", "generic-x86_64", 0.3),
    ("reconstructed/riscv64", "generic", 0.0),
]


@pytest.mark.parametrize(("board", "profile", "confidence"), EXPECTED)
def test_boards(board: str, profile: str, confidence: float) -> None:
    found = describe(BOARDS / board)
    assert (found["profile"], found["confidence"]) == (profile, confidence)


def test_every_board_is_tested() -> None:
    folders = {f"{kind.name}/{board.name}" for kind in BOARDS.iterdir() if kind.is_dir() for board in kind.iterdir()}
    assert folders == {board for board, _, _ in EXPECTED}


def test_evidence_names_fact_file_and_rule() -> None:
    first = describe(BOARDS / "reconstructed/pi4")["evidence"][0]
    assert "raspberrypi,4-model-b" in first
    assert "/proc/device-tree/compatible" in first
    assert "'raspberrypi,*' in a rule of raspberry_pi" in first


def test_an_odd_architecture_costs_confidence_but_not_the_family() -> None:
    tree = DeviceTree(compatible=("raspberrypi,4-model-b",))
    unknown = match(Facts(device_tree=tree), PROFILES)
    odd = match(Facts(device_tree=tree, arch="x86_64"), PROFILES)
    assert (unknown.profile.id, unknown.confidence) == ("raspberry_pi", pytest.approx(0.95 * UNKNOWN))
    assert (odd.profile.id, odd.confidence) == ("raspberry_pi", pytest.approx(0.95 * UNLISTED))
    assert any("'x86_64'" in sentence and "less confidence" in sentence for sentence in odd.evidence)


def test_an_intel_mac_is_not_apple_silicon() -> None:
    assert match(Facts(system="Darwin", arch="x86_64"), PROFILES).profile.id == "generic-x86_64"


def test_a_tie_goes_to_the_more_special_profile() -> None:
    family = PROFILES["raspberry_pi"]
    rule = Rule(confidence=0.95, compatible=("*,4-model-b",))
    board = type(family)(
        id="a-pi4",
        title="Pi 4",
        aliases=(),
        lineage=("a-pi4", *family.lineage),
        arch=family.arch,
        match=(rule,),
        runtimes=(),
        budgets=family.budgets,
    )
    facts = Facts(arch="aarch64", device_tree=DeviceTree(compatible=("raspberrypi,4-model-b",)))
    assert match(facts, {**PROFILES, "a-pi4": board}).profile.id == "a-pi4"


def test_a_pattern_fits_the_whole_entry() -> None:
    tree = DeviceTree(compatible=("notraspberrypi,4", "raspberrypi"))
    assert match(Facts(arch="aarch64", device_tree=tree), PROFILES).profile.id == "generic-aarch64"


def test_a_pattern_without_a_star_is_the_whole_entry() -> None:
    family = PROFILES["raspberry_pi"]
    exact = msgspec.structs.replace(family, match=(Rule(confidence=0.9, compatible=("raspberrypi,4",)),))
    for entry, fits in (("raspberrypi,4-model-b", False), ("raspberrypi,4", True)):
        facts = Facts(device_tree=DeviceTree(compatible=(entry,)))
        assert (match(facts, {"pi": exact}).confidence > 0) is fits


def test_without_any_profile_there_is_still_an_answer() -> None:
    found = match(Facts(), {})
    assert (found.profile.id, found.confidence) == ("generic", 0.0)
    assert "generic" in found.evidence[0]


@settings(max_examples=60)
@given(
    st.builds(
        Facts,
        arch=st.none() | st.sampled_from(["aarch64", "armv7l", "x86_64", "m68k"]) | st.text(max_size=20),
        system=st.none() | st.sampled_from(["Linux", "Darwin"]) | st.text(max_size=20),
        device_tree=st.builds(
            DeviceTree,
            model=st.none() | st.text(max_size=50),
            compatible=st.lists(st.text(max_size=40), max_size=5).map(tuple),
        ),
    )
)
def test_any_facts_get_an_answer(facts: Facts) -> None:
    found = match(facts, PROFILES)
    assert 1 <= len(found.evidence) <= 64
    assert all(len(sentence) <= 4096 for sentence in found.evidence)


def test_what_is_not_known_does_not_count_as_met() -> None:
    runtime = Runtime(
        name="engine",
        precision=("int8",),
        requires=Requirements(arch=("aarch64",), features=("asimddp",), glibc="2.27", python="3.11"),
    )
    fits = Facts(arch="aarch64", glibc="2.27", python="3.11.0", cpu=Cpu(features=("asimd", "asimddp")))
    assert unmet(runtime, fits) == ()
    assert len(unmet(runtime, Facts())) == 4
    old = Facts(arch="aarch64", glibc="2.4", python="3.9.18", cpu=Cpu(features=("asimddp",)))
    assert [reason.split()[1] for reason in unmet(runtime, old)] == ["glibc", "Python"]
