"""Reads what a machine is, under a root directory.

Invariant: never fails and never guesses: a file that is missing, empty or garbage leaves its fact None. With a root
other than "/" nothing of this machine gets in; what no file of a device holds (`uname`, versions) is then read from
small text files named after the command (see ``CAPTURED``). Does not judge what the facts mean (``match``), opens no
device and imports no engine.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Final

from agent.hardware import cgroups
from agent.hardware.facts import Cpu, DeviceTree, Disk, Dmi, Facts, Memory, OperatingSystem
from agent.hardware.reading import MAX_VALUE, Root, clean, whole_number

# File at the top of a captured board -> the command whose output it holds.
CAPTURED: Final = {
    "uname-m": "uname -m",
    "uname-s": "uname -s",
    "gnu-libc-version": "getconf GNU_LIBC_VERSION",
    "python-version": "python3 -V",
    "long-bit": "getconf LONG_BIT",
}
EARLIEST_YEAR: Final = 2026
ENGINES: Final = ("onnxruntime", "onnxruntime-gpu", "openvino", "ai-edge-litert", "tflite-runtime")

_FEATURES: Final = frozenset(
    {
        *("neon", "vfpv4", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2"),
        *("sse4_2", "avx", "f16c", "fma", "avx2", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16"),
        *("avx_vnni", "amx_int8", "amx_bf16"),
    }
)
# (implementer, part) -> the core's name, for people.
_CORES: Final = {
    ("0x41", "0xb76"): "ARM1176",
    ("0x41", "0xc07"): "Cortex-A7",
    ("0x41", "0xd03"): "Cortex-A53",
    ("0x41", "0xd07"): "Cortex-A57",
    ("0x41", "0xd08"): "Cortex-A72",
    ("0x41", "0xd0b"): "Cortex-A76",
}
_DEVICE_TREES: Final = ("/proc/device-tree", "/sys/firmware/devicetree/base")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")
_VERSION: Final = re.compile(r"[0-9]{1,4}(?:\.[0-9]{1,4}){1,3}")
_BOOT_ID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_MAX_COMPATIBLE: Final = 32
_MAX_CORES: Final = 65_536


def probe(root: Path = Path("/"), data: Path | None = None) -> Facts:
    """Return the facts of the machine whose files lie under ``root``.

    data: where the agent keeps its data; tells which file system's free space is meant ("/" when not given).
    """
    files = Root(root)
    sources: dict[str, str] = {}
    system = _captured_name(files, "uname-s", platform.system() if files.live else None, "system", sources)
    machine = _captured_name(files, "uname-m", platform.machine() if files.live else None, "arch", sources)
    bits = _python_bits(files)
    year = time.gmtime().tm_year if files.live else None
    return Facts(
        system=system,
        machine=machine,
        arch=_arch(machine, bits, sources),
        kernel=files.word("/proc/sys/kernel/osrelease") or (clean(platform.release()) if files.live else None),
        glibc=_glibc(files),
        python=_version(files.text("/python-version")) or (platform.python_version() if files.live else None),
        python_bits=bits,
        cpu=_cpu(files),
        memory=_memory(files),
        device_tree=_device_tree(files, sources),
        dmi=_dmi(files),
        os=_operating_system(files),
        disk=_disk(data or Path("/")) if files.live else Disk(),
        clock_year=year,
        clock_plausible=None if year is None else year >= EARLIEST_YEAR,
        boot_id=_boot_id(files),
        sources=sources,
    )


def runtimes() -> list[dict[str, str]]:
    """Return the installed engine packages of this Python as ``{"name": …, "version": …}``; imports none of them."""
    found: list[dict[str, str]] = []
    for name in ENGINES:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        # A half-removed package has a folder but no metadata: then there is no version to rely on.
        if version:
            found.append({"name": name, "version": version})
    return found


def _captured_name(files: Root, file: str, live: str | None, fact: str, sources: dict[str, str]) -> str | None:
    for value, source in ((files.word(f"/{file}"), file), (live, CAPTURED[file])):
        if value and _NAME.fullmatch(value):
            sources[fact] = source
            return value
    return None


def _python_bits(files: Root) -> int | None:
    captured = whole_number(files.word("/long-bit"))
    if captured in (32, 64):
        return captured
    return (64 if sys.maxsize > 1 << 32 else 32) if files.live else None


def _arch(machine: str | None, bits: int | None, sources: dict[str, str]) -> str | None:
    # A 32-bit system under a 64-bit kernel: `uname -m` names the kernel, but only 32-bit programs can be loaded.
    narrow = {"aarch64": "armv7l", "x86_64": "i686"}.get(machine or "")
    if bits == 32 and narrow is not None:
        sources["arch"] += f" says {machine}, but programs here are 32-bit"
        return narrow
    return machine


def _glibc(files: Root) -> str | None:
    captured = _version(files.text("/gnu-libc-version"))
    if captured is not None or not files.live:
        return captured
    try:
        return _version(os.confstr("CS_GNU_LIBC_VERSION"))
    except (OSError, ValueError):  # another C library has no such name
        return None


def _version(text: str | None) -> str | None:
    found = _VERSION.search(text[:MAX_VALUE]) if text else None
    return found.group() if found else None


def _cpu(files: Root) -> Cpu:
    first: dict[str, str] = {}
    processors = 0
    for line in (files.text("/proc/cpuinfo") or "").splitlines():
        key, colon, value = line.partition(":")
        if not colon:
            continue
        key = key.strip()
        processors += key == "processor"
        first.setdefault(key, value.strip())
    implementer = clean(first.get("CPU implementer", ""))
    part = clean(first.get("CPU part", ""))
    words = f"{first.get('flags', '')} {first.get('Features', '')}".split()
    return Cpu(
        vendor=clean(first.get("vendor_id", "")),
        model=clean(first.get("model name", "")) or _CORES.get((implementer or "", part or "")),
        implementer=implementer,
        part=part,
        # The list of those on line first: cpuinfo of a large machine is longer than what is read of it.
        cores=_count(files.word("/sys/devices/system/cpu/online")) or processors or _live_cores(files),
        features=tuple(sorted(_FEATURES.intersection(words))),
    )


def _count(ranges: str | None) -> int | None:
    """Return how many numbers a list such as "0-3,8" names, or None."""
    total = 0
    for piece in ranges.split(",") if ranges else ():
        found = re.fullmatch(r"([0-9]{1,6})(?:-([0-9]{1,6}))?", piece)
        if found is None:
            return None
        low, high = int(found[1]), int(found[2] or found[1])
        if high < low:
            return None
        total += high - low + 1
    return total if 0 < total <= _MAX_CORES else None


def _live_cores(files: Root) -> int | None:
    return os.cpu_count() if files.live else None


def _memory(files: Root) -> Memory:
    found = re.search(r"^MemTotal:\s{0,20}([0-9]{1,15}) kB", files.text("/proc/meminfo") or "", re.MULTILINE)
    total = int(found[1]) * 1024 if found else None
    if total is None and files.live:
        try:
            total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (OSError, ValueError):
            total = None
    return Memory(
        total_bytes=total if total and total > 0 else None,
        limit_bytes=cgroups.memory_limit(files),
        limits_enforced=cgroups.limits_enforced(files),
    )


def _device_tree(files: Root, sources: dict[str, str]) -> DeviceTree:
    model: str | None = None
    compatible: tuple[str, ...] = ()
    for tree in _DEVICE_TREES:
        model = model or files.word(f"{tree}/model")
        if not compatible:
            content = files.text(f"{tree}/compatible") or ""
            values = [clean(value) for value in content.split("\0")[:_MAX_COMPATIBLE]]
            compatible = tuple(value for value in values if value is not None)
            if compatible:
                sources["compatible"] = f"{tree}/compatible"
    return DeviceTree(model=model, compatible=compatible)


def _dmi(files: Root) -> Dmi:
    folder = "/sys/class/dmi/id"
    return Dmi(
        system_vendor=files.word(f"{folder}/sys_vendor"),
        product_name=files.word(f"{folder}/product_name"),
        board_vendor=files.word(f"{folder}/board_vendor"),
        board_name=files.word(f"{folder}/board_name"),
        bios_version=files.word(f"{folder}/bios_version"),
    )


def _operating_system(files: Root) -> OperatingSystem:
    values: dict[str, str] = {}
    text = files.text("/etc/os-release") or files.text("/usr/lib/os-release") or ""
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        if equals:
            values.setdefault(key, value.strip().strip("\"'"))
    return OperatingSystem(
        id=clean(values.get("ID", "")),
        version=clean(values.get("VERSION_ID", "")),
        title=clean(values.get("PRETTY_NAME", "")),
    )


def _disk(data: Path) -> Disk:
    place = data.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        usage = shutil.disk_usage(place)
    except OSError:
        return Disk(path=str(place))
    return Disk(path=str(place), total_bytes=usage.total, free_bytes=usage.free)


def _boot_id(files: Root) -> str | None:
    value = files.word("/proc/sys/kernel/random/boot_id")
    return value if value and _BOOT_ID.fullmatch(value) else None
