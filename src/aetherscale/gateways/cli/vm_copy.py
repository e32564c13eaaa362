"""`vm copy`: one file from here into a guest, or from a guest to here.

The bytes are the streams of a program in the guest (`guestprogram.py`). No copy is taken for whole before its digest
has been compared, and what was interrupted goes on where it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from aetherscale.bus.bus import BusUnavailable
from aetherscale.gateways.cli.context import Context
from aetherscale.gateways.cli.copypaths import place_of, shown
from aetherscale.gateways.cli.failures import FAILED, NO_NODE, Failure, bad_usage
from aetherscale.gateways.cli.guestprogram import GuestProgram
from aetherscale.gateways.cli.output import Progress
from aetherscale.gateways.cli.place import start
from aetherscale.gateways.cli.work import suggesting

SHORT_S: Final = 30.0
UNSIZED_BYTES: Final = 64 * 1024 * 1024
"""The most that is taken of a file that has no size, like those of /proc."""
LONG_S: Final = 3600.0
"""For what reads all of a file in the guest."""
MOST_SAID: Final = 500
"""How much is told of what a guest complains of."""
STEP_S: Final = 0.5
_MIB: Final = 1024 * 1024

Advance = Callable[[int], None]
"""So many bytes of the file are where they shall be."""


def copy(context: Context) -> None:
    """Copy one file."""
    from aetherscale.gateways.cli.copyfrom import copy_from
    from aetherscale.gateways.cli.copyto import copy_to

    source, target = place_of(context.values["SOURCE"]), place_of(context.values["TARGET"])
    if bool(source.vm) == bool(target.vm):
        got = "two files here" if not source.vm else "two VMs"
        raise bad_usage(
            f"vm copy: got {got}, expected a file here and one of a VM",
            "aetherscale vm copy FILE NAME:/path, or: aetherscale vm copy NAME:/path FILE",
        )
    vm = source.vm or target.vm
    began_s = time.monotonic()
    try:
        with context.out.progress(vm) as progress, suggesting(context, "vm", vm):
            done = (copy_to if target.vm else copy_from)(context, source, target, progress)
    except KeyboardInterrupt:
        failure = Failure(500, "vm copy: interrupted", hint="the same command goes on where this one was")
        failure.is_interrupt = True
        raise failure from None
    except BusUnavailable as away:
        what = f"the connection to the node was lost: {away}"
        raise Failure(503, what, hint=start(context.settings), status=NO_NODE) from None
    took_s = time.monotonic() - began_s
    if context.out.json:
        context.out.value({**done, "seconds": round(took_s, 3)})
    else:
        size_bytes = int(done["size-bytes"])
        had_bytes = int(done["resumed-bytes"])
        went_on = f", {_mib(had_bytes)} of them before" if had_bytes else ""
        rate = _rate((size_bytes - had_bytes) / max(1e-3, took_s))
        context.out.line(f"{shown(done['target'])}: {_mib(size_bytes)} in {took_s:.1f} s, {rate}{went_on}")


def run(context: Context, vm: str, script: str, *arguments: str, timeout_s: float = SHORT_S) -> str:
    """The one line that a script in the guest answers. Raises `Failure`."""
    options = {"vm-id": vm, "command": ["sh", "-c", script, "sh", *arguments], "timeout-s": timeout_s}
    said = context.client.result("compute", "exec-vm", options, timeout_s=timeout_s + 10)
    if said["exit-code"] != 0:
        raise complaint(str(said["stderr"]))
    return str(said["stdout"])[:MOST_SAID].removesuffix("\n")


def complaint(said: str) -> Failure:
    """The failure of a script in a guest, in the guest's words."""
    words = " ".join(said.split())[:MOST_SAID]
    return Failure(500, f"vm copy: the guest could not do it: {words or 'it did not say why'}")


def no_room(where: str, path: str, size_bytes: int, hint: str) -> Failure:
    """The failure of a copy whose target is full, and has nothing of it any more."""
    return Failure(
        507,
        f"vm copy: {where} has no room for the {_mib(size_bytes)} of {shown(path)}; what had come was removed",
        hint=hint,
        status=FAILED,
    )


def unfinished(program: GuestProgram, vm: str) -> Failure:
    """The failure of a copy whose program was lost on the way."""
    what = "the VM has ended, or its node does" if program.has_ended else "it has not ended"
    return Failure(
        503,
        f"vm copy: the copy was cut off: {what}",
        hint=f"aetherscale vm show {vm}; the same command goes on where this one was",
    )


def advancing(progress: Progress, size_bytes: int, done_bytes: int) -> Advance:
    """Shows how far a copy is."""
    began_s = last_s = time.monotonic()
    first_bytes = done_bytes

    def advance(now_bytes: int) -> None:
        nonlocal last_s
        now_s = time.monotonic()
        if now_s - last_s < STEP_S:
            return
        last_s = now_s
        rate = (now_bytes - first_bytes) / max(1e-3, now_s - began_s)
        left = f", {(size_bytes - now_bytes) / rate:.0f} s left" if rate and now_bytes < size_bytes else ""
        progress.measure("copying", f"{_mib(now_bytes)} of {_mib(size_bytes)}, {_rate(rate)}{left}")

    return advance


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / _MIB:.1f} MiB" if size_bytes >= _MIB else f"{size_bytes} bytes"


def _rate(bytes_s: float) -> str:
    return f"{bytes_s / _MIB:.1f} MiB/s"
