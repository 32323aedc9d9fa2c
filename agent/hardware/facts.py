"""What is known about a machine, as plain data.

Invariant: what could not be read is None (or an empty list), never a guess; sizes are bytes. ``Facts.sources`` says for
each fact that recognition uses where it was read. Nothing here identifies a person or a single device: serial numbers
and addresses are left out on purpose.
"""

from __future__ import annotations

from typing import Any

import msgspec


class Cpu(msgspec.Struct, frozen=True, kw_only=True):
    """cores: logical processors that are on line. features: those that matter to inference, sorted.

    implementer, part: Arm's numbers of the first core, as hexadecimal text.
    """

    vendor: str | None = None
    model: str | None = None
    implementer: str | None = None
    part: str | None = None
    cores: int | None = None
    features: tuple[str, ...] = ()


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """limit_bytes: the tightest control-group limit over this process, None for no limit.

    limits_enforced: False where the kernel has the memory controller off, so that limits are ignored without a word.
    """

    total_bytes: int | None = None
    limit_bytes: int | None = None
    limits_enforced: bool | None = None

    @property
    def usable_bytes(self) -> int | None:
        """What all programs together may use: the total, or the limit where that is smaller."""
        known = [value for value in (self.total_bytes, self.limit_bytes) if value is not None]
        return min(known) if self.total_bytes is not None else None


class DeviceTree(msgspec.Struct, frozen=True, kw_only=True):
    """compatible: the most specific entry first."""

    model: str | None = None
    compatible: tuple[str, ...] = ()


class Dmi(msgspec.Struct, frozen=True, kw_only=True):
    """What a PC's firmware says about itself."""

    system_vendor: str | None = None
    product_name: str | None = None
    board_vendor: str | None = None
    board_name: str | None = None
    bios_version: str | None = None


class OperatingSystem(msgspec.Struct, frozen=True, kw_only=True):
    """From os-release: id such as "debian", version such as "12", title for people."""

    id: str | None = None
    version: str | None = None
    title: str | None = None


class Disk(msgspec.Struct, frozen=True, kw_only=True):
    """The file system that holds ``path``."""

    path: str | None = None
    total_bytes: int | None = None
    free_bytes: int | None = None


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """One machine. machine: the kernel's name for it. arch: what programs here must be built for.

    The two differ where a 32-bit system runs under a 64-bit kernel. clock_plausible: False where the clock shows a
    year before this program was written.
    """

    system: str | None = None
    machine: str | None = None
    arch: str | None = None
    kernel: str | None = None
    glibc: str | None = None
    python: str | None = None
    python_bits: int | None = None
    cpu: Cpu = Cpu()
    memory: Memory = Memory()
    device_tree: DeviceTree = DeviceTree()
    dmi: Dmi = Dmi()
    os: OperatingSystem = OperatingSystem()
    disk: Disk = Disk()
    clock_year: int | None = None
    clock_plausible: bool | None = None
    boot_id: str | None = None
    sources: dict[str, str] = {}

    def as_dict(self) -> dict[str, Any]:
        """Return the facts as plain JSON values."""
        return msgspec.json.decode(msgspec.json.encode(self), type=dict[str, Any])
