"""What is asked of guests and goes past the decider: their serial lines and logs, and programs in them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from pathlib import Path

from aetherscale.actors.compute.driver import Console, ExecResult, LogRange, PipedProgram, Terminal, Window
from aetherscale.actors.compute.model.guestfacts import GuestFacts
from aetherscale.actors.compute.qemu import facts
from aetherscale.actors.compute.qemu.layout import VmDirectory
from aetherscale.actors.compute.qemu.logreading import recorded
from aetherscale.actors.compute.qemu.machine import Machine
from aetherscale.actors.compute.readers import RECENT_BYTES
from aetherscale.kernel.errors import Reason, Refused, Task


class Inside:
    """The machines of a node, whose VMs are in `root`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._machines: dict[str, Machine] = {}

    async def console(self, vm_id: str, past_bytes: int = RECENT_BYTES) -> Console:
        """Attach to the serial line, with so much of the recent past.

        Raises `Refused` (conflict) where the VM has no process.
        """
        return self._live(vm_id).line.attach(past_bytes)

    async def logs(self, vm_id: str, wanted: LogRange, *, follow: bool) -> AsyncIterator[bytes]:
        """The wanted range of the VM's serial log, oldest byte first; `follow` goes on until the VM's process ends.

        Raises `Refused` (not found) where nothing is there.
        """
        pieces = recorded(self._directory(vm_id), self._machines.get(vm_id), wanted, follow=follow)
        async with aclosing(pieces):
            async for piece in pieces:
                yield piece

    async def execute(self, vm_id: str, argv: Sequence[str], timeout_s: float, stdin: bytes = b"") -> ExecResult:
        """Run a program in the guest through its agent, which is given a moment to start. Raises `Refused`."""
        return await (await self._live(vm_id).guest.answering()).execute(argv, timeout_s, stdin)

    async def terminal(self, vm_id: str, argv: Sequence[str], window: Window, term: str) -> Terminal:
        """Start a program in the guest on a terminal of its own. Raises `Refused`."""
        machine = self._live(vm_id)
        return await machine.terminals.open(await machine.guest.answering(), argv, window, term)

    async def facts(self, vm_id: str) -> GuestFacts:
        """What the guest says of itself. Raises `Refused` where the VM has no process."""
        guest = self._live(vm_id).guest
        return await facts.facts(guest.agent if guest.agent_open.is_set() else None)

    async def program(self, vm_id: str, argv: Sequence[str], *, has_input: bool) -> PipedProgram:
        """Start a program in the guest with its input and outputs as streams. Raises `Refused`."""
        machine = self._live(vm_id)
        return await machine.programs.open(await machine.guest.answering(), argv, has_input=has_input)

    def _live(self, vm_id: str) -> Machine:
        machine = self._machines.get(vm_id)
        if machine is None or machine.gone.is_set():
            raise Refused(Reason.CONFLICT, "the VM is not running", remedy=Task("vm", "start", vm_id))
        return machine

    def _directory(self, vm_id: str) -> VmDirectory:
        return VmDirectory(self._root, vm_id)
