"""What the firewall has to know of a network and of a port, from what the log has of them. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final, Protocol

from aetherscale.actors.compute.model.commands import Forward
from aetherscale.actors.network.model.addresses import link_local_of
from aetherscale.actors.network.model.devices import bridge_name
from aetherscale.actors.network.model.effects import NetworkSpec
from aetherscale.actors.network.model.ruleset import ForwardRules, NetworkRules, PortRules

_KEPT: Final = 4096
"""Rules of ports that are kept, since a change of one is compared with all of them."""


ANY: Final = ("0.0.0.0/0", "::/0")


class PortFacts(Protocol):
    """What is asked of a port: see compute's `PortSpec`."""

    @property
    def network_id(self) -> str: ...  # noqa: D102
    @property
    def tap(self) -> str: ...  # noqa: D102
    @property
    def mac(self) -> str: ...  # noqa: D102
    @property
    def ipv4(self) -> str | None: ...  # noqa: D102
    @property
    def ipv6(self) -> str | None: ...  # noqa: D102
    @property
    def allowed(self) -> list[str]: ...  # noqa: D102


def network_rules(network_id: str, spec: NetworkSpec) -> NetworkRules:
    """The rules of a network."""
    return NetworkRules(
        bridge=spec.bridge or bridge_name(network_id),
        kind=spec.kind,
        ipv4=IPv4Network(spec.ipv4) if spec.ipv4 else None,
        ipv6=IPv6Network(spec.ipv6) if spec.ipv6 else None,
    )


def forward_rules(forwards: Sequence[Forward]) -> tuple[ForwardRules, ...]:
    """The rules of these forwards. ValueError: one that is not in its canonical form."""
    ordered = sorted(forwards, key=lambda each: (each.protocol, each.host_port, each.address))
    return tuple(
        ForwardRules(each.protocol, ip_address(each.address) if each.address else None, each.host_port, each.guest_port)
        for each in ordered
    )


def port_rules(
    port: PortFacts, network: NetworkSpec, groups: tuple[str, ...] = (), forwards: tuple[ForwardRules, ...] = ()
) -> PortRules:
    """The rules of a port in its network, which bears these groups, in order, and to which these forwards lead.

    Whose addresses are given out by others, as on a bridge of the host, may have any, unless some were allowed: what is
    kept apart there is its MAC.
    """
    bridge = network.bridge or bridge_name(port.network_id)
    allowed = tuple(port.allowed) or (ANY if network.kind == "bridged" else ())
    return _port_rules(port.tap, bridge, port.mac, port.ipv4, port.ipv6, allowed, groups, forwards)


@lru_cache(_KEPT)
def _port_rules(
    tap: str,
    bridge: str,
    mac: str,
    ipv4: str | None,
    ipv6: str | None,
    allowed: tuple[str, ...],
    groups: tuple[str, ...],
    forwards: tuple[ForwardRules, ...],
) -> PortRules:
    own = (link_local_of(mac), *((IPv6Address(ipv6),) if ipv6 else ()))
    return PortRules(
        tap=tap,
        bridge=bridge,
        mac=mac,
        ipv4=IPv4Address(ipv4) if ipv4 else None,
        ipv6=own,
        allowed=tuple(ip_network(each) for each in allowed),
        groups=groups,
        forwards=forwards,
    )
