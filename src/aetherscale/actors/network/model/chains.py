"""The fixed part of the firewall: sets, chains and hooks. What ports and networks add are elements of the sets alone.

    a frame from a tap ─▶ bridge prerouting ─▶ guard ─▶ guard_arp, guard_ipv4, guard_ipv6 ─▶ payload4, payload6
                                │ in order                                    │ not in order
             ┌──────────────────┴─────────┐                                   └─▶ dropped: counted by port and kind
             ▼                            ▼
      bridge forward: to a port    the host: inet input (ping and no more), inet forward (where its network leads)
             │ unicast for its MAC        │ answers have the mark ANSWER
             │                            ▼
             │                      bridge output ─▶ from_isolated, from_nat, from_bridged: ports without groups
             ▼                            ▼
        ingress, of a port with groups: the chain of its set of groups, then those of each, then dropped

A tap of our prefix that is not in `ports` sends and receives nothing, in any hook. Each port is in `egress`, `ingress`
and `from_host`, and what comes back from where they lead is dropped: while rules change, a packet may find nothing in a
map, or a new chain empty, though no moment had such rules (docs/firewall.md).

Bits of a packet's mark tell a later hook what an earlier one knew; each is cleared before it is set. The mark of
one about to be dropped is its kind.

Nothing here knows a port, a network or an address. It is the language of nft 1.0.6, for Linux 5.10 and later.
"""

from __future__ import annotations

from typing import Final

from aetherscale.actors.network.model import forwards, leases, looked_up
from aetherscale.actors.network.model.guard import GUARD, GUARD_IPV6, drop, dropped
from aetherscale.actors.network.model.marks import ANSWER as ANSWER
from aetherscale.actors.network.model.marks import BEGUN, COVER_TABLE, FORWARDED, GUEST, LOOKED_UP, OPENED, REPLY
from aetherscale.actors.network.model.marks import TABLE as TABLE
from aetherscale.actors.network.model.marks import Drop as Drop

_OTHER_BITS: Final = 0xFFFF_FFFF & ~(ANSWER | GUEST | REPLY | LOOKED_UP)

NOTE: Final = "made2"
"""The set that has a note of how the tables were when they were made: see `nft/structure.py`."""

ANSWERS_BY_MARK: Final = f"meta mark & {ANSWER:#x} == {ANSWER:#x} accept"
"""Accepts answers, also where the bridge family has no conntrack. What it has elsewhere is no shorter: see `BEGUN`."""

SETS: Final = {
    "ports": ("bridge", "set", "type ifname"),
    "from_host": ("bridge", "map", "type ifname : verdict"),
    "ingress": ("bridge", "map", "type ifname : verdict"),
    "egress": ("bridge", "map", "type ifname : verdict"),
    "judged": ("bridge", "set", "type ifname"),
    "resolvers4": ("bridge", "set", "type ifname . ipv4_addr"),
    "resolvers6": ("bridge", "set", "type ifname . ipv6_addr"),
    "macs": ("bridge", "set", "type ifname . ether_addr"),
    "sources4": ("bridge", "set", "type ifname . ether_addr . ipv4_addr"),
    "sources6": ("bridge", "set", "type ifname . ether_addr . ipv6_addr"),
    "allowed4": ("bridge", "set", "type ifname . ipv4_addr; flags interval"),
    "allowed6": ("bridge", "set", "type ifname . ipv6_addr; flags interval"),
    "nd_macs": ("bridge", "set", "typeof iifname . @th,208,48"),
    "targets": ("bridge", "set", "typeof iifname . @th,64,128"),
    "allowed_targets": ("bridge", "set", "typeof iifname . @th,64,128; flags interval"),
    "formed": ("bridge", "set", "typeof iifname . @nh,128,64"),
    "drops": ("bridge", "set", "type ifname . mark; size 65535; flags dynamic; counter"),
    "bridges": ("inet", "set", "type ifname . ifname"),
    "routed": ("inet", "set", "type ifname"),
    "leads4": ("inet", "set", "type ifname . ipv4_addr; flags interval"),
    "leads6": ("inet", "set", "type ifname . ipv6_addr; flags interval"),
    "masquerade4": ("inet", "set", "type ipv4_addr; flags interval"),
    "masquerade6": ("inet", "set", "type ipv6_addr; flags interval"),
    NOTE: ("inet", "set", "type mark"),
    "open4": ("inet", "set", "type ifname . ipv4_addr"),
    "open6": ("inet", "set", "type ifname . ipv6_addr"),
    **leases.SETS,
    **forwards.SETS,
}
"""Each set by its name: family, `set` or `map`, and what it is of."""


