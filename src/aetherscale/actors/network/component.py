"""The network component: virtual networks."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network
from typing import Final

from aetherscale.actors.network import IDENTITY
from aetherscale.actors.network.model import addresses, commands, events
from aetherscale.actors.network.model.addresses import Prefix
from aetherscale.actors.network.model.commands import CreateNetworkOptions, ListNetworksOptions, NetworkOptions
from aetherscale.actors.network.model.decide import NETWORKS as DECIDER
from aetherscale.actors.network.model.decide import NetworkMessage
from aetherscale.actors.network.model.effects import OF_HOST, NetworkSpec
from aetherscale.actors.network.model.presentation import (
    BRIDGE,
    NETWORK_KIND,
    PREFIX,
    announce,
    blocks,
    holds,
    is_deleted,
    is_made,
)
from aetherscale.actors.network.model.ruleset import BRIDGE_OF_HOST
from aetherscale.actors.network.model.state import Network
from aetherscale.actors.network.ports import FIREWALL, HOST_NETWORKS, VM_PORTS, HostNetworks, HostRoutes
from aetherscale.kernel.calls import Call
from aetherscale.kernel.errors import Reason, Refused
from aetherscale.kernel.findings import Finding
from aetherscale.kernel.reservations import NO_TENANT
from aetherscale.runtime.component import Command, Component, Driver, Host, Listing, World
from aetherscale.settings import Settings


def _create(options: CreateNetworkOptions, call: Call, network_id: str, world: World) -> commands.CreateNetwork:
    host: HostNetworks = world.port(HOST_NETWORKS)
    host.require(options.kind)
    world.require_free(events.KIND, call.tenant, options.name, network_id)
    if options.kind in OF_HOST:
        return commands.CreateNetwork(network_id, _of_host(options, network_id, world, host))
    if options.bridge is not None:
        raise Refused(
            Reason.BAD_REQUEST,
            f"a network of the kind {options.kind!r} has a bridge of its own",
            field="bridge",
            remedy="leave it out, or take the kind bridged or public",
        )
    routes = host.routes()
    spec = NetworkSpec(
        name=options.name,
        kind=options.kind,
        ipv4=_ipv4(options, network_id, world, routes),
        ipv6=_ipv6(options, network_id, world, routes),
        bridge=None,
    )
    return commands.CreateNetwork(network_id, spec)


def _of_host(options: CreateNetworkOptions, network_id: str, world: World, host: HostNetworks) -> NetworkSpec:
    """A network that is a bridge of the host. Raises `Refused` (bad request, conflict)."""
    for field, value in (("ipv4-prefix", options.ipv4_prefix), ("ipv6-prefix", options.ipv6_prefix)):
        if value is not None:
            raise Refused(
                Reason.BAD_REQUEST,
                f"a {options.kind} network has the addresses of the network that its bridge leads to",
                field=field,
                remedy="leave it out",
            )
    bridge = host.public_bridge() if options.kind == "public" and options.bridge is None else options.bridge
    if bridge is None:
        raise Refused(
            Reason.BAD_REQUEST,
            "a bridged network is a bridge of the host: which one?",
            field="bridge",
            remedy="name it; the host's are listed by: ip -br link type bridge",
        )
    if BRIDGE_OF_HOST.fullmatch(bridge) is None:
        raise Refused(
            Reason.BAD_REQUEST,
            f"got {bridge[:40]!r}, expected the name of a bridge of the host's own, as br0",
            field="bridge",
        )
    holder = world.named(BRIDGE, NO_TENANT, bridge)
    if holder is not None and holder.id != network_id:
        raise Refused(
            Reason.CONFLICT,
            f"the network {holder.state.name!r} is the bridge {bridge} of the host already",
            field="bridge",
            remedy="use that network, or name another bridge: ip -br link type bridge",
        )
    return NetworkSpec(options.name, options.kind, None, None, bridge)


def _ipv4(options: CreateNetworkOptions, network_id: str, world: World, routes: HostRoutes) -> str | None:
    """The IPv4 prefix: the one that was given, or a free one where the network needs one. Raises `Refused`."""
    if options.ipv4_prefix is not None:
        given = addresses.parse_ipv4(options.ipv4_prefix, field="ipv4-prefix")
        return str(_free(given, network_id, world, routes, "ipv4-prefix")) if given is not None else None
    if options.kind != "nat":
        return None
    taken = list(routes)
    while True:
        found = addresses.free_ipv4_prefix(network_id, taken)
        if _holder(found, network_id, world) is None:
            return str(found)
        taken.append(found)


def _ipv6(options: CreateNetworkOptions, network_id: str, world: World, routes: HostRoutes) -> str:
    """The IPv6 prefix: the one that was given, or the network's own. Raises `Refused`."""
    text = options.ipv6_prefix
    given = addresses.ula_prefix(network_id) if text is None else addresses.parse_ipv6(text, field="ipv6-prefix")
    return str(_free(given, network_id, world, routes, "ipv6-prefix"))


