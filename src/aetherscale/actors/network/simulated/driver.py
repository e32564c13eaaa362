"""The driver of networks on a simulated host, in the order of the real one."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from typing import Any, Final

from aetherscale.actors.compute.model.commands import NO_RULES, PortSpec, VmRules
from aetherscale.actors.firewall.model.commands import Rule
from aetherscale.actors.network.model.commands import NetworkLost
from aetherscale.actors.network.model.decide import NetworkMessage
from aetherscale.actors.network.model.devices import bridge_name
from aetherscale.actors.network.model.effects import (
    OF_HOST,
    EnsureNetwork,
    NetworkEffect,
    NetworkEnsured,
    NetworkKind,
    NetworkOutcome,
    NetworkRemoved,
    NetworkSpec,
)
from aetherscale.actors.network.model.state import Network
from aetherscale.actors.network.model.views import Obstacle, Traffic
from aetherscale.actors.network.ports import DropsWatched, HostRoutes, Lend
from aetherscale.actors.network.simulated.host import SimulatedDrops, SimulatedNetworks
from aetherscale.kernel.errors import Reason, Refused
from aetherscale.kernel.failures import EffectFailed
from aetherscale.kernel.fault import Fault
from aetherscale.runtime.component import Progress, Report

FRAME_BYTES: Final = 64
"""The size of every frame that a simulated guest sends."""


class SimulatedNetworking:
    """A node's hand on the networks of a simulated host."""

    def __init__(self, host: SimulatedNetworks) -> None:
        self._host = host
        self._turn = asyncio.Lock()
        self._networks: dict[str, NetworkSpec] = {}
        self._ports: dict[str, tuple[PortSpec, ...]] = {}
        self._closed: set[str] = set()
        self._left: frozenset[str] | None = None
        self._are_rules_lost: bool | None = None
        """Whether there were no tables before the first rule was made here; None before."""
        self._lend: Lend = lambda vm_id, tap: None
        self._groups: dict[str, tuple[Rule, ...]] = {}
        self._rules: dict[str, VmRules] = {}
        self._report: Report[NetworkMessage] | None = None

    async def start(self, report: Report[Any]) -> None:
        """As in `Driver`."""
        self._report = report

    async def reconcile(self, expected: Mapping[str, Network]) -> None:
        """As in `Driver`."""
        assert self._report is not None, "the driver has not been started"
        wanted = [each for each in expected.values() if each.phase not in ("deleted", "deleting")]
        self._networks |= {each.id: each.spec for each in wanted}
        if self._left is None:
            self._left = frozenset(each.id for each in wanted if each.boot_id == self._host.boot_id)
        for network in wanted:
            if network.phase != "ready":
                continue
            if network.boot_id != self._host.boot_id:
                await self._report(NetworkLost(network.id, "the host was started anew"))
            elif network.spec.kind not in OF_HOST and bridge_name(network.id) not in self._host.bridges:
                await self._report(NetworkLost(network.id, f"the bridge {bridge_name(network.id)} is gone"))

    async def close(self) -> None:
        """As in `Driver`."""

    async def perform(self, effect: NetworkEffect, progress: Progress) -> NetworkOutcome:
        """As in `Driver`."""
        try:
            async with self._turn:
                if isinstance(effect, EnsureNetwork):
                    progress("making the simulated bridge")
                    self._networks[effect.network_id] = effect.spec
                    await self._ensure(effect.network_id)
                    return NetworkEnsured(effect.key, self._host.boot_id)
                await self._remove(effect.network_id, effect.spec)
                return NetworkRemoved(effect.key)
        except Fault as fault:
            return EffectFailed.by(effect.key, fault)

    def require(self, kind: NetworkKind = "isolated") -> None:
        """As in `HostNetworks`."""
        if self._host.lacking:
            raise Refused(Reason.NOT_IMPLEMENTED, f"this node cannot make networks: {self._host.lacking}")

    def public_bridge(self) -> str:
        """As in `HostNetworks`."""
        if not self._host.public_bridge:
            raise Refused(Reason.CONFLICT, "the host has no bridge br0", field="public-ip", remedy="make it")
        return self._host.public_bridge

    def is_of_host(self, address: str) -> bool:
        """As in `HostNetworks`."""
        return address in self._host.addresses

    def has_address(self, address: str) -> bool:
        """As in `HostNetworks`."""
        return address in self._host.addresses

    def routes(self) -> HostRoutes:
        """As in `HostNetworks`."""
        return self._host.routes

    async def obstacles(self) -> Sequence[Obstacle]:
        """As in `HostNetworks`."""
        return self._host.obstacles

    async def restore(self, ports: Mapping[str, Sequence[PortSpec]]) -> None:
        """As in `VmPorts`."""
        async with self._turn:
            self._closed &= {port.tap for of_vm in ports.values() for port in of_vm}
            open_ = {vm_id: [port for port in of_vm if port.tap not in self._closed] for vm_id, of_vm in ports.items()}
            self._ports = {vm_id: tuple(of_vm) for vm_id, of_vm in open_.items() if of_vm}
            wanted = {port.tap for of_vm in self._ports.values() for port in of_vm}
            await self._host.interfere("replace", "rules")
            self._have_tables(needed=bool(self._networks))
            left = sorted((self._left or frozenset()) & self._networks.keys()) if self._are_rules_lost else []
            self._are_rules_lost = False
            self._host.groups = dict(self._groups)
            self._host.rules = dict(self._rules)
            self._host.ruled_networks = {self._bridge(each) for each in self._networks}
            # A tap that is there without being wanted has no rules from here on, which is how it is kept apart.
            self._host.ruled_taps = set(wanted)
            for tap in sorted(self._host.taps.keys() - wanted):
                await self._host.interfere("remove", tap)
                self._host.taps.pop(tap, None)
            for bridge in sorted(self._host.bridges.keys() - self._host.ruled_networks):
                await self._host.interfere("remove", bridge)
                self._host.lose_bridge(bridge)
            for network_id in list(self._networks):
                await self._put_back(network_id)
        assert self._report is not None, "the driver has not been started"
        for network_id in left:
            await self._report(NetworkLost(network_id, "tables removed while the node was away"))

    async def reconnect(self) -> None:
        """As in `VmPorts`."""
        lost: list[NetworkLost] = []
        async with self._turn:
            every = [(vm_id, port) for vm_id, of_vm in self._ports.items() for port in of_vm]
            for vm_id, port in every:
                if port.tap not in self._host.taps and (descriptor := self._lend(vm_id, port.tap)) is not None:
                    os.close(descriptor)
                    await self._host.interfere("tap", port.tap)
                    self._host.taps[port.tap] = (vm_id, self._bridge(port.network_id))
                    lost.append(NetworkLost(port.network_id, f"the tap {port.tap} of VM {port.hostname} was removed"))
        assert self._report is not None, "the driver has not been started"
        for each in lost:
            await self._report(each)

    async def open(self, vm_id: str, ports: Sequence[PortSpec], rules: VmRules | None = NO_RULES) -> list[int]:
        """As in `VmPorts`; there are no descriptors here."""
        async with self._turn:
            if rules is not None:
                self._set_rules(vm_id, rules)
            for network_id in dict.fromkeys(port.network_id for port in ports):
                await self._ensure(network_id)
            if ports:
                self._ports[vm_id] = (*self._without(vm_id, ports), *ports)
                self._closed -= {port.tap for port in ports}
            for port in ports:
                await self._host.interfere("rule", port.tap)
                self._host.ruled_taps.add(port.tap)
            for port in ports:
                await self._host.interfere("tap", port.tap)
                self._host.taps[port.tap] = (vm_id, self._bridge(port.network_id))
            return []

    async def close_ports(self, vm_id: str, ports: Sequence[PortSpec]) -> None:
        """As in `VmPorts`."""
        async with self._turn:
            for port in ports:
                await self._host.interfere("remove", port.tap)
                self._host.taps.pop(port.tap, None)
            self._ports[vm_id] = self._without(vm_id, ports)
            self._closed |= {port.tap for port in ports}
            for port in ports:
                await self._host.interfere("unrule", port.tap)
                self._host.ruled_taps.discard(port.tap)
            if not self._ports[vm_id]:
                del self._ports[vm_id]
                self._set_rules(vm_id, NO_RULES)

    def _without(self, vm_id: str, ports: Sequence[PortSpec]) -> tuple[PortSpec, ...]:
        taps = {port.tap for port in ports}
        return tuple(port for port in self._ports.get(vm_id, ()) if port.tap not in taps)

    def restore_groups(self, groups: Mapping[str, Sequence[Rule]]) -> None:
        """As in `Firewall`."""
        self._groups = {group_id: tuple(rules) for group_id, rules in groups.items()}

    def restore_rules(self, rules: Mapping[str, VmRules]) -> None:
        """As in `Firewall`."""
        self._rules = {vm_id: each for vm_id, each in rules.items() if each != NO_RULES}

    async def apply_group(self, group_id: str, rules: Sequence[Rule], *, keep_established: bool = False) -> None:
        """As in `Firewall`."""
        async with self._turn:
            await self._host.interfere("group", group_id)
            self._groups[group_id] = self._host.groups[group_id] = tuple(rules)

    async def remove_group(self, group_id: str) -> None:
        """As in `Firewall`."""
        async with self._turn:
            await self._host.interfere("ungroup", group_id)
            self._groups.pop(group_id, None)
            self._host.groups.pop(group_id, None)

    async def apply_rules(self, vm_id: str, rules: VmRules, *, keep_established: bool = False) -> None:
        """As in `Firewall`."""
        async with self._turn:
            await self._host.interfere("bear", vm_id)
            self._set_rules(vm_id, rules)

    async def watch_drops(self) -> DropsWatched:
        """As in `Firewall`."""
        self._host.watching.append(watched := SimulatedDrops(self._host.watching))
        return watched

    def _set_rules(self, vm_id: str, rules: VmRules) -> None:
        if rules == NO_RULES:
            self._rules.pop(vm_id, None)
            self._host.rules.pop(vm_id, None)
        else:
            self._rules[vm_id] = self._host.rules[vm_id] = rules

    def dropped(self, vm_id: str) -> Mapping[str, Mapping[str, int]]:
        """As in `VmPorts`; nothing is sent here."""
        return {}

    def traffic(self, vm_id: str) -> Mapping[str, Traffic]:
        """As in `VmPorts`; nobody sends anything to guests here."""
        there = [port.tap for port in self._ports.get(vm_id, ()) if port.tap in self._host.taps]
        return {tap: Traffic(0, 0, self._host.sent[tap] * FRAME_BYTES, self._host.sent[tap]) for tap in there}

    def leased(self, vm_id: str) -> Mapping[str, Sequence[str]]:
        """As in `VmPorts`; nothing is sent here."""
        return {}

    def cut(self, vm_id: str) -> Sequence[str]:
        """As in `VmPorts`."""
        return [port.tap for port in self._ports.get(vm_id, ()) if not self._host.taps.get(port.tap, ("", ""))[1]]

    def borrow_from(self, lend: Lend) -> None:
        """As in `VmPorts`. A descriptor says no more than that there is a process."""
        self._lend = lend

    async def _ensure(self, network_id: str) -> None:
        bridge = self._bridge(network_id)
        await self._host.interfere("rule", bridge)
        self._host.ruled_networks.add(bridge)
        self._have_tables()
        if self._spec(network_id).bridge is None:
            await self._host.interfere("bridge", bridge)
            self._host.bridges[bridge] = network_id
        await self._put_back(network_id)

    def _have_tables(self, *, needed: bool = True) -> None:
        if self._are_rules_lost is None:
            self._are_rules_lost = not self._host.has_tables
        self._host.has_tables = needed

    async def _put_back(self, network_id: str) -> None:
        """Put the taps of VMs into the network's bridge that have lost it, as they do when somebody removes it."""
        bridge = self._bridge(network_id)
        if bridge not in self._host.bridges and self._spec(network_id).bridge is None:
            return
        for vm_id, ports in self._ports.items():
            for port in ports:
                if port.network_id == network_id and self._host.taps.get(port.tap, (vm_id, bridge))[1] != bridge:
                    await self._host.interfere("tap", port.tap)
                    self._host.taps[port.tap] = (vm_id, bridge)

    async def _remove(self, network_id: str, spec: NetworkSpec) -> None:
        bridge = bridge_name(network_id)
        await self._host.interfere("remove", bridge)
        self._host.lose_bridge(bridge)
        self._networks.pop(network_id, None)
        await self._host.interfere("unrule", spec.bridge or bridge)
        self._host.ruled_networks.discard(spec.bridge or bridge)

    def _bridge(self, network_id: str) -> str:
        return self._spec(network_id).bridge or bridge_name(network_id)

    def _spec(self, network_id: str) -> NetworkSpec:
        if network_id not in self._networks:
            raise Fault(f"the network {network_id} is not known to this node", "aetherscale doctor", retryable=False)
        return self._networks[network_id]