# A port that has groups. What a network needs to be one passes. What says a router's or a neighbor's words is on the
# link, since a router lowers the hop limit. Answers of DHCP come from a resolver of ours, or on a bridge of the host
# from any machine of it: the guard keeps ports of ours from sending them.
_BASICS: Final = f"""
chain uninvited {{
    {drop(Drop.UNINVITED, "dropped_inward")}
}}
chain forbidden {{
    {drop(Drop.FORBIDDEN)}
}}
chain basics_in {{
    meta mark & {REPLY:#x} == {REPLY:#x} accept
    ether type arp accept
    ip6 hoplimit 255 icmpv6 type {{ nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert }} accept
    iifname "aes*" accept
    iifname "aer*" accept
    ether type != {{ ip, ip6 }} goto uninvited
}}
chain basics_in_lan {{
    udp sport 67 udp dport 68 accept
    udp sport 547 udp dport 546 accept
}}
chain basics_out {{
    meta mark & {REPLY:#x} == {REPLY:#x} accept
    ether type arp accept
    icmpv6 type {{ nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert }} accept
    ip daddr 255.255.255.255 udp sport 68 udp dport 67 accept
    ip6 daddr ff02::1:2 udp sport 546 udp dport 547 accept
    iifname . ip daddr @resolvers4 meta l4proto {{ tcp, udp }} th dport {{ 53, 67 }} accept
    iifname . ip6 daddr @resolvers6 meta l4proto {{ tcp, udp }} th dport {{ 53, 547 }} accept
}}
chain basics_out_lan {{
    udp sport 68 udp dport 67 accept
    udp sport 546 udp dport 547 accept
}}
"""


def bridge_chains(answers: str) -> str:
    """The chains of the family bridge; `answers` is the one line that accepts answers from outside."""
    return f"""{GUARD}{GUARD_IPV6}{_BASICS}{leases.CHAINS}
chain from_isolated {{
    {drop(Drop.UNINVITED, "dropped_inward")}
}}
chain from_nat {{
    {answers}
    ether type arp accept
    icmpv6 type {{ nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert }} accept
    {drop(Drop.UNINVITED, "dropped_inward")}
}}
chain from_bridged {{
    meta mark & {REPLY:#x} == {REPLY:#x} accept
    meta mark & {GUEST:#x} == {GUEST:#x} {drop(Drop.UNINVITED, "dropped_inward")}
    accept
}}
chain prerouting {{
    type filter hook prerouting priority -300; policy accept
    meta mark set meta mark & {_OTHER_BITS:#x}
    iifname != "aep*" accept
    {looked_up.SENDERS}
}}
{looked_up.RECEIVERS}chain egress {{
    type filter hook prerouting priority -250; policy accept
    iifname vmap @egress
    iifname "aep*" counter drop
}}
chain forward {{
    type filter hook forward priority -200; policy accept
    iifname "aep*" iifname != @ports counter drop
    oifname "aep*" oifname != @ports counter drop
    oifname "aep*" ether daddr & 01:00:00:00:00:00 == 00:00:00:00:00:00 oifname . ether daddr != @macs counter drop
    {leases.LEARN}
    oifname vmap @ingress
    oifname "aep*" counter drop
}}
chain output {{
    type filter hook output priority -200; policy accept
    oifname "aep*" ether daddr & 01:00:00:00:00:00 == 00:00:00:00:00:00 oifname . ether daddr != @macs counter drop
    {leases.LEARN}
    oifname vmap @from_host
    oifname "aep*" counter drop
}}
"""


