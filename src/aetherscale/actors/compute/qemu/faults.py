"""What goes wrong on the host, in words for the user; `driver.py` turns it into `EffectFailed`."""

from __future__ import annotations

import errno


class HostFault(Exception):
    """The host could not do it: one sentence that says what was tried and got, what to do, and the log's end."""

    def __init__(self, reason: str, *, hint: str = "", retryable: bool = True, log_tail: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint
        self.retryable = retryable
        self.log_tail = log_tail


def fault_of(operation: str, error: OSError) -> HostFault:
    """An operating system's error while trying `operation`, with what to do where that is known."""
    reason = f"could not {operation}: {error.strerror or error}"
    if error.filename is not None:
        reason += f" ({error.filename})"
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return HostFault(reason, hint="make room on the disk of the state directory: df -h", retryable=False)
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return HostFault(
                reason, hint="the state directory must belong to the user whom the node runs as", retryable=False
            )
        case errno.EMFILE | errno.ENFILE:
            return HostFault(reason, hint="raise the limit of open files: ulimit -n, LimitNOFILE=")
        case errno.EFBIG:
            hint = "raise the largest file that the node may write: ulimit -f, LimitFSIZE="
            return HostFault(reason, hint=hint, retryable=False)
        case errno.EAGAIN:
            hint = "the node may have no more processes: ulimit -u, LimitNPROC=, TasksMax=, pids.max"
            return HostFault(reason, hint=hint)
        case errno.ENOMEM:
            hint = "stop another VM, or raise the memory that the node may have: ulimit -v, MemoryMax="
            return HostFault(reason, hint=hint)
        case _:
            return HostFault(reason)
