"""Which process is which: boot id, pid and start ticks name one for as long as the host is up; a pid alone never does.

A process is ours where its start ticks are those that are on record, it works in the VM's directory, and its command
line names the VM. Only then is it watched, or ended, and only through its pidfd.

Where a process works is not always for us to see: root in a container without CAP_SYS_PTRACE may not look at processes
of other users. What is on record, or who holds the VM's socket in a directory that is ours alone, says as much.
"""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path
from typing import Final

_NAMESPACE: Final = uuid.UUID("6d1b8ad4-0d3a-5c0e-9a4e-6165746865ff")
_START_TICKS_FIELD: Final = 22


def machine_uuid(vm_id: str) -> str:
    """The UUID that QEMU has and the guest sees, the same in every run of the VM."""
    return str(uuid.uuid5(_NAMESPACE, vm_id))


def boot_id() -> str:
    """The id of the host's present boot (proc(5), random/boot_id)."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_ticks(pid: int) -> int | None:
    """When the process started, in clock ticks since boot (proc(5), field 22 of stat); None where there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field is the program's name in parentheses, and may itself hold blanks and parentheses.
    fields = stat[stat.rindex(b")") + 2 :].split()
    return int(fields[_START_TICKS_FIELD - 3])


def age_s(ticks: int) -> int:
    """For how many seconds there has been a process that started then, also while the host was suspended."""
    return max(0, int(time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")))


def open_verified(pid: int, ticks: int, directory: Path, vm_id: str) -> int | None:
    """A pidfd of the process, where it is alive and it is the one; the caller closes it. None otherwise.

    `ticks` are from what the node has written, or of a process that is known to hold the VM's socket. The pidfd is
    opened before anything is looked at, so that what was checked is what it stands for.
    """
    if pid <= 1:
        return None
    try:
        pidfd = os.pidfd_open(pid)
    except (OSError, OverflowError):
        return None
    if start_ticks(pid) == ticks and _may_work_in(pid, directory) and _names(pid, vm_id):
        return pidfd
    os.close(pidfd)
    return None


def processes_of(root: Path) -> list[tuple[str, int]]:
    """The VM's id and the pid of every process that works in the directory of a VM of ours, a deleted one too."""
    prefix = f"{root.resolve()}/"
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            place = os.readlink(f"/proc/{name}/cwd")
        except OSError:
            # It has ended, or belongs to another user.
            continue
        if place.startswith(prefix):
            vm_id = place.removeprefix(prefix).removesuffix(" (deleted)")
            if _names(int(name), vm_id):
                found.append((vm_id, int(name)))
    return found


def _may_work_in(pid: int, directory: Path) -> bool:
    """Whether it works there, as far as this process may see."""
    try:
        if directory.exists():
            return os.path.samestat(os.stat(f"/proc/{pid}/cwd"), directory.stat())
        return os.readlink(f"/proc/{pid}/cwd") == f"{directory.resolve()} (deleted)"
    except PermissionError:
        return True
    except OSError:
        return False


def _names(pid: int, vm_id: str) -> bool:
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return machine_uuid(vm_id).encode() in arguments
