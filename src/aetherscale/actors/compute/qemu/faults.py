"""Faults of the host, in words for the user; `driver.py` turns it into `EffectFailed`."""

from __future__ import annotations

import errno
from typing import Final

from aetherscale import shortage
from aetherscale.kernel.fault import Fault

_LASTING: Final = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EACCES, errno.EPERM)
"""A fault that a second attempt a moment later does not fix."""


def fault_of(operation: str, error: OSError) -> Fault:
    """An operating system's error while trying `operation`, with what to do where that is known."""
    reason = f"could not {operation}: {error.strerror or error}"
    if error.filename is not None:
        reason += f" ({error.filename})"
    hint = shortage.hint_of(error.errno)
    if not hint and error.errno in (errno.EACCES, errno.EPERM):
        hint = "the state directory must belong to the user whom the node runs as"
    return Fault(reason, hint=hint, retryable=error.errno not in _LASTING)
