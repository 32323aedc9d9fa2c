"""The probe: right about known boards, silent about what it cannot read, and never a word of this machine."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.hardware import cgroups
from agent.hardware.facts import Facts
from agent.hardware.match import match
from agent.hardware.probe import probe, runtimes
from agent.hardware.reading import Root
from device_profiles import load

BOARDS = Path(__file__).parent / "boards"
PI4 = BOARDS / "reconstructed/pi4"
PI4_FILES = sorted(str(path.relative_to(PI4)) for path in PI4.rglob("*") if path.is_file())


def test_a_board_is_read_completely() -> None:
    facts = probe(PI4)
    assert (facts.system, facts.machine, facts.arch, facts.kernel) == ("Linux", "aarch64", "aarch64", "6.1.61-v8+")
    assert (facts.glibc, facts.python) == ("2.31", "3.11.9")
    assert facts.cpu.model == "Cortex-A72"
    assert facts.cpu.cores == 4
    assert facts.cpu.features == ("asimd",)
    assert facts.memory.total_bytes == 3833280 * 1024
    assert facts.memory.limits_enforced is False
    assert facts.device_tree.compatible == ("raspberrypi,4-model-b", "brcm,bcm2711")
    assert facts.device_tree.model == "Raspberry Pi 4 Model B Rev 1.5"
    assert (facts.os.id, facts.os.version) == ("debian", "11")
    assert facts.boot_id == "0b9d6f3a-6a55-4c8e-9d3e-0c1c2f6f7a10"
    assert facts.sources["compatible"] == "/proc/device-tree/compatible"


def test_the_firmware_tree_stands_in_for_the_one_in_proc() -> None:
    facts = probe(BOARDS / "reconstructed/pi5")
    assert facts.device_tree.compatible[0] == "raspberrypi,5-model-b"
    assert facts.sources["compatible"] == "/sys/firmware/devicetree/base/compatible"
    assert "asimddp" in facts.cpu.features


def test_a_32_bit_system_under_a_64_bit_kernel_needs_32_bit_programs() -> None:
    facts = probe(BOARDS / "reconstructed/pi-zero-2-w-32bit-system")
    assert (facts.machine, facts.arch) == ("aarch64", "armv7l")


def test_a_pc_tells_its_firmware_names_and_features() -> None:
    facts = probe(BOARDS / "reconstructed/nuc11")
    assert facts.dmi.product_name == "NUC11TNHi5"
    assert facts.cpu.vendor == "GenuineIntel"
    assert "avx512_vnni" in facts.cpu.features


def test_nothing_of_this_machine_gets_into_a_folder(tmp_path: Path) -> None:
    assert probe(tmp_path) == Facts()
    assert probe(tmp_path / "missing", data=Path("/")) == Facts()


def test_this_machine_is_known() -> None:
    facts = probe(Path("/"), data=Path("/nowhere/at/all"))
    assert facts.arch
    assert facts.python == ".".join(map(str, sys.version_info[:3]))
    assert facts.cpu.cores
    assert facts.memory.total_bytes
    assert facts.disk.path == "/"
    assert facts.disk.free_bytes
    assert facts.clock_plausible is True
    assert json.loads(json.dumps(facts.as_dict())) == facts.as_dict()


def test_cores_on_line_are_counted_from_ranges(tmp_path: Path) -> None:
    shutil.copytree(PI4, tmp_path / "board")
    online = tmp_path / "board/sys/devices/system/cpu/online"
    for content, cores in (("0-2,5\n", 4), ("0\n", 1), ("0-9,3-1\n", 4), ("garbage", 4), ("0-999999\n", 4)):
        online.write_text(content)
        assert probe(tmp_path / "board").cpu.cores == cores  # 4 from cpuinfo where the list makes no sense


def test_engines_are_named_without_being_imported() -> None:
    found = {engine["name"]: engine["version"] for engine in runtimes()}
    assert found["onnxruntime"][0].isdigit()
    assert "pycoral" not in found


@pytest.mark.parametrize("name", PI4_FILES)
def test_a_missing_or_empty_file_leaves_the_rest(tmp_path: Path, name: str) -> None:
    board = tmp_path / "board"
    shutil.copytree(PI4, board)
    (board / name).write_bytes(b"")
    _check_family(board, name)
    (board / name).unlink()
    _check_family(board, name)
    (board / name).mkdir()
    _check_family(board, name)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(PI4_FILES), content=st.binary(max_size=300), keep=st.integers(0, 200))
def test_garbage_in_any_file_never_raises(tmp_path: Path, name: str, content: bytes, keep: int) -> None:
    board = tmp_path / "board"
    if not board.exists():
        shutil.copytree(PI4, board)
    whole = (board / name).read_bytes()
    try:
        (board / name).write_bytes(whole[:keep] + content)
        _check_family(board, name)
    finally:
        (board / name).write_bytes(whole)


def _check_family(board: Path, mutated: str) -> None:
    facts = probe(board)
    assert len(json.dumps(facts.as_dict())) < 16_384
    found = match(facts, load())
    if mutated != "proc/device-tree/compatible":
        assert found.profile.id == "raspberry_pi"
    assert 0 <= found.confidence <= 1
    assert found.evidence


def test_the_tightest_limit_up_to_the_top_counts(tmp_path: Path) -> None:
    groups = tmp_path / "sys/fs/cgroup"
    (groups / "system.slice/muster.service").mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/system.slice/muster.service\n")
    (groups / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    (groups / "system.slice/memory.max").write_text("536870912\n")
    (groups / "system.slice/muster.service/memory.max").write_text("max\n")
    assert cgroups.memory_limit(Root(tmp_path)) == 536870912
    (groups / "system.slice/muster.service/memory.max").write_text("268435456\n")
    assert cgroups.memory_limit(Root(tmp_path)) == 268435456
    assert cgroups.limits_enforced(Root(tmp_path)) is True


def test_version_1_limits_and_a_path_that_is_not_mounted(tmp_path: Path) -> None:
    memory = tmp_path / "sys/fs/cgroup/memory"
    memory.mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("4:memory:/docker/0123\n1:name=systemd:/../..\n0::/\nnonsense\n")
    (memory / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert cgroups.memory_limit(Root(tmp_path)) is None
    (memory / "memory.limit_in_bytes").write_text("1073741824\n")
    assert cgroups.memory_limit(Root(tmp_path)) == 1073741824
    assert cgroups.limits_enforced(Root(tmp_path)) is True


def test_a_kernel_with_the_controller_off_says_so(tmp_path: Path) -> None:
    assert cgroups.limits_enforced(Root(tmp_path)) is None
    (tmp_path / "proc").mkdir()
    cgroup_table = tmp_path / "proc/cgroups"
    cgroup_table.write_text("#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t0\t60\t1\nmemory\t0\t60\t0\n")
    assert cgroups.limits_enforced(Root(tmp_path)) is False
    cgroup_table.write_text("memory\t0\t60\t1\n")
    assert cgroups.limits_enforced(Root(tmp_path)) is True
