"""What changes the host for networks: devices, rules, resolvers. Opened together, when the first of them is needed."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from pathlib import Path
from typing import Final

from aetherscale.actors.compute.model.commands import PortSpec
from aetherscale.actors.network import lacks
from aetherscale.actors.network.claim import Claim
from aetherscale.actors.network.claim import claim as take_claim
from aetherscale.actors.network.dnsmasq.resolvers import OnEnd, Resolvers
from aetherscale.actors.network.firewall import Firewall
from aetherscale.actors.network.model.addresses import link_local_of, mac_of, router_of
from aetherscale.actors.network.model.devices import Alias, bridge_name, group_of
from aetherscale.actors.network.model.dns import Address, DnsNetwork, DnsPort, Elsewhere
from aetherscale.actors.network.model.effects import OF_HOST, NetworkSpec
from aetherscale.actors.network.netlink.links import Links
from aetherscale.actors.network.nft.counters import DropCounters
from aetherscale.actors.network.nft.nftables import Nftables

log = logging.getLogger(__name__)

MTU_BYTES: Final = 1500
_KEPT: Final = 4096
"""Ports that are kept as resolvers know them, since a change of one writes down all of a network."""


@dataclass(frozen=True, slots=True)
class Hands:
    """Opened by `open_hands`. Every method may be repeated; each raises `Fault`, and `OSError` of files."""

    node: str
    links: Links
    firewall: Firewall
    resolvers: Resolvers
    claim: Claim
    counters: DropCounters

    async def close(self) -> None:
        """Let go. What is on the host stays and runs on."""
        await self.resolvers.close()
        await self.firewall.close()
        await self.links.close()
        self.claim.close()
        self.counters.close()

    async def ensure_bridge(self, network_id: str, spec: NetworkSpec, index: int = 0) -> int:
        """Ensure the bridge of a network of our own, with the addresses that the host has in it; its index.

        `index` is the one that it is known by, if any.
        """
        bridge, alias = bridge_name(network_id), Alias(self.node, "network", network_id)
        index = await self.links.ensure_bridge(bridge, alias, MTU_BYTES, index=index)
        await self.links.keep_addresses(bridge, host_addresses(network_id, spec))
        return index

    async def ensure_resolver(
        self, network_id: str, spec: NetworkSpec, ports: Iterable[PortSpec], beside: Sequence[NetworkSpec]
    ) -> None:
        """Ensure that the network's resolver serves, and knows these ports; `beside`: other networks of their VMs."""
        bridge, network = bridge_name(network_id), dns_network(spec)
        await self.resolvers.ensure(network_id, bridge, network, map(dns_port, ports), dns_elsewhere(beside))

    async def open_taps(self, vm_id: str, ports: Sequence[PortSpec], bridge_of: Callable[[str], str]) -> list[int]:
        """Ensure that a VM's taps are there, in their bridges; the descriptors that QEMU inherits, in order."""
        opened: list[int] = []
        alias, group = Alias(self.node, "port", vm_id), group_of(vm_id)
        try:
            for port in ports:
                bridge = bridge_of(port.network_id)
                opened.append(await self.links.open_tap(port.tap, alias, bridge, group, mac=port.mac))
        except BaseException:
            for descriptor in opened:
                os.close(descriptor)
            raise
        return opened

    async def remove_network(self, network_id: str) -> None:
        """Ensure that no resolver and no bridge of our own is left of a network."""
        await self.resolvers.remove(network_id)
        await self.links.remove_bridge(bridge_name(network_id), Alias(self.node, "network", network_id))

    async def remove_orphans(self, taps: Container[str], bridges: Iterable[str]) -> None:
        """As `remove_devices`."""
        await remove_devices(self.links, taps, bridges)

    def dropped(self, taps: Iterable[str]) -> dict[str, Mapping[str, int]]:
        """The packets of each tap that were dropped, by kind; without taps of which none was."""
        found: dict[str, Mapping[str, int]] = {}
        for tap in taps:
            try:
                counted = self.counters.of_port(tap)
            except OSError as failure:
                log.warning("the packets that were dropped of %s cannot be counted: %s", tap, failure)
                continue
            if counted:
                found[tap] = {kind.name.lower(): packets for kind, packets in counted.items()}
        return found


