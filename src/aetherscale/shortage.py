"""Shortages of a process, and their remedies: limits and errors of the system, in words.

Limits of a process are inherited, so a node has them from its shell, its unit or its container: setrlimit(2).
"""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from typing import Final, NamedTuple

THREADS: Final = "no further process or thread could be started"
MORE_THREADS: Final = "the node may have no more processes and threads: ulimit -u, LimitNPROC=, TasksMax=, pids.max"
_MORE_FILES: Final = "raise the limit of open files: ulimit -n, LimitNOFILE="
_LARGER_FILES: Final = "raise the largest file that the node may write: ulimit -f, LimitFSIZE="
_MORE_MEMORY: Final = "stop another VM, or raise the memory that the node may have: ulimit -v, MemoryMax="
_ROOM: Final = "make room on the disk of the state directory: df -h; df -i"
_HINTS: Final = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: f"{_ROOM}; quota",
    errno.EROFS: "the file system is mounted read-only: mount -o remount,rw, or give another --state-dir DIR",
    errno.EMFILE: _MORE_FILES,
    errno.ENFILE: _MORE_FILES,
    errno.EFBIG: _LARGER_FILES,
    errno.EAGAIN: MORE_THREADS,
    errno.ENOMEM: _MORE_MEMORY,
}

GIB: Final = 1024**3
FILE_FLOOR_BYTES: Final = 2 * GIB
OPEN_FILES_FLOOR: Final = 1024
PROCESSES_FLOOR: Final = 512
ADDRESS_FLOOR_BYTES: Final = 4 * GIB


class Low(NamedTuple):
    """A limit of this process that is low for a node."""

    found: str
    remedy: str


def hint_of(number: int | None) -> str:
    """The remedy for an error of the system; "" where that depends on the operation."""
    return _HINTS.get(number or 0, "")


def lacks_threads(error: BaseException) -> bool:
    """Whether Python could start no thread, for which it has no exception of its own."""
    return isinstance(error, RuntimeError) and str(error) in (
        "can't start new thread",
        "cannot join thread before it is started",
    )


def beyond_file_limit() -> str:
    """Words to add to "the disk is full" where a limit of this process may be what is meant; else ""."""
    most_bytes, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if most_bytes == resource.RLIM_INFINITY:
        return ""
    return f", or the file is as large as the node may make one ({most_bytes} bytes: ulimit -f, LimitFSIZE=)"


def low_limits() -> Iterator[Low]:
    """The limits of this process that are low for a node of a few VMs."""
    files, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if files < FILE_FLOOR_BYTES and files != resource.RLIM_INFINITY:
        found = f"a node started from here may write no file larger than {files} bytes, its log and disks among them"
        yield Low(found, _LARGER_FILES)
    _, open_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    if open_files < OPEN_FILES_FLOOR and open_files != resource.RLIM_INFINITY:
        yield Low(f"a node started from here may open {open_files} files, and each VM takes six", _MORE_FILES)
    processes, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    # The kernel does not hold root to it.
    if os.geteuid() != 0 and processes < PROCESSES_FLOOR and processes != resource.RLIM_INFINITY:
        yield Low(f"this user may have {processes} processes and threads", MORE_THREADS)
    space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if space < ADDRESS_FLOOR_BYTES and space != resource.RLIM_INFINITY:
        found = f"programs started from here may have {space // 1024**2} MiB of address space, QEMU among them"
        yield Low(found, "raise the limit: ulimit -v, LimitAS=")
