"""The virtio ports that a guest is given while it runs, each with a socket of ours, and how a program there begins.

    here ── socket ── QEMU ── port ── a program in the guest

The guest finds a port by its name, so sessions that begin at once do not mix; a port that is not read holds up who
writes, so nothing is lost.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import Any, Final

from aetherscale.actors.compute.qemu.session import Ask, CharDevice, Give, Rejected, Unresponsive
from aetherscale.bus.tasks import Tasks
from aetherscale.kernel.errors import Reason, Refused

log = logging.getLogger(__name__)

PORT_LIMIT: Final = 28
"""Ports in one guest at a time. A virtio controller has 31: the first is for consoles, and two are taken."""
LAST_WORDS_S: Final = 5.0
"""How long to wait for what a guest has written before something that came another way, and may have overtaken it."""
_UNPLUG_TRIES: Final = 20
_UNPLUG_PAUSE_S: Final = 0.05


class Plugs:
    """Those of one guest. `give` hands a descriptor to QEMU; raises `Unresponsive` and `Rejected`."""

    def __init__(self, vm_id: str, execute: Ask, give: Give) -> None:
        self.vm_id = vm_id
        self._execute = execute
        self._give = give
        self._taken: set[str] = set()

    def reserve(self, idents: Sequence[str]) -> None:
        """Take ports, each of which `unplug` gives back. Raises `Refused` (conflict) where there are not so many."""
        if len(self._taken) + len(idents) > PORT_LIMIT:
            raise Refused(
                Reason.CONFLICT,
                f"{len(self._taken)} of the {PORT_LIMIT} ports of the VM are in use",
                remedy="wait until one of the programs that run there has ended",
                retryable=True,
            )
        self._taken.update(idents)

    async def plug(self, ident: str, name: str) -> socket.socket:
        """Give the VM a port that was reserved; our end of it. Raises `Unresponsive`, `Rejected`, `OSError`."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                await self._give(theirs.fileno(), ident)
            data = {"addr": {"type": "fd", "data": {"str": ident}}, "server": False}
            await self._execute("chardev-add", id=ident, backend={"type": "socket", "data": data})
            await self._execute(
                "device_add", driver="virtserialport", id=ident, bus="ports.0", chardev=ident, name=name
            )
        except BaseException:
            ours.close()
            raise
        return ours

    async def unplug(self, ident: str) -> None:
        """Take a port out again, or what there is of it."""
        try:
            for command, name in (("closefd", "fdname"), ("device_del", "id")):
                with suppress(Rejected):  # as where it was taken, or never plugged in
                    await self._execute(command, **{name: ident})
            for _ in range(_UNPLUG_TRIES):
                try:
                    await self._execute("chardev-remove", id=ident)
                except Rejected as rejected:
                    if "not found" in str(rejected):
                        break
                    # QEMU lets go of the device in its own time.
                    await asyncio.sleep(_UNPLUG_PAUSE_S)
                else:
                    break
        except Unresponsive as silent:
            # The next node that connects to QEMU takes it out.
            log.info("VM %s: a port stays plugged in: %s", self.vm_id, silent)
        finally:
            self._taken.discard(ident)

    async def clear(self, devices: Sequence[CharDevice], prefixes: tuple[str, ...]) -> None:
        """Take out what a node before this one has plugged in, which hangs up. Raises nothing."""
        for device in devices:
            if device.label.startswith(prefixes) and device.label not in self._taken:
                await self.unplug(device.label)


async def begun_or_refused(
    tasks: Tasks, first_mark: Coroutine[Any, Any, str | None], why_not: Coroutine[Any, Any, Refused]
) -> str:
    """What the guest says first of a program that has begun. Raises the `Refused` of one that has not.

    `first_mark` is None where the VM has ended, which `why_not` tells.
    """
    begun, refused = tasks.spawn(first_mark, "first mark"), tasks.spawn(why_not, "end of a program")
    try:
        await asyncio.wait({begun, refused}, return_when=asyncio.FIRST_COMPLETED)
        said: str | None = begun.result() if begun.done() else None
        if said is None:
            raise await refused
        return said
    finally:
        begun.cancel()
        refused.cancel()
        await asyncio.wait({begun, refused})
