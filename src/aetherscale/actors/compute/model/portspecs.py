"""What is known of the ports of a VM, of those of the host that lead to it, and of its rules. Pure data."""

from __future__ import annotations

from typing import Final, Literal

from msgspec import Struct


class PortSpec(Struct, frozen=True, rename="kebab"):
    """A port of a VM: its place in a network. A part of the event `VmRequested`: what is in it is the same for ever."""

    network_id: str
    """The id of the network."""
    network: str
    """The name of the network when the VM was requested."""
    hostname: str
    """The name that the guest has in the network: that of the VM."""
    tap: str
    """The name of the port's device on the host, which follows from the id of the VM."""
    mac: str
    """The MAC address of the guest's network card, lower case, with colons. It follows from the id too."""
    ipv4: str | None
    """The IPv4 address of the guest; null where the network has no IPv4 prefix of ours."""
    ipv6: str | None
    """The IPv6 address of the guest; null where the network has no IPv6 prefix of ours."""
    allowed: list[str] = []
    """Prefixes that the guest may send from besides its own addresses."""


class PublishedPort(Struct, frozen=True, rename="kebab"):
    """A port of the host that leads to one of a guest with user-mode networking. A part of the event `VmRequested`."""

    protocol: Literal["tcp", "udp"]
    """The protocol."""
    address: str
    """The IPv4 address of the host that the port is open on; `0.0.0.0` for all of them."""
    host_port: int
    """The port of the host, which no other VM of the node has for the protocol."""
    guest_port: int
    """The port of the guest that it leads to."""


class Forward(Struct, frozen=True, rename="kebab"):
    """A port of the host that leads to one of a VM in a network. A part of the event `ForwardAdded`."""

    id: str
    """Names it among the forwards of the node: 16 hex digits."""
    protocol: Literal["tcp", "udp"]
    """The protocol."""
    address: str
    """The address of the host that it is about; "" for all of them, of both families."""
    host_port: int
    """The port of the host, which no other VM of the node has for the protocol."""
    guest_port: int
    """The port of the guest that it leads to."""


class BorneGroup(Struct, frozen=True, rename="kebab"):
    """A group that a VM bears. A part of the events `VmRequested` and `GroupsSet`."""

    group_id: str
    """The id of the group."""
    group: str
    """The name of the group when it was set."""


class VmRules(Struct, frozen=True):
    """What the firewall has to know of a VM beside its ports: a part of its state as of one moment."""

    groups: tuple[str, ...] = ()
    """The ids of the groups that it bears, in order; none: it takes anything from its own networks alone."""
    forwards: tuple[Forward, ...] = ()
    """The ports of the host that lead to it."""


NO_RULES: Final = VmRules()
