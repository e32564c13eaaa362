"""The networks and the ports of VMs that the driver was told of, and the rules that follow from them.

One more port costs as much as it takes to write it down, however many there are: what is derived from all of them is
kept, and changed with them.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Final

from msgspec.structs import replace

from aetherscale.actors.compute.model.commands import NO_RULES, PortSpec, VmRules
from aetherscale.actors.network.model import devices, ruleset
from aetherscale.actors.network.model.effects import NetworkSpec
from aetherscale.actors.network.model.groups import GroupRules
from aetherscale.actors.network.model.rules import forward_rules, network_rules, port_rules
from aetherscale.actors.network.model.ruleset import ForwardRules, PortRules, Ruleset
from aetherscale.kernel.fault import Fault

NOTHING: Final = ruleset.compile((), ())
REMEDY: Final = "remove one of the two forwards"

Opening = tuple[Sequence[PortSpec], VmRules | None]
"""Ports that a VM is to have beside those that it has, and its rules; None for those that it has."""

Remembered = tuple[VmRules, tuple[ForwardRules, ...]]
"""The rules of a VM, and its forwards with those that are gone, of which flows go on."""


class Known:
    """Networks by their ids, and ports by the ids of their VMs. A port may be known before its network is."""

    def __init__(self) -> None:
        self._networks: dict[str, NetworkSpec] = {}
        self._ports: dict[str, tuple[PortSpec, ...]] = {}
        self._inside: dict[str, dict[str, PortSpec]] = {}
        """The ports of each network, by their taps."""
        self._at: dict[str, tuple[str, PortSpec]] = {}
        """The ports by their taps, with the ids of their VMs."""
        self._groups: dict[str, GroupRules] = {}
        self._bears: dict[str, VmRules] = {}
        """The rules of VMs by their ids, whether they have ports or not; none of a VM without any."""
        self._forwards: dict[str, tuple[ForwardRules, ...]] = {}
        """The same of their forwards, with those that are gone, and of which flows were kept."""
        self._stamps: dict[str, int] = {}
        self._rules: Ruleset | None = NOTHING
        """None where they have to be compiled anew."""

    @property
    def networks(self) -> Mapping[str, NetworkSpec]:
        """By their ids."""
        return self._networks

    def set_networks(self, networks: Mapping[str, NetworkSpec]) -> None:
        """Know these networks, beside those that are known."""
        if any(self._networks.get(network_id) != spec for network_id, spec in networks.items()):
            self._networks |= networks
            self._rules = None

    def forget_network(self, network_id: str) -> None:
        """Know a network no more. Its ports stay known."""
        if self._networks.pop(network_id, None) is not None:
            self._rules = None

    def add_ports(self, opening: Mapping[str, Opening]) -> None:
        """Let these VMs have these ports beside those that they have, and these rules. ValueError as `set_rules`."""
        self.set_rules({vm_id: rules for vm_id, (_, rules) in opening.items() if rules is not None})
        taps = {port.tap for ports, _ in opening.values() for port in ports}
        self.set_ports({vm_id: (*self._without(vm_id, taps), *ports) for vm_id, (ports, _) in opening.items()})

    def drop_ports(self, gone: Mapping[str, Sequence[PortSpec]]) -> None:
        """Let these VMs have these ports no more, and rules only as long as they have a port."""
        taps = {port.tap for ports in gone.values() for port in ports}
        left = {vm_id: self._without(vm_id, taps) for vm_id in gone}
        self.set_rules({vm_id: NO_RULES for vm_id, ports in left.items() if not ports})
        self.set_ports(left)

    def _without(self, vm_id: str, taps: Container[str]) -> tuple[PortSpec, ...]:
        return tuple(port for port in self.ports_of(vm_id) if port.tap not in taps)

    def set_opening(self, opening: Mapping[str, Opening], vm_id: str) -> None:
        """As `add_ports`, at least to this VM: what contradicts others of one does not keep the others.

        Raises `Fault`, after which all is as it was.
        """
        why: Exception | None = None
        before, had = self.remember(opening), {each: self.ports_of(each) for each in opening}
        for among in (opening, {vm_id: opening[vm_id]}):
            try:
                self.add_ports(among)
                self.rules()
            except (ValueError, Fault) as contradiction:
                self.recall(before)
                self.set_ports(had)
                why = contradiction
            else:
                return
        raise Fault(f"the rules of VMs contradict each other: {why}", REMEDY) from None

    def set_ports(self, changed: Mapping[str, Sequence[PortSpec]]) -> None:
        """Let these VMs have these ports, and no others; none where they are empty."""
        gone: list[PortSpec] = []
        come: list[tuple[str, PortSpec]] = []
        for vm_id, ports in changed.items():
            before, after = self._ports.get(vm_id, ()), tuple(ports)
            if before != after:
                gone += before
                come += ((vm_id, port) for port in after)
                self._ports[vm_id] = after
                if not after:
                    del self._ports[vm_id]
        for port in gone:
            del self._at[port.tap], self._inside[port.network_id][port.tap]
        for vm_id, port in come:
            self._at[port.tap] = vm_id, port
            self._inside.setdefault(port.network_id, {})[port.tap] = port
        for port in (*gone, *(port for _, port in come)):
            self._stamps[port.network_id] = self.stamp(port.network_id) + 1
        self._change_rules(gone, come)

    def set_groups(self, groups: Mapping[str, GroupRules]) -> None:
        """Let these be the groups, by their ids, and no others."""
        self._groups = dict(groups)
        if self._rules is not None:
            self._rules = ruleset.regrouped(self._rules, self._groups)

    def set_rules(self, changed: Mapping[str, VmRules], *, keep: bool = False) -> None:
        """Let these VMs have these rules; those of others stay. With `keep`, flows of forwards that are gone go on.

        ValueError: a forward that means nothing, or a port of the host that leads to two; what is known is in doubt
        then, until `recall`.
        """
        self.recall({vm_id: (rules, self._led(vm_id, rules, keep=keep)) for vm_id, rules in changed.items()})

    def remember(self, vm_ids: Iterable[str]) -> Mapping[str, Remembered]:
        """What `recall` brings back."""
        return {vm_id: (self.rules_of(vm_id), self._forwards.get(vm_id, ())) for vm_id in vm_ids}

    def recall(self, remembered: Mapping[str, Remembered]) -> None:
        """Let these VMs have the rules that they had; those of others stay. ValueError as `set_rules`."""
        ports: list[tuple[str, PortSpec]] = []
        for vm_id, (rules, forwards) in remembered.items():
            before = self._borne(vm_id), self._forwards.get(vm_id, ())
            self._bears[vm_id], self._forwards[vm_id] = rules, forwards
            if rules == NO_RULES:
                del self._bears[vm_id]
            if not forwards:
                del self._forwards[vm_id]
            if (self._borne(vm_id), forwards) != before:
                ports += ((vm_id, port) for port in self._ports.get(vm_id, ()))
        self._change_rules([port for _, port in ports], ports)

    def replace_rules(self, rules: Mapping[str, VmRules]) -> None:
        """Let these VMs have these rules, and all others none."""
        self.set_rules({**dict.fromkeys([*self._bears, *self._forwards], NO_RULES), **rules})

    def rules_of(self, vm_id: str) -> VmRules:
        """The rules of a VM."""
        return self._bears.get(vm_id, NO_RULES)

    @property
    def every_rules(self) -> Mapping[str, VmRules]:
        """The rules of VMs by their ids; none of a VM without any."""
        return self._bears

    @property
    def groups(self) -> Mapping[str, GroupRules]:
        """By their ids."""
        return self._groups

    def bearers(self, group_id: str) -> Iterable[str]:
        """The ids of the VMs that bear a group."""
        return [vm_id for vm_id, rules in self._bears.items() if group_id in rules.groups]

    def _borne(self, vm_id: str) -> tuple[str, ...]:
        return tuple(sorted(set(self.rules_of(vm_id).groups)))

    def _ruled(self, vm_id: str, port: PortSpec) -> PortRules:
        forwards = self._forwards.get(vm_id, ())
        if forwards and self._port_of_forwards(vm_id) != port:
            forwards = ()
        return port_rules(port, self._networks[port.network_id], self._borne(vm_id), forwards)

    def _port_of_forwards(self, vm_id: str) -> PortSpec | None:
        """The first port of a VM in a network that the host routes."""
        kinds = {network_id: spec.kind for network_id, spec in self._networks.items()}
        return next((port for port in self.ports_of(vm_id) if kinds.get(port.network_id) == "nat"), None)

    def _led(self, vm_id: str, rules: VmRules, *, keep: bool) -> tuple[ForwardRules, ...]:
        leads = forward_rules(rules.forwards)
        before = [replace(each, begins=True) for each in self._forwards.get(vm_id, ())] if keep else []
        return (*leads, *(replace(each, begins=False) for each in before if each not in leads))

    def _change_rules(self, gone: Sequence[PortSpec], come: Sequence[tuple[str, PortSpec]]) -> None:
        rules, self._rules = self._rules, None
        if rules is not None:
            taps = [port.tap for port in gone if port.tap in rules.ports]
            ruled = [self._ruled(vm_id, port) for vm_id, port in come if port.network_id in self._networks]
            self._rules = ruleset.changed(rules, taps, ruled) if taps or ruled else rules

    def replace_ports(self, ports: Mapping[str, Sequence[PortSpec]], but: Container[str] = ()) -> None:
        """Let these VMs have these ports, but for those with the taps of `but`, and all others none."""
        kept = {vm_id: [port for port in of_vm if port.tap not in but] for vm_id, of_vm in ports.items()}
        self.set_ports({**dict.fromkeys(self._ports, ()), **kept})

    def rules(self) -> Ruleset:
        """The rules of all networks, and of all ports in them; the same object until one changes. Raises `Fault`."""
        if self._rules is None:
            networks = (network_rules(network_id, spec) for network_id, spec in self._networks.items())
            every = ((vm_id, port) for vm_id, ports in self._ports.items() for port in ports)
            ruled = (self._ruled(vm_id, port) for vm_id, port in every if port.network_id in self._networks)
            try:
                self._rules = ruleset.compile(networks, ruled, self._groups)
            except ValueError as contradiction:
                raise Fault(f"networks contradict each other: {contradiction}", "delete one of the two") from None
        return self._rules

    @property
    def ports(self) -> Mapping[str, Sequence[PortSpec]]:
        """By the ids of their VMs; none of a VM without any."""
        return self._ports

    def ports_of(self, vm_id: str) -> Sequence[PortSpec]:
        """The ports of a VM."""
        return self._ports.get(vm_id, ())

    def ports_in(self, network_id: str) -> Iterable[PortSpec]:
        """The ports in a network."""
        return self._inside.get(network_id, {}).values()

    def beside(self, network_id: str) -> list[NetworkSpec]:
        """The other networks that VMs of a network have ports in, in the order of their ids."""
        vms = {self._at[tap][0] for tap in self._inside.get(network_id, {})}
        others = {port.network_id for vm_id in vms for port in self._ports[vm_id]} - {network_id}
        return [self._networks[other] for other in sorted(others) if other in self._networks]

    def port_at(self, tap: str) -> tuple[str, PortSpec]:
        """The port with this tap, and the id of its VM. KeyError: there is none."""
        return self._at[tap]

    def stamp(self, network_id: str) -> int:
        """A number that is another one after each change of the ports in a network."""
        return self._stamps.get(network_id, 0)

    def bridge(self, network_id: str) -> str:
        """The bridge of a network. Raises `Fault`."""
        return self.spec(network_id).bridge or devices.bridge_name(network_id)

    def spec(self, network_id: str) -> NetworkSpec:
        """A network. Raises `Fault` where it is not known."""
        if network_id not in self._networks:
            raise Fault(f"the network {network_id} is not known to this node", "aetherscale doctor", retryable=False)
        return self._networks[network_id]
