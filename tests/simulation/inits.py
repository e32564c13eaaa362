"""Init scripts, in one run of two, by draws of their own, so that no other run changes; and what holds of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec.structs import replace

from aetherscale.actors.compute.model.state import Vm
from aetherscale.actors.compute.simulated.driver import SimulatedDriver
from aetherscale.actors.compute.simulated.host import Behaviour
from aetherscale.eventstore.store import StoredEvent
from aetherscale.kernel.errors import Reason, Refused
from aetherscale.kernel.registry import Aggregate
from tests.simulation.violation import Violation, Wrong

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tests.simulation.world import World

EVENTS: Final = ("VmInitEnded", "VmInitScriptRemoved")
SECRET: Final = "correct-horse-battery"
SCRIPT: Final = f"#!/bin/sh\n# {SECRET}\n"
LONGEST_PAUSE_S: Final = 32

Data = dict[str, Any]


class Draws:
    """What is drawn of init scripts in a run."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(f"inits {seed}")  # noqa: S311 - a run has to be repeatable
        self.are_given = self._chance.random() < 1 / 2

    def options(self) -> dict[str, Any]:
        """Of a request for a VM."""
        if not self.are_given or self._chance.random() < 0.4:
            return {}
        return {"init-script": SCRIPT, **self._chance.choice([{}, {}, {"wait-for": "init"}])}

    def behaviour(self, of_guest: Behaviour, *, is_calm: bool) -> Behaviour:
        """What becomes of the script in a guest."""
        if not self.are_given or is_calm:
            return of_guest
        chance = self._chance
        return replace(
            of_guest,
            init_s=chance.choice([0.0, 0.1, 3.0, 60.0, None]),
            init_status=chance.choice([0, 0, 1, 255]),
            init_reboots=chance.random() < 0.2,
            init_told=chance.choice([0, 1, 1, 3]),
        )

    def cannot_be_kept(self) -> bool:
        """Whether the host refuses to keep a script."""
        return self._chance.random() < 0.05


class SimulatedKeeping:
    """One process's hand on the scripts that the host keeps."""

    def __init__(self, world: World, number: int, driver: SimulatedDriver) -> None:
        self._world, self._number, self._scripts = world, number, driver.scripts

    async def keep(self, vm_id: str, script: bytes) -> None:
        async def work() -> None:
            if self._world.faults.active and self._world.inits.cannot_be_kept():
                raise Refused(Reason.UNAVAILABLE, "the host does not keep it", retryable=True)
            await self._scripts.keep(vm_id, script)

        await self._world.pass_through(self._number, "keep script", work)

    async def keep_user_data(self, vm_id: str, data: bytes) -> None:
        await self._world.pass_through(
            self._number, "keep user-data", lambda: self._scripts.keep_user_data(vm_id, data)
        )

    def remove_unknown(self, expected: Mapping[str, Vm]) -> None:
        if self._number == self._world.process:
            self._scripts.remove_unknown(expected)


def seen(spec: Data) -> Data | None:
    """How the view of a VM that was just asked for shows its script."""
    sha256 = spec.get("init-sha256")
    return {"sha256": sha256, "state": "awaited", "exit-status": None, "output": ""} if sha256 else None


def seen_ended(view: Data, data: Data) -> Data:
    """The same, once its end was told."""
    state = data["outcome"]
    if state == "ended":
        state = "succeeded" if data["exit-status"] == 0 else "failed"
    return {**view, "state": state, "exit-status": data["exit-status"], "output": data["output"]}


class InitOfLife:
    """What is known of the script of one VM so far."""

    def __init__(self) -> None:
        self.is_given = self.is_told = self.is_removed = False
        self.tries = 1

    def take(self, event_type: str, data: Data) -> str:
        """One more event; what is wrong with it, or ""."""
        if not self.is_given:
            return "it has no script"
        if event_type == "VmInitEnded":
            if self.is_told:
                return "its end was told before"
            self.is_told = True
            return ""
        if not self.is_told or self.is_removed:
            return "its script was of use still, or gone"
        self.is_removed = True
        return ""

    def failed(self, data: Data, pause_s: float) -> str:
        """A failure to remove it; what is wrong with it, or ""."""
        if not self.is_told or self.is_removed:
            return "nothing was to be removed"
        wrong = data["attempt"] != self.tries or pause_s != min(2 ** (self.tries - 1), LONGEST_PAUSE_S)
        self.tries += 1
        return f"it is attempt {self.tries - 1}" if wrong else ""


def check_scripts(world: World, vms: Iterable[Aggregate[Vm]]) -> None:
    """What holds at any moment: what a guest is to be given is there, and what was told is true. Raises `Violation`."""
    for aggregate in vms:
        vm = aggregate.state
        if vm.init.is_awaited and vm.requested != "deleted" and vm.id not in world.host.kept_scripts:
            raise Violation(f"the script of {vm.id} is gone, and its end was not told")
        disk = world.host.guest_disks.get(vm.id) or world.past_disks.get(vm.id)
        if disk is not None and disk.runs > 1:
            raise Violation(f"the script of {vm.id} was run {disk.runs} times")
        if vm.init.outcome is not None:
            really = None if disk is None or not disk.has_begun else "interrupted" if disk.status is None else "ended"
            told, status = (vm.init.outcome, vm.init.exit_status), disk.status if disk else None
            if told != (really, status):
                raise Violation(f"the script of {vm.id} was told as {told}; it was {really}, {status}")


def check_scripts_at_rest(world: World, vms: Mapping[str, Vm]) -> None:
    """Once nothing is pending: no script is left that nobody needs, and no guest has told what was not heard."""
    for vm_id in world.host.kept_scripts:
        vm = vms.get(vm_id)
        if vm is None or not (vm.init.is_awaited or (vm.requested == "deleted" and vm.attempt.blocked)):
            raise Violation(f"the script of {vm_id} is left")
        if vm.phase == "deleted":
            raise Violation(f"the script of {vm_id} is left, which is deleted")
    for vm_id in world.host.processes:
        process, known = world.host.live(vm_id), vms.get(vm_id)
        if process is not None and known is not None and process.has_told_init and known.init.is_awaited:
            raise Violation(f"{vm_id} has told the end of its script, and the log has none")


def check_secret(events: Sequence[StoredEvent], jetstream: Iterable[bytes]) -> None:
    """No event has the script in it. Raises `Wrong`."""
    for event in events:
        if SECRET.encode() in event.data or SECRET in repr(msgspec.msgpack.decode(event.data)):
            raise Wrong(f"event {event.seq} {event.type} has an init script in it")
    for body in jetstream:
        if SECRET.encode() in body:
            raise Wrong("a message of the stream has an init script in it")
