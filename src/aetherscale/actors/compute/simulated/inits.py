"""Init scripts on a simulated host: those that it keeps, and how a guest runs the one that it is given."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

from msgspec import Struct

from aetherscale.actors.compute.freshscripts import FreshScripts
from aetherscale.actors.compute.model.effects import ComputeObservation
from aetherscale.actors.compute.model.firstboot import InitEnded, InitOutcome
from aetherscale.actors.compute.model.state import Vm

if TYPE_CHECKING:
    from aetherscale.actors.compute.simulated.behaviour import Behaviour


class SimulatedScripts:
    """`InitScripts` of one process of the node, on what the host keeps in memory."""

    def __init__(self, kept: dict[str, bytes], user_data: dict[str, bytes]) -> None:
        self._kept = kept
        self._user_data = user_data
        self._fresh = FreshScripts(lambda: asyncio.get_running_loop().time())

    async def keep(self, vm_id: str, script: bytes) -> None:
        """As in `InitScripts`."""
        self._fresh.add(vm_id)
        self._kept[vm_id] = script

    async def keep_user_data(self, vm_id: str, data: bytes) -> None:
        """As in `InitScripts`."""
        self._fresh.add(vm_id)
        self._user_data[vm_id] = data

    def remove(self, vm_id: str) -> None:
        """Ensure that there is no script of the VM."""
        self._fresh.forget(vm_id)
        self._kept.pop(vm_id, None)

    def remove_all(self, vm_id: str) -> None:
        """The same of its user-data too."""
        self.remove(vm_id)
        self._user_data.pop(vm_id, None)

    def remove_unknown(self, expected: Mapping[str, Vm]) -> None:
        """Remove what is of no VM that needs it."""
        for vm_id in [each for each in self._kept if self._fresh.is_of_no_use(each, expected)]:
            self.remove(vm_id)
        for vm_id in [each for each in self._user_data if self._fresh.is_of_no_use(each, expected, "user-data")]:
            self._user_data.pop(vm_id)


class GuestDisk(Struct):
    """What a guest has written down of its init script: it outlives every run."""

    runs: int = 0
    """How often the script was run."""
    has_begun: bool = False
    """The condition file."""
    status: int | None = None
    """The exit status, once it has ended."""


class Guest(Protocol):
    """The process that a guest lives in."""

    vm_id: str
    run: int
    behaviour: Behaviour

    def after(self, delay_s: float | None, what: Callable[[], None]) -> None:
        """Do it later, unless the process has ended by then; None for never."""
        ...

    def report(self, observation: ComputeObservation) -> None:
        """Tell the node that watches, where there is one."""
        ...


class Host(Protocol):
    """What is kept of guests, and for them."""

    kept_scripts: dict[str, bytes]
    guest_disks: dict[str, GuestDisk]


class InitRun:
    """The unit of a guest that runs its init script, in one run of the VM."""

    def __init__(self, guest: Guest, host: Host, *, gives_script: bool) -> None:
        self._guest = guest
        self._host = host
        self._gives_script = gives_script
        # Read by the process as it starts, as QEMU reads it.
        self._script = host.kept_scripts.get(guest.vm_id) if gives_script else None
        self._told: InitEnded | None = None

    def begin(self) -> None:
        """The guest has booted."""
        if self._script is None:
            if self._gives_script:
                self._end("lost")
            return
        disk = self._host.guest_disks.setdefault(self._guest.vm_id, GuestDisk())
        if disk.status is not None:
            self._end("ended", disk.status)
        elif disk.has_begun:
            self._end("interrupted")
        else:
            disk.has_begun = True
            disk.runs += 1
            self._guest.after(self._guest.behaviour.init_s, lambda: self._comes_to_its_end(disk))

    def _comes_to_its_end(self, disk: GuestDisk) -> None:
        if self._guest.behaviour.init_reboots:
            # It boots again in the same process, and finds the condition file.
            self.begin()
        else:
            disk.status = self._guest.behaviour.init_status
            self._end("ended", disk.status)

    def _end(self, outcome: InitOutcome, status: int | None = None) -> None:
        output = f"script of {len(self._script or b'')} bytes\n" if outcome == "ended" else ""
        self._told = InitEnded(self._guest.vm_id, self._guest.run, outcome, status, output)
        for _ in range(self._guest.behaviour.init_told):
            self.tell()

    @property
    def has_told(self) -> bool:
        """Whether the end is said."""
        return self._told is not None and self._guest.behaviour.init_told > 0

    def tell(self) -> None:
        """Say it again, to a node that asks."""
        if self._told is not None:
            self._guest.report(self._told)
