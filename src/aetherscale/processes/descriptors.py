"""What another process has open, and a copy of it: pidfd_getfd(2), of Linux 5.6."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

_PIDFD_GETFD: Final = 438
_libc: Final = ctypes.CDLL(None, use_errno=True)


def copied(pidfd: int, number: int) -> int:
    """A copy of a descriptor of a process, which the caller closes. It closes on exec.

    OSError: the process has ended (ESRCH), has no such descriptor (EBADF), or may not be looked into (EPERM): it takes
    what ptrace(2) takes.
    """
    found = int(_libc.syscall(_PIDFD_GETFD, pidfd, number, 0))
    if found < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"descriptor {number} cannot be copied: {os.strerror(code)}")
    return found


def of_tap(pid: int, tap: str) -> int | None:
    """The number of the descriptor by which a process has a tap; None where it has none.

    OSError: the process has ended, or may not be looked into.
    """
    for described in Path(f"/proc/{pid}/fdinfo").iterdir():
        # It may have been closed meanwhile.
        with suppress(FileNotFoundError):
            if f"iff:\t{tap}\n" in described.read_text():
                return int(described.name)
    return None
