"""What a VM has written to its serial line, read from its log whether or not its process is there."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from aetherscale.actors.compute.driver import LogRange
from aetherscale.actors.compute.qemu.console import stored_log, written_out
from aetherscale.actors.compute.qemu.layout import VmDirectory
from aetherscale.actors.compute.qemu.machine import Machine
from aetherscale.actors.compute.qemu.seriallog import SerialLog
from aetherscale.kernel.errors import Reason, Refused


async def recorded(
    directory: VmDirectory, machine: Machine | None, wanted: LogRange, *, follow: bool
) -> AsyncGenerator[bytes, None]:
    """As `logs` in `ComputeDriver`; `machine` is the last process of the VM that is known."""
    if not directory.exists():
        raise Refused(Reason.NOT_FOUND, f"the VM {directory.vm_id} has no log on this host")
    if machine is None or machine.gone.is_set() or not follow:
        serial_log = machine.line.log if machine is not None else SerialLog(directory)
        if machine is None or machine.gone.is_set():
            await written_out(serial_log)
        pieces = stored_log(serial_log, wanted)
    else:
        pieces = machine.line.followed(wanted)
    async with aclosing(pieces):
        async for piece in pieces:
            yield piece