# The host is in no isolated network: it would be pinged there by its addresses elsewhere.
#
# A flow that conntrack has seen within a bridge before has no translation, and gets none: it may not leave by the host
# in the guest's own name. Nor may what belongs to no flow and begins none, as an answer to nothing.
#
# What is no answer is dropped here already, though the bridge's output hook would do it: that is after conntrack has
# confirmed the flow, and two sides that each send would be each other's answers.
INET_CHAINS: Final = f"""{dropped("inet")}
chain prerouting {{
    type filter hook prerouting priority -300; policy accept
    iifname "aep*" counter drop
}}
chain input {{
    type filter hook input priority -150; policy accept
    iifname "aeb*" iifname != @routed counter drop
    iifname "aeb*" goto to_host
    meta mark & {GUEST:#x} == {GUEST:#x} goto to_host
}}
chain to_host {{
    ct label {BEGUN} ct state established,related accept
    ct label {OPENED} ct state established,related accept
    icmp type echo-request accept
    icmpv6 type {{ echo-request, nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert }} accept
    goto dropped
}}
chain forward {{
    type filter hook forward priority -150; policy accept
    iifname . oifname @bridges goto within
    iifname "aeb*" oifname "aeb*" ct label {FORWARDED} goto across
    iifname "aeb*" oifname "aeb*" counter goto dropped
    iifname "aeb*" goto leaving
    oifname "aeb*" goto entering
}}
chain leaving {{
    ct state invalid counter drop
    ct direction original ct status & (confirmed | snat) == confirmed counter drop
    iifname . ip saddr @leads4 meta mark set meta mark | {GUEST:#x} goto beginning
    iifname . ip6 saddr @leads6 meta mark set meta mark | {GUEST:#x} goto beginning
    goto dropped
}}
chain beginning {{
    ct state new ct label set {BEGUN}
    accept
}}
chain entering {{
    meta mark set meta mark & {~ANSWER & 0xFFFF_FFFF:#x}
    ct label {BEGUN} ct state established,related meta mark set meta mark | {ANSWER:#x} accept
    ip saddr @masquerade4 counter drop
    ip6 saddr @masquerade6 counter drop
    oifname . ip daddr @open4 accept
    oifname . ip6 daddr @open6 accept
    goto dropped_inward
}}
chain output {{
    type filter hook output priority -150; policy accept
    oifname "aep*" counter drop
    meta mark set meta mark & {_OTHER_BITS:#x}
    oifname "aeb*" ct state new goto opening
    oifname "aeb*" ct label {OPENED} goto opening
    oifname "aeb*" ct state established,related meta mark set meta mark | {ANSWER:#x}
    ct state new ct label set {BEGUN}
}}
chain opening {{
    oifname . ip daddr @open4 ct label set {OPENED} accept
    oifname . ip6 daddr @open6 ct label set {OPENED} accept
    goto dropped_inward
}}
chain postrouting {{
    type nat hook postrouting priority 100; policy accept
    oifname != "aeb*" ip saddr @masquerade4 masquerade
    oifname != "aeb*" ip6 saddr @masquerade6 masquerade
}}
{forwards.CHAINS}"""

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

COVER: Final = f"""
table bridge {COVER_TABLE} {{
    chain prerouting {{
        type filter hook prerouting priority -400; policy accept
        iifname "aep*" counter drop
    }}
    chain forward {{
        type filter hook forward priority -400; policy accept
        oifname "aep*" counter drop
    }}
    chain output {{
        type filter hook output priority -400; policy accept
        oifname "aep*" counter drop
    }}
}}
"""
"""A table beneath which nothing comes from a port or reaches one."""
UNCOVER: Final = f"delete table bridge {COVER_TABLE}\n"
