"""Faults of the host, in words for the user; `driver.py` turns it into `EffectFailed`."""

from __future__ import annotations

import errno
from typing import Final

from aetherscale import shortage

_LASTING: Final = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EACCES, errno.EPERM)
"""A fault that a second attempt a moment later does not fix."""


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
    hint = shortage.hint_of(error.errno)
    if not hint and error.errno in (errno.EACCES, errno.EPERM):
        hint = "the state directory must belong to the user whom the node runs as"
    return HostFault(reason, hint=hint, retryable=error.errno not in _LASTING)
