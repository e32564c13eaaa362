"""Ports that come and go, in one run of three, by draws of their own, so that no other run changes."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec.structs import replace

from aetherscale.actors.compute.model.state import Vm
from aetherscale.actors.compute.simulated.host import Behaviour
from tests.simulation.clients import NETWORKS, Asked, Client
from tests.simulation.violation import Violation

if TYPE_CHECKING:
    from tests.simulation.world import World

ATTEMPTS: Final = 3
SLOTS: Final = 4
LONGEST_PAUSE_S: Final = 32
TASKS: Final = ("attach-vm", "attach-vm", "detach-vm")
OF_PORTS: Final = (*NETWORKS, "n1", "n2", "n3", "n4")
"""Networks, of which a VM that is in one has no slots for all others."""
EVENTS: Final = ("PortAdded", "PortPlugged", "PortRemoved", "PortUnplugged")

Data = dict[str, Any]


class Draws:
    """What is drawn of ports in a run."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(f"ports {seed}")  # noqa: S311 - a run has to be repeatable
        self.come_and_go = self.chance.random() < 1 / 3

    def behaviour(self, of_guest: Behaviour, *, is_calm: bool) -> Behaviour:
        """How long a guest takes to let go of a card."""
        if not self.come_and_go or is_calm:
            return of_guest
        return replace(of_guest, unplug_s=self.chance.choice([0.0, 0.1, 3.0, 60.0, None]))


class PortClient(Client):
    """A caller who attaches VMs to networks and detaches them."""

    def __init__(self, world: World, number: int) -> None:
        super().__init__(world, number)
        self._draws = world.ports
        self._asked_ports = 0

    async def work(self, requests: int) -> None:
        """Ask for so many things, one after the other."""
        chance = self._draws.chance
        for _ in range(2 * requests if self._draws.come_and_go else 0):
            await asyncio.sleep(chance.choice([0.0, 0.1, 5.0, 20.0]))
            vms = [vm.name for vm_id in self._world.vm_ids() if (vm := self._world.vm(vm_id)) and is_there(vm)]
            component, task, options = self._drawn(vms)
            self._asked_ports += 1
            key = f"port-{self._number}-{self._asked_ports}"
            asked = Asked(key, component, task, msgspec.json.encode(options))
            self.asked.append(asked)
            await self.insist(asked)

    def _drawn(self, vms: list[str]) -> tuple[str, str, dict[str, Any]]:
        chance = self._draws.chance
        if chance.random() < 0.2 or not self._world.network_ids():
            return "network", "create-network", {"name": chance.choice(OF_PORTS)}
        if not vms or chance.random() < 0.1:
            ports = chance.sample(OF_PORTS, chance.randint(1, 2))
            named = {"name": "hot", "image": "tiny", "memory-mib": 64, "restart": "always"}
            return "compute", "create-vm", {**named, "virtual-network": ports}
        vm = {"vm-id": chance.choice(vms)}
        if chance.random() < 0.1:
            return "compute", chance.choice(["start-vm", "stop-vm", "restart-vm"]), vm
        return "compute", chance.choice(TASKS), {**vm, "network": chance.choice(OF_PORTS)}


def is_there(vm: Vm) -> bool:
    """Whether a VM is there, in a network."""
    return vm.phase != "deleted" and bool(vm.ports.every)


def check_cards(world: World, vm: Vm) -> None:
    """C, once nothing is pending: a running guest has the cards of the VM's ports and no other with a cable."""
    process = world.host.live(vm.id)
    if process is None or vm.observed not in ("running", "paused") or vm.requested != "running":
        return
    ports = {port.spec.tap for port in vm.ports.every}
    if process.cards.keys() != ports or any(port.is_leaving for port in vm.ports.every):
        raise Violation(f"{vm.id} is {vm.phase} with the cards {set(process.cards)}, the log has the ports {ports}")


class PortsOfLife:
    """What is known of the ports of one VM so far: see `reasons.Life`."""

    def __init__(self) -> None:
        self.ports: dict[str, Data] = {}
        self.leaving: set[str] = set()
        self.in_slots: set[str] = set()
        """What was attached since the run began, and what its guest has kept."""
        self.tries = 1

    def begin(self, spec: Data) -> None:
        self.ports = {each["tap"]: each for each in spec.get("ports", [])}

    def begin_run(self) -> None:
        self.in_slots.clear()

    def take(self, event_type: str, data: Data, *, has_begun: bool) -> str:
        """One more event of a port; what is wrong with it, "" for nothing."""
        self.tries = 1
        tap = data["port"]["tap"] if event_type == "PortAdded" else data["port-id"]
        match event_type:
            case "PortAdded" if any(each["network-id"] == data["port"]["network-id"] for each in self.ports.values()):
                return "it has a port in this network"
            case "PortAdded" if tap in self.ports:
                return "there was such a port"
            case "PortAdded":
                self.ports[tap] = data["port"]
                if has_begun:
                    self.in_slots.add(tap)
                return "it has no slot for it" if len(self.in_slots) > SLOTS else ""
            case "PortPlugged":
                return "" if tap in self.in_slots and tap not in self.leaving else "it was not to be plugged in"
            case "PortRemoved" if tap in self.leaving or tap not in self.ports:
                return "it has no such port"
            case "PortRemoved":
                self.leaving.add(tap)
                return "" if self.ports.keys() - self.leaving else "none is left"
            case _ if tap not in self.leaving:
                return "it was not to leave"
            case _:
                self.leaving.discard(tap)
                del self.ports[tap]
                if not data["card-left"]:
                    self.in_slots.discard(tap)
                return ""

    def failed(self, data: Data, pause_s: float | None) -> str:
        """An attempt has failed; what is wrong with that."""
        number, self.tries = self.tries, self.tries + 1
        if data["attempt"] != number:
            return f"it is attempt {number}"
        if data["step"] == "unplugging":
            return "" if self.leaving and pause_s == min(2 ** (number - 1), LONGEST_PAUSE_S) else "after another time"
        if pause_s is None:
            self.tries = 1
            return ""
        return "" if number < ATTEMPTS and pause_s == 2 ** (number - 1) else "after another time"
