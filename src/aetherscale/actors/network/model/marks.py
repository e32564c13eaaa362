"""What the tables of the firewall share: their names, the bits of a packet's mark, and why a packet was dropped."""

from __future__ import annotations

import enum
from typing import Final

TABLE: Final = "aetherscale"
"""The name of our table in each family."""
FLOWS_TABLE: Final = "aetherscale_flows"
"""The name of the table of flows (`flows.py`), of the family bridge."""
TABLES: Final = (TABLE, FLOWS_TABLE)
ANSWER: Final = 0x1000_0000
"""Mark: conntrack knows the flow that the packet belongs to. Set by inet, read by the bridge's output hook."""
GUEST: Final = 0x2000_0000
"""Mark: the packet comes from a guest. Set by the bridge's prerouting hook and where the host routes it, read by inet
input, and by the bridge's output hook, which a packet of a guest meets only if it was routed."""
REPLY: Final = 0x4000_0000
"""Mark: the packet is an answer to what the port has sent or has taken. Set by the table of flows, read at the port."""
BEGUN: Final = 113
"""Label of conntrack: the first packet of the flow came from the host itself, or left a network by way of the host. Set
where only such packets are. "Established" alone says less: what two ports of a bridge send each other is tracked too
where br_netfilter shows it to conntrack, and one of the two may have sent as the host, or as the world."""
OPENED: Final = 114
"""Label of conntrack: the host began the flow, to a port that has groups. It ends when the port has none."""
FORWARDED: Final = 115
"""Label of conntrack: a forward of ours has led the flow to a guest."""


class Drop(enum.IntEnum):
    """Why a packet of a port was dropped. The number is the second half of its key in the set `drops`."""

    MAC = 1
    """A source MAC that is not the port's."""
    ARP = 2
    """ARP whose sender is not the port, or that is not ARP for IPv4 on Ethernet."""
    IPV4 = 3
    """A source address of IPv4 that is not the port's."""
    IPV6 = 4
    """A source address of IPv6 that is not the port's."""
    NEIGHBOR = 5
    """Neighbor discovery for an address, or with a link-layer address, that is not the port's."""
    ROUTER = 6
    """A router advertisement, a redirect, or a router's question for members of groups."""
    DHCP = 7
    """An answer of DHCP or DHCPv6."""
    ETHERTYPE = 8
    """Not ARP, IPv4 or IPv6; also what has a VLAN tag."""
    HEADER = 9
    """A fragment, an extension header of IPv6, or a header that is not well-formed."""
    UNINVITED = 10
    """Sent to the port from outside of its network, or to one that has groups, none of which allows it; no answer."""
    FORBIDDEN = 11
    """Sent though no group of the port allows it, and no answer."""
