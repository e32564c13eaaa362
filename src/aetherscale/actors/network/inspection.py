"""Compares the devices of networks with how they were made, and says in words what another program has done to them.

A bridge is mended by ensuring its network, as is a cable of its resolver. A tap is put back at once: its guest is cut
off, or may be where it is not to be. One that is gone is made anew for the descriptor that QEMU has, where the node may
have a copy of that.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Final

from aetherscale.actors.compute.model.commands import PortSpec
from aetherscale.actors.network.hands import MTU_BYTES, Hands, dns_network, host_addresses
from aetherscale.actors.network.known import Known
from aetherscale.actors.network.model import devices
from aetherscale.actors.network.model.addresses import mac_of, tap_mac_of
from aetherscale.actors.network.model.devices import Alias, Link
from aetherscale.actors.network.model.effects import NetworkSpec
from aetherscale.actors.network.netlink import settings, sysctls, taps
from aetherscale.actors.network.ports import Lend
from aetherscale.kernel.fault import Fault

log = logging.getLogger(__name__)

Lost = tuple[str, str]
"""The id of a network, and what of it is not as it was made, in words."""

_ADDRESS: Final = "address"


@dataclass(frozen=True, slots=True)
class Inspection:
    """Of the devices of these networks and ports, as they are while the driver has its turn. Each raises `Fault`."""

    node: str
    hands: Hands
    known: Known
    bridges: MutableMapping[str, int]
    """The indexes of bridges, by the network's id; one that is right is put in, and 0 for one of the host's that is not
    there.
    """
    plugged: MutableMapping[str, int]
    """The indexes of the taps that are there, by name; one that is gone is taken out."""
    lend: Lend

    async def look(self, name: str = "") -> list[Lost]:
        """What is wrong with the device of this name, or with any; taps are put back."""
        found: list[Lost] = []
        for network_id, spec in self.known.networks.items():
            if spec.bridge is None:
                found += await self._look_at_network(network_id, spec, name)
            elif name in ("", spec.bridge):
                found += self._look_at_bridge_of_host(network_id, spec.bridge)
        for tap in [name] if name in self.plugged else [] if name else list(self.plugged):
            await asyncio.sleep(0)
            if (lost := self.tap(tap)) is not None:
                found.append(lost)
        return found

    def bridge_of_host(self, link: Link) -> str:
        """Which bridge of the host that is a network a device is, or was until it got another name; "" for none."""
        for network_id, spec in self.known.networks.items():
            if spec.bridge is not None and (link.name == spec.bridge or link.index == self.bridges.get(network_id)):
                return spec.bridge
        return ""

    def missed(self) -> list[Lost]:
        """The taps that were removed while no node looked, of VMs that run: those that could be made anew."""
        every = [(vm_id, port) for vm_id, of_vm in self.known.ports.items() for port in of_vm]
        missed = [(vm_id, port) for vm_id, port in every if port.tap not in self.plugged]
        return [(port.network_id, _removed(port)) for vm_id, port in missed if self._is_connected_again(vm_id, port)]

    async def _look_at_network(self, network_id: str, spec: NetworkSpec, name: str) -> list[Lost]:
        bridge = devices.bridge_name(network_id)
        found: list[Lost] = []
        if name in ("", bridge):
            link = self.hands.links.look(bridge)
            if link is None:
                # One that was not there when this process began is missed by whoever begins it.
                return [(network_id, f"the bridge {bridge} is gone")] if network_id in self.bridges else []
            if wrong := await self._wrong_with_bridge(network_id, spec, link):
                found.append((network_id, f"the bridge {bridge} was changed: {', '.join(wrong)}"))
            else:
                self.bridges[network_id] = link.index
        if name in ("", devices.service_name(network_id), devices.advertiser_name(network_id)):
            wrong_cables = self.hands.resolvers.wrong_cables(network_id, bridge, dns_network(spec))
            # Of one whose bridge is gone, that is what is wrong.
            for cable, wrong in wrong_cables.items() if taps.index_of(bridge) else ():
                found.append((network_id, f"the cable {cable} to its resolver was changed: {', '.join(wrong)}"))
        return found

    def _look_at_bridge_of_host(self, network_id: str, name: str) -> list[Lost]:
        """Whether it is the one that it was. Into another one the taps are put at once."""
        link, before = self.hands.links.look(name), self.bridges.get(network_id)
        if link is None or link.kind != "bridge":
            self.bridges.setdefault(network_id, 0)
            return [(network_id, f"the bridge {name} is gone")] if before else []
        self.bridges[network_id] = link.index
        if before == link.index:
            return []
        for tap in [port.tap for port in self.known.ports_in(network_id) if port.tap in self.plugged]:
            self.tap(tap)
        return [] if before is None else [(network_id, f"the bridge {name} was made anew")]

    async def _wrong_with_bridge(self, network_id: str, spec: NetworkSpec, link: Link) -> list[str]:
        addresses = (await self.hands.links.addresses()).get(link.index, set())
        checks = {
            "alias": link.alias == Alias(self.node, "network", network_id),
            "down": link.is_up,
            "address": link.mac == mac_of(link.name),
            "mtu": link.mtu == MTU_BYTES,
            "master": link.master == 0,
            "addresses of the host": addresses == set(host_addresses(network_id, spec)),
            "accept_ra": not sysctls.believes_routers(link.name),
        }
        return _wrong(checks) + settings.wrong_with_bridge(link.settings)

    def tap(self, name: str) -> Lost | None:
        """What is wrong with a tap that is plugged, which is put back."""
        vm_id, port = self.known.port_at(name)
        link, bridge = self.hands.links.look_at(self.plugged[name]), self.known.bridge(port.network_id)
        if link is None:
            del self.plugged[name]
            if self._is_connected_again(vm_id, port):
                return port.network_id, _removed(port)
            gone = f"the tap {name} is gone: VM {port.hostname} is without its network until it is restarted"
            return port.network_id, gone
        if self.known.spec(port.network_id).bridge and self.bridges.get(port.network_id) != taps.index_of(bridge):
            return None  # It is not what was changed, and is put into the next bridge as soon as that is seen.
        wrong = self._wrong_with_tap(port, bridge, Alias(self.node, "port", vm_id), link)
        if not wrong:
            return None
        self._put_back(vm_id, port)
        if wrong == [_ADDRESS]:
            return None  # That of an earlier version was the kernel's choice: nothing was lost.
        return port.network_id, f"the tap {name} of VM {port.hostname} was changed: {', '.join(wrong)}"

    def _is_connected_again(self, vm_id: str, port: PortSpec) -> bool:
        """Whether the tap of a port, which is gone, is there again for the process that had it."""
        descriptor = self.lend(vm_id, port.tap)
        if descriptor is None:
            return False
        try:
            taps.attach_again(descriptor, port.tap)
            # From here on it is one that can be put back.
            self.plugged[port.tap] = taps.index_of(port.tap)
            self._put_back(vm_id, port)
        except Fault as fault:
            log.warning("the tap %s cannot be made anew: %s", port.tap, fault)
        finally:
            os.close(descriptor)
        return port.tap in self.plugged

    def _put_back(self, vm_id: str, port: PortSpec) -> None:
        """Put a tap back, unless its bridge is gone: it is put into the next one when that is made."""
        bridge, alias = self.known.bridge(port.network_id), Alias(self.node, "port", vm_id)
        if taps.index_of(bridge):
            index = self.plugged[port.tap]
            self.hands.links.put_back(port.tap, alias, bridge, devices.group_of(vm_id), index=index, mac=port.mac)

    def _wrong_with_tap(self, port: PortSpec, bridge: str, alias: Alias, link: Link) -> list[str]:
        into, is_ours = taps.index_of(bridge), bridge.startswith(devices.BRIDGE_PREFIX)
        checks = {
            "name": link.name == port.tap,
            "alias": link.alias == alias,
            "down": link.is_up,
            "master": link.master == into,
            "mtu": not into or link.mtu == (MTU_BYTES if is_ours else taps.mtu_of(bridge)),
            "group": link.group == devices.group_of(alias.id),
            _ADDRESS: link.mac == tap_mac_of(port.mac),
        }
        wrong = _wrong(checks)
        if not into or "master" in wrong:
            return wrong
        wrong += settings.wrong_with_port(link.settings, settings.NOTHING_LEARNT)
        if is_ours and self.hands.links.is_up(bridge):
            wrong += settings.wrong_with_port(link.settings, settings.FORWARDING)
        return wrong if self.hands.links.is_known(link.index, port.mac) else [*wrong, "its MAC is not known"]


def is_connected(port: PortSpec, networks: Mapping[str, NetworkSpec], plugged: Mapping[str, int]) -> bool:
    """Whether a port's tap is the one that was plugged, and the bridge of its network is there."""
    spec = networks.get(port.network_id)
    if spec is None or taps.index_of(port.tap) != plugged.get(port.tap, -1):
        return False
    return taps.index_of(spec.bridge or devices.bridge_name(port.network_id)) != 0


def _removed(port: PortSpec) -> str:
    return f"the tap {port.tap} of VM {port.hostname} was removed"


def _wrong(checks: Mapping[str, bool]) -> list[str]:
    return [name for name, is_right in checks.items() if not is_right]
