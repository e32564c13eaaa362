"""Which process is a VM's: it works in the VM's directory, and its command line has the VM's UUID."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Final

from aetherscale.processes import identity
from aetherscale.processes.identity import age_s, boot_id, start_ticks

__all__ = ["age_s", "boot_id", "machine_uuid", "open_verified", "processes_of", "start_ticks"]

_NAMESPACE: Final = uuid.UUID("6d1b8ad4-0d3a-5c0e-9a4e-6165746865ff")


def machine_uuid(vm_id: str) -> str:
    """The UUID that QEMU has and the guest sees, the same in every run of the VM."""
    return str(uuid.uuid5(_NAMESPACE, vm_id))


def open_verified(pid: int, ticks: int, directory: Path, vm_id: str) -> int | None:
    """A pidfd of the process, where it is alive and it is the VM's; the caller closes it. None otherwise.

    `ticks` are from what the node has written, or of a process that is known to hold the VM's socket.
    """
    return identity.open_verified(pid, ticks, directory, machine_uuid(vm_id))


def processes_of(root: Path) -> list[tuple[str, int]]:
    """The VM's id and the pid of every process that works in the directory of a VM of ours, a deleted one too."""
    return identity.processes_below(root, machine_uuid)
