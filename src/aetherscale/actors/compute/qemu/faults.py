"""Faults of the host, in words for the user; `driver.py` turns it into `EffectFailed`."""

from __future__ import annotations

import errno
import re
from typing import Final

from aetherscale import shortage
from aetherscale.actors.compute.model.effects import (
    ApplyRules,
    BootVm,
    ComputeEffect,
    EndVm,
    PlugPort,
    ProvisionDisk,
    QuarantineVm,
    RemoveScript,
    RemoveVm,
    ShutDownVm,
    UnplugPort,
)
from aetherscale.kernel.fault import Fault

OPERATIONS: Final[dict[type[ComputeEffect], str]] = {
    ProvisionDisk: "make the disk of",
    BootVm: "start",
    ShutDownVm: "shut down",
    EndVm: "end",
    RemoveVm: "remove",
    QuarantineVm: "quarantine",
    ApplyRules: "apply the groups and forwards of",
    PlugPort: "plug a port into",
    UnplugPort: "unplug a port of",
    RemoveScript: "remove the init script of",
}
"""What each effect does to a VM, as an error says it."""

_LASTING: Final = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EACCES, errno.EPERM)
"""A fault that a second attempt a moment later does not fix."""


_NOT_FORWARDED: Final = re.compile(
    r"host forwarding rule '(?P<protocol>tcp|udp):(?P<address>[0-9.]+):(?P<port>[0-9]+)-"
)
"""QEMU's words for a port that was taken since it was tried (net/slirp.c)."""


def fault_of(operation: str, error: OSError) -> Fault:
    """An operating system's error while trying `operation`, with what to do where that is known."""
    reason = f"could not {operation}: {error.strerror or error}"
    if error.filename is not None:
        reason += f" ({error.filename})"
    hint = shortage.hint_of(error.errno)
    if not hint and error.errno in (errno.EACCES, errno.EPERM):
        hint = "the state directory must belong to the user whom the node runs as"
    return Fault(reason, remedy=hint, retryable=error.errno not in _LASTING)


def not_started(silent: str, ended: tuple[int | None, int | None] | None, accelerator: str | None, tail: str) -> Fault:
    """Why a start failed: QEMU ended with this exit code or signal, or was started and then `silent`."""
    if ended is None:
        return Fault(f"QEMU was started and then: {silent}", log_tail=tail)
    if taken := _NOT_FORWARDED.search(tail):
        return Fault(
            f"the port {taken['port']}/{taken['protocol']} of the host could not be opened on {taken['address']}",
            remedy=f"see what has it: ss -lnp 'sport = :{taken['port']}'",
            log_tail=tail,
        )
    code, number = ended
    how = f"exit code {code}" if number is None else f"signal {number}"
    hint = "the end of its log says why"
    if accelerator == "kvm":
        hint += "; if it is about KVM, run the node with --accelerator tcg"
    return Fault(f"QEMU ended at its start with {how}", remedy=hint, log_tail=tail)
