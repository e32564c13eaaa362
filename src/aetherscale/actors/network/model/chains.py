"""The fixed part of the firewall: sets, chains and hooks. What ports and networks add are elements of the sets alone.

    a frame from a tap ─▶ bridge prerouting ─▶ guard ─▶ guard_arp, guard_ipv4, guard_ipv6 ─▶ payload4, payload6
                                │ in order                                    │ not in order
             ┌──────────────────┴─────────┐                                   └─▶ dropped: counted by port and kind
             ▼                            ▼
      bridge forward: to a port    the host: inet input (ping and no more), inet forward (where its network leads)
             │ unicast for its MAC        │ answers have the mark ANSWER
             ▼                            ▼
        the other tap ◀─────────── bridge output ─▶ from_isolated, from_nat, from_bridged

A tap of our prefix that is not in `ports` sends and receives nothing, in any hook. Two bits of the packet's mark tell
a later hook what an earlier one knew; each is cleared before it is set. The mark of a packet about to be dropped is its
kind.

Nothing here knows a port, a network or an address. It is the language of nft 1.0.6, for Linux 5.10 and later.
"""

from __future__ import annotations

import enum
from typing import Final

TABLE: Final = "aetherscale"
"""The name of our table in each family."""
ANSWER: Final = 0x1000_0000
"""Mark: conntrack knows the flow that the packet belongs to. Set by inet, read by the bridge's output hook."""
GUEST: Final = 0x2000_0000
"""Mark: the packet comes from a guest. Set by the bridge's prerouting hook and where the host routes it, read by inet
input, and by the bridge's output hook, which a packet of a guest meets only if it was routed."""
_OTHER_BITS: Final = 0xFFFF_FFFF & ~(ANSWER | GUEST)

ANSWERS_BY_MARK: Final = f"meta mark & {ANSWER:#x} == {ANSWER:#x} accept"
"""Accepts answers where the bridge family has no conntrack. Elsewhere: `ct state established,related accept`."""

SETS: Final = {
    "ports": ("bridge", "set", "type ifname"),
    "from_host": ("bridge", "map", "type ifname : verdict"),
    "macs": ("bridge", "set", "type ifname . ether_addr"),
    "sources4": ("bridge", "set", "type ifname . ether_addr . ipv4_addr"),
    "sources6": ("bridge", "set", "type ifname . ether_addr . ipv6_addr"),
    "allowed4": ("bridge", "set", "type ifname . ipv4_addr; flags interval"),
    "allowed6": ("bridge", "set", "type ifname . ipv6_addr; flags interval"),
    "nd_macs": ("bridge", "set", "typeof iifname . @th,208,48"),
    "targets": ("bridge", "set", "typeof iifname . @th,64,128"),
    "allowed_targets": ("bridge", "set", "typeof iifname . @th,64,128; flags interval"),
    "drops": ("bridge", "set", "type ifname . mark; size 65535; flags dynamic; counter"),
    "bridges": ("inet", "set", "type ifname . ifname"),
    "leads4": ("inet", "set", "type ifname . ipv4_addr; flags interval"),
    "leads6": ("inet", "set", "type ifname . ipv6_addr; flags interval"),
    "masquerade4": ("inet", "set", "type ipv4_addr; flags interval"),
    "masquerade6": ("inet", "set", "type ipv6_addr; flags interval"),
}
"""Each set by its name: family, `set` or `map`, and what it is of."""


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
    """Sent to the port from outside of its network, and no answer."""


def _drop(kind: Drop, to: str = "dropped") -> str:
    return f"meta mark set {kind:d} goto {to}"


