"""The guard: what no port may send, whatever its groups allow. Everything a guest sends meets it first.

Who a port is: its MAC and addresses, those that it is allowed, and those that were leased to it. What it says in the
name of its network: neighbor discovery, DHCP, the words of routers. `chains.py` has the hooks that lead here.

The addresses that neighbor discovery is about are looked up in chains of their own. Beside the type of ICMPv6, nft 1.1
lists them by a name (`icmpv6 taddr`) that it does not read again in a set, as who restores a list has it do.
"""

from __future__ import annotations

from typing import Final

from aetherscale.actors.network.model import leases
from aetherscale.actors.network.model.marks import Drop

DROPPED: Final = {
    ("bridge", "dropped"): "add @drops { iifname . meta mark counter } drop",
    ("bridge", "dropped_inward"): "add @drops { oifname . meta mark counter } drop",
    ("inet", "dropped"): "counter drop",
    ("inet", "dropped_inward"): "counter drop",
}
"""What is dropped of what a port has sent, and of what was sent to one, where that is counted, or the law has it. The
chain has this rule, and while somebody watches those of `droplog.py` before it.
"""


def dropped(family: str) -> str:
    """The chains of `DROPPED` of a family, while nobody watches."""
    return "".join(f"\nchain {chain} {{\n    {rule}\n}}" for (of, chain), rule in DROPPED.items() if of == family)


def drop(kind: Drop, to: str = "dropped") -> str:
    """What drops a packet, and counts it as one of this kind."""
    return f"meta mark set {kind:d} goto {to}"


_OWN: Final = f"""iifname != @ports counter drop
    iifname . ether saddr != @macs {drop(Drop.MAC)}"""
"""A port that we know, and its MAC. Who has a source address of its own has both."""
GUARD: Final = f"""{dropped("bridge")}
chain guard {{
    ether type ip goto guard_ipv4
    ether type ip6 goto guard_ipv6
    {_OWN}
    ether type arp goto guard_arp
    {drop(Drop.ETHERTYPE)}
}}
chain guard_arp {{
    arp htype 1 arp ptype ip arp hlen 6 arp plen 4 arp operation {{ request, reply }} goto guard_arp_sender
    {drop(Drop.ARP)}
}}
chain guard_arp_sender {{
    iifname . arp saddr ether . arp saddr ip @sources4 accept
    arp operation request arp saddr ip 0.0.0.0 iifname . arp saddr ether . arp daddr ip @sources4 accept
    iifname . arp saddr ether != @macs {drop(Drop.ARP)}
    iifname . arp saddr ip @allowed4 accept
    {leases.SENDER}
    {drop(Drop.ARP)}
}}
chain guard_ipv4 {{
    iifname . ether saddr . ip saddr @sources4 goto payload4
    {_OWN}
    iifname . ip saddr @allowed4 goto payload4
    {leases.SOURCE}
    ip saddr 0.0.0.0 ip daddr 255.255.255.255 goto discover
    {drop(Drop.IPV4)}
}}
chain discover {{
    ether daddr ff:ff:ff:ff:ff:ff ip frag-off & 0x3fff == 0 udp sport 68 udp dport 67 accept
    {drop(Drop.IPV4)}
}}
chain payload4 {{
    ip frag-off & 0x3fff == 0 meta l4proto tcp accept
    ip frag-off & 0x3fff != 0 {drop(Drop.HEADER)}
    udp sport 67 {drop(Drop.DHCP)}
    udp dport 68 {drop(Drop.DHCP)}
    icmp type {{ redirect, router-advertisement }} {drop(Drop.ROUTER)}
    igmp type membership-query {drop(Drop.ROUTER)}
    meta l4proto != 255 accept
    {drop(Drop.HEADER)}
}}
"""

GUARD_IPV6: Final = f"""
chain guard_ipv6 {{
    iifname . ether saddr . ip6 saddr @sources6 goto payload6
    {_OWN}
    ip6 saddr :: goto unspecified
    iifname . ip6 saddr @allowed6 goto payload6
    ip6 saddr {{ 2000::/3, fc00::/7 }} iifname . @nh,128,64 @formed goto payload6
    {drop(Drop.IPV6)}
}}
chain unspecified {{
    ip6 nexthdr icmpv6 icmpv6 type nd-neighbor-solicit goto detection
    ip6 nexthdr icmpv6 icmpv6 type nd-router-solicit ip6 length 8 accept
    {drop(Drop.IPV6)}
}}
chain detection {{
    iifname . @th,64,128 @targets goto detection_options
    iifname . @th,64,128 @allowed_targets goto detection_options
    iifname . @th,128,64 @formed goto detection_options
    {drop(Drop.NEIGHBOR)}
}}
chain detection_options {{
    ip6 length 24 accept
    ip6 length 32 @th,192,16 0x0e01 accept
    {drop(Drop.NEIGHBOR)}
}}
chain payload6 {{
    ip6 nexthdr tcp meta l4proto tcp accept
    ip6 nexthdr {{ 0, 43, 44, 51, 59, 60, 135, 139, 140, 253, 254 }} {drop(Drop.HEADER)}
    icmpv6 type {{ nd-router-advert, nd-redirect, 138, 151 }} {drop(Drop.ROUTER)}
    icmpv6 type {{ nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert }} goto neighbor
    udp sport 547 {drop(Drop.DHCP)}
    udp dport 546 {drop(Drop.DHCP)}
    meta l4proto != 255 accept
    {drop(Drop.HEADER)}
}}
chain neighbor {{
    icmpv6 type nd-router-solicit ip6 length 8 accept
    icmpv6 type nd-router-solicit ip6 length 16 @th,64,16 0x0101 iifname . @th,80,48 @nd_macs accept
    icmpv6 type nd-neighbor-solicit ip6 length 24 accept
    icmpv6 type nd-neighbor-solicit ip6 length 32 @th,192,16 0x0101 iifname . @th,208,48 @nd_macs accept
    icmpv6 type nd-neighbor-advert goto advert
    {drop(Drop.NEIGHBOR)}
}}
chain advert {{
    iifname . @th,64,128 @targets goto advert_options
    iifname . @th,64,128 @allowed_targets goto advert_options
    iifname . @th,128,64 @formed goto advert_options
    {drop(Drop.NEIGHBOR)}
}}
chain advert_options {{
    ip6 length 24 accept
    ip6 length 32 @th,192,16 0x0201 iifname . @th,208,48 @nd_macs accept
    {drop(Drop.NEIGHBOR)}
}}
"""