async def open_hands(
    node: str, state_dir: Path, on_end: OnEnd, *, upstreams: Callable[[], Sequence[Address]], allow_unisolated: bool
) -> Hands:
    """What changes the host, in the network namespace that this runs in. Raises `Fault`, `OSError`.

    `upstreams` tells whom the host asks of names, each time that a resolver is ensured.
    """
    if (lacking := lacks.for_networks()) is not None:
        raise lacking
    async with AsyncExitStack() as opened:
        claim = opened.enter_context(closing(take_claim(state_dir)))
        links = Links(node)
        opened.push_async_callback(links.close)
        await links.open()
        resolvers = Resolvers(state_dir, node, on_end, upstreams=upstreams, allow_unisolated=allow_unisolated)
        opened.push_async_callback(resolvers.close)
        await resolvers.start()
        hands = Hands(node, links, Firewall(Nftables()), resolvers, claim, DropCounters())
        opened.pop_all()
        return hands


async def remove_devices(links: Links, taps: Container[str], bridges: Iterable[str]) -> None:
    """Remove devices of a node that are neither these taps nor these bridges: the taps first. Raises `Fault`."""
    kept = set(bridges)
    ours = [(link.name, link.alias) for link in await links.ours() if link.alias is not None]
    await links.remove_taps([name for name, alias in ours if alias.kind == "port" and name not in taps])
    for name, alias in ours:
        if alias.kind == "network" and name not in kept:
            await links.remove_bridge(name, alias)


def dns_network(spec: NetworkSpec) -> DnsNetwork:
    """A network of our own as its resolver knows it."""
    assert spec.kind == "isolated" or spec.kind == "nat", "a bridge of the host has no resolver of ours"
    ipv4, ipv6 = IPv4Network(spec.ipv4) if spec.ipv4 else None, IPv6Network(spec.ipv6) if spec.ipv6 else None
    return DnsNetwork(spec.name, spec.kind, ipv4, ipv6, MTU_BYTES)


def dns_elsewhere(beside: Sequence[NetworkSpec]) -> Elsewhere:
    """What VMs can resolve in these networks. Those of a bridge of the host ask whom others of that bridge ask."""
    own = tuple(dns_network(spec) for spec in beside if spec.kind not in OF_HOST)
    return Elsewhere(own, outside=any(spec.kind != "isolated" for spec in beside))


def dns_port(port: PortSpec) -> DnsPort:
    """A port as the resolver of its network knows it."""
    return _dns_port(port.hostname, port.mac, port.ipv4, port.ipv6)


@lru_cache(_KEPT)
def _dns_port(hostname: str, mac: str, ipv4: str | None, ipv6: str | None) -> DnsPort:
    return DnsPort(hostname, mac, IPv4Address(ipv4) if ipv4 else None, IPv6Address(ipv6) if ipv6 else None)


def host_addresses(network_id: str, spec: NetworkSpec) -> list[IPv4Interface | IPv6Interface]:
    """The addresses that the host has in a network of our own: those of its router, in one that it routes."""
    found: list[IPv4Interface | IPv6Interface] = []
    if spec.kind == "nat" and spec.ipv4:
        ipv4 = IPv4Network(spec.ipv4)
        found.append(IPv4Interface((int(router_of(ipv4)), ipv4.prefixlen)))
    if spec.kind == "nat" and spec.ipv6:
        ipv6 = IPv6Network(spec.ipv6)
        found.append(IPv6Interface((int(router_of(ipv6)), ipv6.prefixlen)))
        # By which guests know it.
        found.append(IPv6Interface((int(link_local_of(mac_of(bridge_name(network_id)))), 64)))
    return found
