"""A simulated host's networks, on which no tap is without its rules and no guest without its taps (E).

Asked before each step that the node takes on the host, whenever a guest executes, and now and then. Somebody else may
take bridges and rules away, or leave devices of their own; of that the node is excused until it has looked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

from aetherscale.actors.compute.model.effects import PortSpec
from aetherscale.actors.network.model.devices import bridge_name, tap_name
from aetherscale.actors.network.simulated.host import SimulatedNetworks
from aetherscale.kernel.fault import Fault
from tests.simulation.loop import PROCESS
from tests.simulation.violation import Violation

if TYPE_CHECKING:
    from tests.simulation.world import World

DEEDS: Final = ("bridge", "bridge", "tap", "tap", "flush", "rule", "rule", "foreign tap", "foreign bridge")
"""What somebody does, as often as it is here."""
HANGS_S: Final = 90.0
"""Longer than an effect on a network may take. No end at all would be one of the start of a node, too."""


class WatchedNetworks(SimulatedNetworks):
    """Networks that are looked at before each step on them."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.boot_id = world.host.boot_id
        self.interfere = self._interfere
        self._world = world
        self._deeds = 0
        self.flushes = 0
        """How often somebody has removed all rules."""
        self._excused: dict[str, int] = {}
        """Bridges and taps that somebody took away, or the rules of: by their names, which deed it was."""
        self._seen: tuple[int, tuple[str, ...]] = (0, ())
        """The newest deed when the node looked at bridges last, and the networks that it took for ready."""
        self._foreign: set[str] = set()
        """Devices that somebody else has left."""

    # --- what somebody else does -------------------------------------------------------------------------------------

    def meddle(self) -> None:
        """Something that the node did not ask for."""
        chance = self._world.chance
        match chance.choice(
            ["bridge", "bridge", "tap", "tap", "flush", "rule", "rule", "foreign tap", "foreign bridge"]
        ):
            case "bridge" if self.bridges:
                used = self.bridges.keys() & {bridge for _, bridge in self.taps.values()}
                self.takes_bridge(chance.choice(sorted(used or self.bridges)))
            case "tap" if self.taps:
                self.takes_tap(chance.choice(sorted(self.taps)))
            case "flush":
                self.takes_all_rules()
            case "rule" if ruled := sorted(self.ruled_taps | self.ruled_networks):
                self.takes_rules({chance.choice(ruled)})
            case "foreign tap":
                self.gets_a_tap(chance.choice([f"1{chance.getrandbits(60):015x}", *self._world.vm_ids()]))
            case _:
                self.gets_a_bridge(chance.choice([f"1{chance.getrandbits(60):015x}", *self._world.network_ids()]))

    def takes_bridge(self, name: str) -> None:
        """Somebody removes a bridge, and its taps are in none."""
        self._deeds += 1
        self._excused[name] = self._deeds
        self.lose_bridge(name)
        self._world.note(f"somebody removes the bridge {name}")

    def takes_tap(self, name: str) -> None:
        """Somebody removes a tap, of which the process that had it has the descriptor."""
        self._deeds += 1
        self._excused[name] = self._deeds
        del self.taps[name]
        self._world.note(f"somebody removes the tap {name}")

    def takes_all_rules(self) -> None:
        """Somebody flushes the ruleset, tables and all."""
        self.takes_rules({*self.ruled_taps, *self.ruled_networks})
        self.flush_rules()
        self.flushes += 1

    def takes_rules(self, names: set[str]) -> None:
        """Somebody removes the rules of these bridges and taps."""
        self._deeds += 1
        self._excused |= {f"rules of {name}": self._deeds for name in names}
        self.ruled_taps -= names
        self.ruled_networks -= names
        self._world.note(f"somebody removes the rules of {sorted(names)}")

    def gets_a_tap(self, vm_id: str) -> None:
        """There is a tap of a VM that the log does not have, or has deleted."""
        vm = self._world.vm(vm_id)
        if vm is None or vm.phase == "deleted":
            name = tap_name(vm_id, 0)
            self._foreign.add(name)
            self.taps[name] = (vm_id, next(iter(self.bridges), ""))
            self._world.note(f"somebody leaves the tap {name} of {vm_id}")

    def gets_a_bridge(self, network_id: str) -> None:
        """There is a bridge of a network that the log does not have, or has deleted."""
        network = self._world.network(network_id)
        if network is None or network.phase == "deleted":
            name = bridge_name(network_id)
            self._foreign.add(name)
            self.bridges[name] = network_id
            self._world.note(f"somebody leaves the bridge {name} of {network_id}")

    def reboot(self, boot_id: str) -> None:
        """The host is started anew."""
        super().reboot(boot_id)
        self._excused.clear()
        self._foreign.clear()

    # --- what the node has noticed -----------------------------------------------------------------------------------

    def looks(self) -> int:
        """The node begins to look at the host: the newest deed that it can notice."""
        return self._deeds

    def has_restored(self, deed: int) -> None:
        """It has replaced the rules since this deed: its reconciliation has ended, and it is no longer excused."""
        if self._world.is_in_doubt:
            return  # what it noticed may not be in the log
        for name, number in tuple(self._excused.items()):
            if name.startswith("rules of ") and number <= deed:
                del self._excused[name]
        seen, ready = self._seen
        for network_id in ready:
            if self._excused.get(bridge_name(network_id), seen + 1) <= seen:
                del self._excused[bridge_name(network_id)]
        self._foreign &= self.taps.keys() | self.bridges.keys()
        self.check()

    def taps_in_use(self) -> set[str]:
        """The taps of processes that the log names, which the node has found by now."""
        vms = (self._world.vm(vm_id) for vm_id in self._world.vm_ids())
        running = (vm for vm in vms if vm is not None and vm.observed in ("running", "paused"))
        return {tap for vm in running for tap in vm.run.cards}

    def has_reconnected(self, deed: int, taps: set[str]) -> None:
        """It has made those of these taps anew that were removed up to this deed."""
        if self._world.is_in_doubt:
            return
        for name, number in tuple(self._excused.items()):
            if name in taps and number <= deed:
                del self._excused[name]
        self.check()

    def has_seen(self, deed: int, ready: Iterable[str]) -> None:
        """It has looked at the bridges of networks that it took for ready since this deed."""
        self._seen = deed, tuple(ready)

    # --- what has to hold at any moment ------------------------------------------------------------------------------

    def check(self) -> None:
        """E. Raises `Violation`."""
        world = self._world
        for tap, (vm_id, _) in self.taps.items():
            vm = world.vm(vm_id)
            is_deleted = vm is None or vm.phase == "deleted" or vm.is_orphan
            if is_deleted and tap in self._foreign:
                continue
            if is_deleted:
                raise Violation(f"there is a tap {tap} of {vm_id}, which is deleted")
            if vm is not None and tap not in {port.tap for port in vm.ports.specs()} and tap not in self._foreign:
                raise Violation(f"there is a tap {tap} of {vm_id}, which has no such port")
            if tap not in self.ruled_taps and not self._is_excused(f"rules of {tap}"):
                raise Violation(f"the tap {tap} of {vm_id} has no rules")
        for bridge, network_id in self.bridges.items():
            network = world.network(network_id)
            if (network is None or network.phase == "deleted") and bridge not in self._foreign:
                raise Violation(f"there is a bridge {bridge} of {network_id}, which is deleted")
        for vm_id, process in world.host.processes.items():
            if not process.gone.is_set() and not getattr(process, "is_orphan", False):
                for port in process.cards.values():
                    if (lacks := ", ".join(self._lacks_of(port))) != "":
                        raise Violation(f"run {process.run} of {vm_id} executes without its port {port.tap}: {lacks}")

    def _lacks_of(self, port: PortSpec) -> Iterator[str]:
        bridge = self.bridge_of(port.network_id)
        if port.tap not in self.taps and not self._is_excused(port.tap):
            yield "no tap"
        if port.tap not in self.ruled_taps and not self._is_excused(f"rules of {port.tap}"):
            yield "no rules"
        if bridge not in self.ruled_networks and not self._is_excused(f"rules of {bridge}"):
            yield "no rules of its network"
        if not self.is_in(port) and not self._is_excused(bridge) and not self._is_excused(port.tap):
            network = self._world.network(port.network_id)
            # The log says what is wrong with it, and that it is being restored.
            if network is None or network.phase != "restoring":
                yield f"no bridge: it is in {self.taps.get(port.tap)}, of {sorted(self.bridges)}"

    def bridge_of(self, network_id: str) -> str:
        """The bridge of a network: the host's own, where it is one."""
        network = self._world.network(network_id)
        return (network.spec.bridge if network is not None else None) or bridge_name(network_id)

    def is_in(self, port: PortSpec) -> bool:
        """Whether the tap of a port is in its bridge. Nobody takes that of the host here."""
        bridge = self.bridge_of(port.network_id)
        return bridge in {*self.bridges, self.public_bridge} and self.taps.get(port.tap, ("", ""))[1] == bridge

    def _is_excused(self, what: str) -> bool:
        return what in self._excused

    # --- what goes wrong ---------------------------------------------------------------------------------------------

    async def _interfere(self, step: str, what: str) -> None:
        """A step of the node on the host: it may die there, wait, or be refused."""

        async def work() -> None:
            self.check()
            trouble = self._world.faults.trouble_of_network(step)
            if trouble is not None:
                self._world.note(f"{step} {what}: {trouble}")
            match trouble:
                case "hang":
                    await asyncio.sleep(HANGS_S)
                case "fail":
                    raise Fault(f"the host said no to {step} {what}", retryable=True)
                case "refuse":
                    raise Fault(f"the host said never to {step} {what}", retryable=False)
                case None:
                    pass

        await self._world.pass_through(PROCESS.get(), f"{step} {what}", work)
