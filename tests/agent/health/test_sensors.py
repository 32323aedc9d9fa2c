"""Sensors: right values from a folder and from this machine, None for everything else."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.health.sensors import ProcessReading, Readings, Sensors

TICKS = os.sysconf("SC_CLK_TCK")


def put(root: Path, path: str, content: str) -> None:
    place = root / path
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(content)


def stat_line(pid: int, user: int, system: int, started: int, pages: int) -> str:
    fields = ["S", "1", *["0"] * 9, str(user), str(system), *["0"] * 6, str(started), "0", str(pages), *["0"] * 20]
    return f"{pid} (a )(b ) c) {' '.join(fields)}\n"


def test_an_empty_folder_reads_as_nothing(tmp_path: Path) -> None:
    assert Sensors(tmp_path).read({"agent": 1}, 0.0) == Readings(processes={"agent": ProcessReading()})


def test_load_and_memory(tmp_path: Path) -> None:
    put(tmp_path, "proc/loadavg", "0.52 0.58 0.59 1/602 1234\n")
    put(tmp_path, "proc/meminfo", "MemTotal: 3878088 kB\nMemAvailable:    3622200 kB\n")
    readings = Sensors(tmp_path).read({}, 0.0)
    assert (readings.load, readings.memory_available) == (0.52, 3622200 * 1024)


def test_processor_time_is_a_share_of_the_time_between_readings(tmp_path: Path) -> None:
    sensors = Sensors(tmp_path)
    put(tmp_path, "proc/7/stat", stat_line(7, 100, 50, 999, 10))
    put(tmp_path, "proc/7/smaps_rollup", "00400000-7fff [rollup]\nRss:    2048 kB\nPss:    1024 kB\nPss_Dirty: 5 kB\n")
    first = sensors.read({"serving": 7}, 100.0).processes["serving"]
    assert first == ProcessReading(cpu=None, rss=2048 * 1024, pss=1024 * 1024)
    put(tmp_path, "proc/7/stat", stat_line(7, 100 + TICKS, 50 + TICKS, 999, 10))
    assert sensors.read({"serving": 7}, 104.0).processes["serving"].cpu == pytest.approx(0.5)


def test_another_process_under_the_same_number_starts_anew(tmp_path: Path) -> None:
    sensors = Sensors(tmp_path)
    put(tmp_path, "proc/7/stat", stat_line(7, 500, 0, 999, 10))
    sensors.read({"serving": 7}, 100.0)
    put(tmp_path, "proc/7/stat", stat_line(7, 600, 0, 2000, 10))
    again = sensors.read({"serving": 7}, 101.0).processes["serving"]
    assert again == ProcessReading(cpu=None, rss=10 * os.sysconf("SC_PAGE_SIZE"), pss=None)
    sensors.read({}, 102.0)
    put(tmp_path, "proc/7/stat", stat_line(7, 700, 0, 2000, 10))
    assert sensors.read({"serving": 7}, 103.0).processes["serving"].cpu is None


def test_the_processors_zone_is_taken_before_hotter_ones(tmp_path: Path) -> None:
    for number, (zone, temp) in enumerate(
        [("PMIC-Die", "100000"), ("AO-therm", "61500"), ("CPU-therm", "47250"), ("iwlwifi_1", "70000")]
    ):
        put(tmp_path, f"sys/class/thermal/thermal_zone{number}/type", zone + "\n")
        put(tmp_path, f"sys/class/thermal/thermal_zone{number}/temp", temp + "\n")
    put(tmp_path, "sys/class/thermal/cooling_device0/type", "cpu-fan\n")
    readings = Sensors(tmp_path).read({}, 0.0)
    assert (readings.temperature_zone, readings.temperature) == ("CPU-therm", 47.25)
    put(tmp_path, "sys/class/thermal/thermal_zone2/temp", "-256000\n")
    readings = Sensors(tmp_path).read({}, 0.0)
    assert (readings.temperature_zone, readings.temperature) == ("AO-therm", 61.5)


def test_a_pc_without_zones_tells_through_hwmon(tmp_path: Path) -> None:
    put(tmp_path, "sys/class/hwmon/hwmon0/name", "nvme\n")
    put(tmp_path, "sys/class/hwmon/hwmon0/temp1_input", "80000\n")
    put(tmp_path, "sys/class/hwmon/hwmon1/name", "coretemp\n")
    put(tmp_path, "sys/class/hwmon/hwmon1/temp1_input", "51000\n")
    readings = Sensors(tmp_path).read({}, 0.0)
    assert (readings.temperature_zone, readings.temperature) == ("coretemp", 51.0)


@pytest.mark.parametrize(
    ("folder", "word", "now", "since_boot"),
    [
        ("soc/soc:firmware", "0\n", set(), set()),
        ("soc/soc:firmware", "80000\n", set(), {"soft_temperature_limit"}),
        ("soc/soc:firmware", "80008\n", {"soft_temperature_limit"}, {"soft_temperature_limit"}),
        ("soc@107c000000/soc@107c000000:firmware", "50005\n", {"under_voltage", "throttled"},
         {"under_voltage", "throttled"}),
        ("soc/soc:firmware", "0x2\n", {"frequency_capped"}, set()),
    ],
)  # fmt: skip
def test_throttling_flags(tmp_path: Path, folder: str, word: str, now: set[str], since_boot: set[str]) -> None:
    put(tmp_path, f"sys/devices/platform/{folder}/get_throttled", word)
    throttling = Sensors(tmp_path).read({}, 0.0).throttling
    assert throttling is not None
    assert (throttling.now, throttling.since_boot) == (now, since_boot)


@pytest.mark.parametrize("word", ["80000001\n", "", "hot\n", "123456789\n"])
def test_an_answer_that_is_no_flags_is_unknown(tmp_path: Path, word: str) -> None:
    put(tmp_path, "sys/devices/platform/soc/soc:firmware/get_throttled", word)
    assert Sensors(tmp_path).read({}, 0.0).throttling is None


def test_this_machine(tmp_path: Path) -> None:
    sensors = Sensors(Path("/"), tmp_path)
    sensors.read({"agent": os.getpid()}, 10.0)
    readings = sensors.read({"agent": os.getpid()}, 11.0)
    process = readings.processes["agent"]
    assert readings.load is not None
    assert readings.memory_available
    assert readings.disk_free
    assert process.cpu is not None
    assert 0 <= process.cpu < 64
    assert process.rss is not None
    assert process.rss > 1024**2


def test_a_disk_that_is_gone_is_unknown(tmp_path: Path) -> None:
    assert Sensors(tmp_path, tmp_path / "gone").read({}, 0.0).disk_free is None


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(
        [
            "proc/loadavg",
            "proc/meminfo",
            "proc/7/stat",
            "proc/7/smaps_rollup",
            "sys/class/thermal/thermal_zone0/type",
            "sys/class/thermal/thermal_zone0/temp",
            "sys/class/hwmon/hwmon0/temp1_input",
            "sys/devices/platform/soc/soc:firmware/get_throttled",
        ]
    ),
    st.binary(max_size=200),
)
def test_garbage_never_raises(path: str, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        put(root, "sys/class/thermal/thermal_zone0/type", "cpu-thermal\n")
        put(root, "sys/class/thermal/thermal_zone0/temp", "40000\n")
        put(root, "sys/class/hwmon/hwmon0/name", "coretemp\n")
        put(root, "proc/7/stat", stat_line(7, 1, 1, 1, 1))
        put(root, path, "")
        (root / path).write_bytes(content)
        sensors = Sensors(root)
        sensors.read({"serving": 7}, 1.0)
        sensors.read({"serving": 7}, 2.0)
