"""Readings of this device's health, under a root directory.

Invariant: what cannot be read is None, never an estimate; a reading never raises. Values come from the kernel's files
with bounded reads, so that one pass costs a few milliseconds on a small board. Does not keep history except what a
share of processor time needs: the previous reading.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from agent.hardware.reading import Root, whole_number

# Zones that name the processor, the surest first; then any other but those known to tell something else.
_CPU_ZONES: Final = ("x86_pkg_temp", "cpu", "tj", "soc", "package")
_OTHER_ZONES: Final = ("pmic", "iwlwifi", "batt", "bat", "charger", "fan")
_HWMON: Final = ("coretemp", "k10temp", "cpu_thermal")
_LOWEST: Final = -60_000  # millidegrees; beyond these a sensor is not there, or lies
_HIGHEST: Final = 150_000
_MAILBOX_ERROR: Final = 0x8000_0000
# Bits of the firmware's word: what goes on now. The same flags 16 bits higher tell of any time since the start.
THROTTLING: Final = {"under_voltage": 0, "frequency_capped": 1, "throttled": 2, "soft_temperature_limit": 3}
_SINCE_BOOT: Final = 16


@dataclass(frozen=True, slots=True)
class Throttling:
    """Why the firmware slows the processor down: flags that hold now, and that held since the start."""

    now: frozenset[str]
    since_boot: frozenset[str]


@dataclass(frozen=True, slots=True)
class ProcessReading:
    """One process. cpu: processor time over time since the previous reading, 1.0 is one core. Sizes in bytes.

    pss: memory with shared pages counted in part; None where the kernel does not tell this user.
    """

    cpu: float | None = None
    rss: int | None = None
    pss: int | None = None


@dataclass(frozen=True, slots=True)
class Readings:
    """One pass over the sensors. Sizes in bytes, temperature in degrees Celsius with the zone it is of."""

    load: float | None = None
    memory_available: int | None = None
    disk_free: int | None = None
    temperature: float | None = None
    temperature_zone: str | None = None
    throttling: Throttling | None = None
    processes: Mapping[str, ProcessReading] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Spent:
    pid: int
    started: int
    ticks: int
    at: float


class Sensors:
    """Reads the device under ``root``; ``data`` is a folder on the disk that matters, None to leave the disk out."""

    def __init__(self, root: Path = Path("/"), data: Path | None = None) -> None:
        self._files = Root(root)
        self._data = data
        self._spent: dict[str, _Spent] = {}
        self._ticks_per_second = os.sysconf("SC_CLK_TCK")
        self._page = os.sysconf("SC_PAGE_SIZE")

    def read(self, processes: Mapping[str, int], now: float, *, pss: bool = True) -> Readings:
        """Return one pass; ``processes`` are process ids by name, ``now`` seconds of a clock that only goes forward.

        pss: whether to have the kernel walk through the processes' page tables, which costs milliseconds.
        """
        zone, temperature = self._temperature()
        found = {name: self._process(name, pid, now, pss) for name, pid in processes.items()}
        for name in self._spent.keys() - processes.keys():
            del self._spent[name]
        return Readings(
            load=_first_number(self._files.text("/proc/loadavg")),
            memory_available=_kilobytes(self._files.text("/proc/meminfo"), "MemAvailable"),
            disk_free=self._disk_free(),
            temperature=temperature,
            temperature_zone=zone,
            throttling=self._throttling(),
            processes=found,
        )

    def _disk_free(self) -> int | None:
        if self._data is None:
            return None
        try:
            return shutil.disk_usage(self._data).free
        except OSError:
            return None

    def _process(self, name: str, pid: int, now: float, pss: bool) -> ProcessReading:
        before = self._spent.pop(name, None)
        # The program's name stands in brackets and may hold anything: fields are counted after the last bracket.
        fields = (self._files.text(f"/proc/{pid}/stat") or "").rpartition(")")[2].split()
        if len(fields) < 22:
            return ProcessReading()
        user, system, started, pages = (whole_number(fields[index]) for index in (11, 12, 19, 21))
        cpu: float | None = None
        if user is not None and system is not None and started is not None:
            spent = _Spent(pid, started, user + system, now)
            self._spent[name] = spent
            if before and (before.pid, before.started) == (pid, started) and now > before.at:
                cpu = max(0.0, (spent.ticks - before.ticks) / self._ticks_per_second / (now - before.at))
        rollup = self._files.text(f"/proc/{pid}/smaps_rollup") if pss else None
        rss = _kilobytes(rollup, "Rss")
        if rss is None and pages is not None:
            rss = pages * self._page
        return ProcessReading(cpu=cpu, rss=rss, pss=_kilobytes(rollup, "Pss"))

    def _temperature(self) -> tuple[str | None, float | None]:
        """Return the zone and its temperature in degrees: of the processor where a zone names it, else the hottest."""
        candidates: list[tuple[int, float, str]] = []
        folder = "/sys/class/thermal"
        for entry in self._files.names(folder):
            if not entry.startswith("thermal_zone"):
                continue
            zone = self._files.word(f"{folder}/{entry}/type")
            degrees = self._degrees(f"{folder}/{entry}/temp")
            if zone is None or degrees is None or any(word in zone.lower() for word in _OTHER_ZONES):
                continue
            rank = next((i for i, word in enumerate(_CPU_ZONES) if word in zone.lower()), len(_CPU_ZONES))
            candidates.append((rank, -degrees, zone))
        folder = "/sys/class/hwmon"
        for entry in self._files.names(folder):
            chip = self._files.word(f"{folder}/{entry}/name")
            degrees = self._degrees(f"{folder}/{entry}/temp1_input")
            if chip in _HWMON and degrees is not None:
                candidates.append((len(_CPU_ZONES) - 1, -degrees, chip))
        if not candidates:
            return None, None
        _, degrees, zone = min(candidates)
        return zone, -degrees

    def _degrees(self, path: str) -> float | None:
        millidegrees = whole_number(self._files.word(path))
        if millidegrees is None or not _LOWEST < millidegrees < _HIGHEST:
            return None
        return millidegrees / 1000

    def _throttling(self) -> Throttling | None:
        # The folder's name changes between kernels: soc/soc:firmware, soc@107c000000/soc@107c000000:firmware, …
        folder = "/sys/devices/platform"
        for soc in self._files.names(folder):
            if soc != "soc" and not soc.startswith("soc@"):
                continue
            for device in self._files.names(f"{folder}/{soc}"):
                if device.endswith("firmware"):
                    word = self._files.word(f"{folder}/{soc}/{device}/get_throttled")
                    if (flags := _throttling(word)) is not None:
                        return flags
        return None


def _throttling(word: str | None) -> Throttling | None:
    # sysfs prints the word in hexadecimal without a prefix, the command-line tool with one.
    if word is None or not re.fullmatch(r"(0x)?[0-9a-fA-F]{1,8}", word):
        return None
    value = int(word, 16)
    if value >= _MAILBOX_ERROR:
        return None
    return Throttling(
        now=frozenset(name for name, bit in THROTTLING.items() if value >> bit & 1),
        since_boot=frozenset(name for name, bit in THROTTLING.items() if value >> bit + _SINCE_BOOT & 1),
    )


def _first_number(text: str | None) -> float | None:
    found = re.match(r"[0-9]{1,9}(\.[0-9]{1,9})?(?=\s|$)", text or "")
    return float(found.group()) if found else None


def _kilobytes(text: str | None, key: str) -> int | None:
    found = re.search(rf"^{key}:\s{{0,40}}([0-9]{{1,15}}) kB", text or "", re.MULTILINE)
    return int(found[1]) * 1024 if found else None
