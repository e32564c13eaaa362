"""How large a VM can be here: what QEMU takes, and what this process may give it.

Whatever is too large is refused before QEMU is started, with the number that works: QEMU would say it in words of its
own, and the kernel would say it later, to the guest.
"""

from __future__ import annotations

import fcntl
import resource
from bisect import bisect_right
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Literal

from aetherscale.actors.compute.driver import beyond_host
from aetherscale.actors.compute.model import switches
from aetherscale.actors.compute.qemu import accel, vde
from aetherscale.actors.compute.qemu.disk import MIB
from aetherscale.kernel.errors import Reason, Refused
from aetherscale.kernel.fault import Fault
from aetherscale.processes import launch
from aetherscale.runtime import memory

OVERHEAD_MIB: Final = 128
"""The memory that QEMU takes beside the guest's."""
ADDRESS_SPACE_MIB: Final = 1536
"""The address space that QEMU maps beside the guest's memory, a stack of 8 MiB for each thread and its caches among it.
"""
CPUS_OF_EVERY_QEMU: Final = 255
"""A machine with more has APIC ids beyond 8 bits, which takes an x2APIC: emulated since QEMU 9."""

_LEAST_MEMORY_MIB: Final = 32
_DISK_SIZES_GIB: Final = range(1, 64 * 1024 + 1)
"""The most CPUs that `create-vm` takes."""

_CPUS_ANYWHERE: Final = 4096
_KVM_CHECK_EXTENSION: Final = 0xAE03
_KVM_CAP_MAX_VCPUS: Final = 66


class Ceilings:
    """Remembers what QEMU has said."""

    def __init__(self) -> None:
        self._refusals: dict[tuple[str, str, int], str] = {}

    async def require_cpus(self, cpus: int, accelerator: Literal["kvm", "tcg"], qemu: str, jail: launch.Jail) -> None:
        """Raises `Fault` for more CPUs than a VM can have here, and `OSError`."""
        most, why = (_most_of_kvm(), "KVM has no more") if accelerator == "kvm" else (cpus, "")
        if min(cpus, most) > CPUS_OF_EVERY_QEMU:
            refusal = await self._refusal(cpus, accelerator, qemu, jail)
            if refusal:
                most, why = CPUS_OF_EVERY_QEMU, refusal
        if cpus > most:
            raise Fault(
                f"a VM can have at most {most} CPUs on this host under {accelerator.upper()}, not {cpus}: {why}",
                remedy=f"create it with at most {most} CPUs",
                retryable=False,
            )

    async def _refusal(self, cpus: int, accelerator: Literal["kvm", "tcg"], qemu: str, jail: launch.Jail) -> str:
        key = (accel.fingerprint(qemu), accelerator, cpus)
        if key not in self._refusals:
            self._refusals[key] = await accel.refusal_of_cpus(accelerator, qemu, jail, cpus)
        return self._refusals[key]


class HostCeilings:
    """The ceilings before a VM is made: what would keep it from being started is refused before it has anything.

    `groups` are the control groups of VMs. How many CPUs it can have is known when QEMU is asked, at its start.
    """

    def __init__(self, groups: Callable[[], Sequence[Path]]) -> None:
        self._groups = groups

    def require(self, memory_mib: int, disk_mib: int) -> None:
        """As in `driver.HostLimits`."""
        groups = self._groups()
        total_mib = memory.room(groups).total_mib
        if memory_mib + OVERHEAD_MIB > total_mib:
            why = f"VMs of this host have {total_mib} MiB, of which QEMU takes {OVERHEAD_MIB} MiB"
            raise beyond_host(memory_mib, max(total_mib - OVERHEAD_MIB, 0), why)
        try:
            require_memory(memory_mib, groups)
        except Fault as fault:
            raise _refused(Reason.UNAVAILABLE, fault, "memory-mib") from fault
        try:
            require_file_size(disk_mib)
        except Fault as fault:
            raise _refused(Reason.BAD_REQUEST, fault, "disk-gib") from fault

    def require_switch(self, path: str) -> None:
        """As in `driver.HostLimits`."""
        try:
            vde.require(path)
        except Fault as fault:
            raise _refused(Reason.CONFLICT, fault, switches.FIELD) from fault