_GUARD: Final = f"""
chain dropped {{
    add @drops {{ iifname . meta mark counter }}
    drop
}}
chain dropped_inward {{
    add @drops {{ oifname . meta mark counter }}
    drop
}}
chain guard {{
    iifname != @ports counter drop
    iifname . ether saddr != @macs {_drop(Drop.MAC)}
    ether type arp goto guard_arp
    ether type ip goto guard_ipv4
    ether type ip6 goto guard_ipv6
    {_drop(Drop.ETHERTYPE)}
}}
chain guard_arp {{
    arp htype 1 arp ptype ip arp hlen 6 arp plen 4 arp operation {{ request, reply }} goto guard_arp_sender
    {_drop(Drop.ARP)}
}}
chain guard_arp_sender {{
    iifname . arp saddr ether . arp saddr ip @sources4 accept
    arp operation request arp saddr ip 0.0.0.0 iifname . arp saddr ether . arp daddr ip @sources4 accept
    iifname . arp saddr ether @macs iifname . arp saddr ip @allowed4 accept
    {_drop(Drop.ARP)}
}}
chain guard_ipv4 {{
    iifname . ether saddr . ip saddr @sources4 goto payload4
    iifname . ip saddr @allowed4 goto payload4
    ip saddr 0.0.0.0 ip daddr 255.255.255.255 goto discover
    {_drop(Drop.IPV4)}
}}
chain discover {{
    ether daddr ff:ff:ff:ff:ff:ff ip frag-off & 0x3fff == 0 udp sport 68 udp dport 67 accept
    {_drop(Drop.IPV4)}
}}
chain payload4 {{
    ip frag-off & 0x3fff != 0 {_drop(Drop.HEADER)}
    udp sport 67 {_drop(Drop.DHCP)}
    udp dport 68 {_drop(Drop.DHCP)}
    icmp type {{ redirect, router-advertisement }} {_drop(Drop.ROUTER)}
    igmp type membership-query {_drop(Drop.ROUTER)}
    meta l4proto != 255 accept
    {_drop(Drop.HEADER)}
}}
"""

_GUARD_IPV6: Final = f"""
chain guard_ipv6 {{
    iifname . ether saddr . ip6 saddr @sources6 goto payload6
    ip6 saddr :: goto unspecified
    iifname . ip6 saddr @allowed6 goto payload6
    {_drop(Drop.IPV6)}
}}
chain unspecified {{
    ip6 nexthdr icmpv6 icmpv6 type nd-neighbor-solicit goto detection
    ip6 nexthdr icmpv6 icmpv6 type nd-router-solicit ip6 length 8 accept
    {_drop(Drop.IPV6)}
}}
chain detection {{
    iifname . @th,64,128 @targets goto detection_options
    iifname . @th,64,128 @allowed_targets goto detection_options
    {_drop(Drop.NEIGHBOR)}
}}
chain detection_options {{
    ip6 length 24 accept
    ip6 length 32 @th,192,16 0x0e01 accept
    {_drop(Drop.NEIGHBOR)}
}}
chain payload6 {{
    ip6 nexthdr {{ 0, 43, 44, 51, 59, 60, 135, 139, 140, 253, 254 }} {_drop(Drop.HEADER)}
    icmpv6 type {{ nd-router-advert, nd-redirect, 138, 151 }} {_drop(Drop.ROUTER)}
    icmpv6 type {{ nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert }} goto neighbor
    udp sport 547 {_drop(Drop.DHCP)}
    udp dport 546 {_drop(Drop.DHCP)}
    meta l4proto != 255 accept
    {_drop(Drop.HEADER)}
}}
chain neighbor {{
    icmpv6 type nd-router-solicit ip6 length 8 accept
    icmpv6 type nd-router-solicit ip6 length 16 @th,64,16 0x0101 iifname . @th,80,48 @nd_macs accept
    icmpv6 type nd-neighbor-solicit ip6 length 24 accept
    icmpv6 type nd-neighbor-solicit ip6 length 32 @th,192,16 0x0101 iifname . @th,208,48 @nd_macs accept
    icmpv6 type nd-neighbor-advert iifname . @th,64,128 @targets goto advert_options
    icmpv6 type nd-neighbor-advert iifname . @th,64,128 @allowed_targets goto advert_options
    {_drop(Drop.NEIGHBOR)}
}}
chain advert_options {{
    ip6 length 24 accept
    ip6 length 32 @th,192,16 0x0201 iifname . @th,208,48 @nd_macs accept
    {_drop(Drop.NEIGHBOR)}
}}
"""


