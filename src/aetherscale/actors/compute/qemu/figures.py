"""What the processes of VMs use, by /proc (proc_pid_stat(5), proc_pid_statm(5)), and guests of their disks, by QMP."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from msgspec import Struct

from aetherscale.actors.compute.model.figures import DiskUse, Figures
from aetherscale.actors.compute.qemu.machine import Machine
from aetherscale.actors.compute.qemu.session import Rejected, Unresponsive, shaped
from aetherscale.actors.network.ports import VmPorts

DISK: Final = "disk0"
"""The id of the guest's disk in its QEMU."""
DISK_S: Final = 1.0
"""How long a QEMU may take to say what its guest has had of its disk."""
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_UTIME, _STIME, _START = 11, 12, 19
"""Fields of /proc/PID/stat, counted from the one behind the name."""


class BlockStats(Struct, frozen=True):
    """A part of one of the answer to `query-blockstats`."""

    rd_bytes: int
    rd_operations: int
    wr_bytes: int
    wr_operations: int


class BlockUse(Struct, frozen=True):
    """One of the answer to `query-blockstats`."""

    stats: BlockStats
    qdev: str = ""


async def figures(machines: Iterable[Machine], ports: VmPorts) -> Mapping[str, Figures]:
    """Those of all machines that live, by their VMs' ids. All QEMUs are asked at one time."""
    living = [machine for machine in machines if not machine.gone.is_set()]
    disks = await asyncio.gather(*map(_disk, living))
    found: dict[str, Figures] = {}
    for machine, disk in zip(living, disks, strict=True):
        used = _process(machine)
        if used is not None:
            vm_id = machine.directory.vm_id
            found[vm_id] = Figures(*used, disk, ports.traffic(vm_id))
    return found


def _process(machine: Machine) -> tuple[float, int] | None:
    """CPU seconds and resident bytes; None where the process has gone, whoever has its number now."""
    try:
        place = Path(f"/proc/{machine.pid}")
        fields = (place / "stat").read_text(errors="replace").rpartition(")")[2].split()
        resident_pages = int((place / "statm").read_text().split()[1])
    except (OSError, IndexError):
        return None
    if len(fields) <= _START or int(fields[_START]) != machine.start_ticks:
        return None
    return (int(fields[_UTIME]) + int(fields[_STIME])) / _TICKS, resident_pages * _PAGE_BYTES


async def _disk(machine: Machine) -> DiskUse | None:
    try:
        async with asyncio.timeout(DISK_S):
            said = shaped(await machine.ask("query-blockstats"), list[BlockUse])
    except (Unresponsive, Rejected, TimeoutError):
        return None
    # The path of the guest's device, as /machine/peripheral/disk0/virtio-backend.
    of_guest = [each.stats for each in said if f"/{DISK}/" in each.qdev]
    if len(of_guest) != 1:
        return None
    stats = of_guest[0]
    return DiskUse(stats.rd_bytes, stats.rd_operations, stats.wr_bytes, stats.wr_operations)