def _free(
    prefix: IPv4Network | IPv6Network, network_id: str, world: World, routes: HostRoutes, field: str
) -> IPv4Network | IPv6Network:
    """The prefix, where no network and no route of the host has any of it. Raises `Refused` (conflict)."""
    holder = _holder(prefix, network_id, world)
    if holder is not None:
        raise Refused(
            Reason.CONFLICT,
            f"{prefix} overlaps the network {holder.name!r}, which has {_prefixes(holder)}",
            field=field,
            remedy="take another prefix, or leave it out for a free one",
        )
    route = addresses.overlaps(prefix, routes)
    if route is not None:
        raise Refused(
            Reason.CONFLICT,
            f"{prefix} overlaps the host's route to {route} (device {routes[route]})",
            field=field,
            remedy="take another prefix, or leave it out for a free one",
        )
    return prefix


def _holder(prefix: Prefix, network_id: str, world: World) -> Network | None:
    """Another network that has some of the prefix reserved."""
    for block in blocks(str(prefix)):
        found = world.named(PREFIX, NO_TENANT, block)
        if found is not None and found.id != network_id:
            state: Network = found.state
            return state
    return None


def _prefixes(network: Network) -> str:
    return " and ".join(prefix for prefix in (network.spec.ipv4, network.spec.ipv6) if prefix)


def _delete(options: NetworkOptions, call: Call, network_id: str, world: World) -> commands.DeleteNetwork:
    return commands.DeleteNetwork(network_id, tuple(world.users_of(events.KIND, network_id)))


def _open_driver(host: Host) -> Driver[Network, NetworkMessage]:
    if host.settings.simulated:
        return _open_simulated(host)
    from aetherscale.actors.network.driver import HostNetworking

    settings = host.settings
    return HostNetworking(
        settings.node,
        host.boot_id,
        settings.state_dir,
        allow_unisolated=settings.allow_unisolated,
        public_bridge=settings.public_bridge,
    )


def _open_simulated(host: Host) -> Driver[Network, NetworkMessage]:
    from aetherscale.actors.network.simulated.driver import SimulatedNetworking
    from aetherscale.actors.network.simulated.host import SimulatedNetworks

    networks = SimulatedNetworks()
    networks.boot_id = host.boot_id
    return SimulatedNetworking(networks)


def _needs(settings: Settings) -> Iterator[Finding]:
    from aetherscale.actors.network.needs import findings

    return findings(settings)


def _offered(driver: Driver[Network, NetworkMessage]) -> Driver[Network, NetworkMessage]:
    return driver


COMPONENT: Final[Component[Network, NetworkMessage]] = Component(
    identity=IDENTITY,
    kind=NETWORK_KIND,
    decider=DECIDER,
    holds=holds,
    announce=announce,
    listing=Listing(ListNetworksOptions, NetworkOptions),
    commands={
        "create-network": Command(CreateNetworkOptions, _create, is_made, creates=True),
        "delete-network": Command(NetworkOptions, _delete, is_deleted, frees=True),
    },
    open_driver=_open_driver,
    open_simulated=_open_simulated,
    offers={FIREWALL: _offered, HOST_NETWORKS: _offered, VM_PORTS: _offered},
    ends={
        events.NetworkRequested: is_made,
        events.NetworkDeleteRequested: is_deleted,
    },
    needs=_needs,
    counts={"networks": lambda network: True},
)