def bridge_chains(answers: str) -> str:
    """The chains of the family bridge; `answers` is the one line that accepts answers from outside."""
    return f"""{_GUARD}{_GUARD_IPV6}
chain from_isolated {{
    {_drop(Drop.UNINVITED, "dropped_inward")}
}}
chain from_nat {{
    {answers}
    ether type arp accept
    icmpv6 type {{ nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert }} accept
    {_drop(Drop.UNINVITED, "dropped_inward")}
}}
chain from_bridged {{
    meta mark & {GUEST:#x} == {GUEST:#x} {_drop(Drop.UNINVITED, "dropped_inward")}
    accept
}}
chain prerouting {{
    type filter hook prerouting priority -300; policy accept
    meta mark set meta mark & {_OTHER_BITS:#x}
    iifname "aep*" meta mark set meta mark | {GUEST:#x}
    iifname "aep*" goto guard
}}
chain forward {{
    type filter hook forward priority -200; policy accept
    iifname "aep*" iifname != @ports counter drop
    oifname "aep*" oifname != @ports counter drop
    oifname "aep*" ether daddr & 01:00:00:00:00:00 == 00:00:00:00:00:00 oifname . ether daddr != @macs counter drop
}}
chain output {{
    type filter hook output priority -200; policy accept
    oifname "aep*" ether daddr & 01:00:00:00:00:00 == 00:00:00:00:00:00 oifname . ether daddr != @macs counter drop
    oifname vmap @from_host
    oifname "aep*" counter drop
}}
"""


# What is no answer is dropped here already, though the bridge's output hook would do it: that is after conntrack has
# confirmed the flow, and two sides that each send would be each other's answers.
INET_CHAINS: Final = f"""
chain prerouting {{
    type filter hook prerouting priority -300; policy accept
    iifname "aep*" counter drop
}}
chain input {{
    type filter hook input priority -150; policy accept
    iifname "aeb*" goto to_host
    meta mark & {GUEST:#x} == {GUEST:#x} goto to_host
}}
chain to_host {{
    ct state established,related accept
    icmp type echo-request accept
    icmpv6 type {{ echo-request, nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert }} accept
    counter drop
}}
chain forward {{
    type filter hook forward priority -150; policy accept
    iifname . oifname @bridges accept
    iifname "aeb*" oifname "aeb*" counter drop
    iifname "aeb*" goto leaving
    oifname "aeb*" goto entering
}}
chain leaving {{
    iifname . ip saddr @leads4 meta mark set meta mark | {GUEST:#x} accept
    iifname . ip6 saddr @leads6 meta mark set meta mark | {GUEST:#x} accept
    counter drop
}}
chain entering {{
    meta mark set meta mark & {~ANSWER & 0xFFFF_FFFF:#x}
    ct state established,related meta mark set meta mark | {ANSWER:#x} accept
    counter drop
}}
chain output {{
    type filter hook output priority -150; policy accept
    oifname "aep*" counter drop
    meta mark set meta mark & {_OTHER_BITS:#x}
    oifname "aeb*" ct state new counter drop
    oifname "aeb*" ct state established,related meta mark set meta mark | {ANSWER:#x}
}}
chain postrouting {{
    type nat hook postrouting priority 100; policy accept
    oifname != "aeb*" ip saddr @masquerade4 masquerade
    oifname != "aeb*" ip6 saddr @masquerade6 masquerade
}}
"""

ARP_CHAINS: Final = """
chain input {
    type filter hook input priority 0; policy accept
    iifname "aep*" counter drop
}
chain output {
    type filter hook output priority 0; policy accept
    oifname "aep*" counter drop
}
"""