def _refused(reason: Reason, fault: Fault, field: str) -> Refused:
    return Refused(reason, fault.reason, field=field, remedy=fault.remedy, retryable=reason is Reason.UNAVAILABLE)


def require_memory(memory_mib: int, groups: Sequence[Path]) -> None:
    """Raises `Fault` where a guest's memory and what QEMU takes beside it are more than can be had now."""
    room = memory.room(groups)
    _require(memory_mib, OVERHEAD_MIB, room.available_mib, f"are available {room.where}", "stop another VM")
    most_bytes, _ = resource.getrlimit(resource.RLIMIT_AS)
    if most_bytes != resource.RLIM_INFINITY:
        where = "of address space are allowed to this node's programs"
        _require(memory_mib, ADDRESS_SPACE_MIB, most_bytes // MIB, where, "raise the node's limit: ulimit -v, LimitAS=")


def _require(memory_mib: int, beside_mib: int, available_mib: int, where: str, otherwise: str) -> None:
    if memory_mib + beside_mib <= available_mib:
        return
    most_mib = available_mib - beside_mib
    number = f": at most {most_mib} MiB" if most_mib >= _LEAST_MEMORY_MIB else ""
    raise Fault(
        f"not enough memory: the VM needs {memory_mib} MiB and QEMU {beside_mib} MiB beside it, "
        f"{available_mib} MiB {where}",
        remedy=f"{otherwise}, or create this one with less memory{number}",
        retryable=False,
    )


def file_limit_bytes(disk_mib: int) -> int:
    """The size to which the overlay can grow, with its tables; no file that QEMU writes is larger.

    Of each 64 KiB of the disk the tables take 8 bytes to find it and 2 to count it, and that is less than a thousandth.
    """
    return (disk_mib + disk_mib // 1024 + 64) * MIB


def require_file_size(disk_mib: int) -> None:
    """Raises `Fault` where a limit of this process keeps QEMU from filling the VM's disk."""
    if may_write(file_limit_bytes(disk_mib)):
        return
    _, most_bytes = resource.getrlimit(resource.RLIMIT_FSIZE)
    most_gib = bisect_right(_DISK_SIZES_GIB, most_bytes, key=lambda gib: file_limit_bytes(gib * 1024))
    number = f"; or create the VM with a disk of {most_gib} GiB" if most_gib else ""
    raise Fault(
        f"the VM's disk of {disk_mib} MiB can grow to a file of {file_limit_bytes(disk_mib) // MIB} MiB, and this "
        f"node's programs may write {most_bytes // MIB} MiB to a file: the guest would lose what it writes",
        remedy=f"raise the limit of the node: ulimit -f, LimitFSIZE={number}",
        retryable=False,
    )


def may_write(size_bytes: int) -> bool:
    """Whether a process that is started here can be allowed files of this size (setrlimit(2), RLIMIT_FSIZE)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if hard == resource.RLIM_INFINITY or size_bytes <= hard:
        return True
    try:
        # Only CAP_SYS_RESOURCE of the first user namespace lets it, which is known by trying.
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, size_bytes))
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    except (ValueError, OSError):
        return False
    return True


def _most_of_kvm() -> int:
    """How many CPUs KVM gives a VM; the most that a request may have where KVM does not say."""
    try:
        with accel.KVM.open("rb", buffering=0) as kvm:
            return fcntl.ioctl(kvm, _KVM_CHECK_EXTENSION, _KVM_CAP_MAX_VCPUS) or _CPUS_ANYWHERE
    except OSError:
        return _CPUS_ANYWHERE
