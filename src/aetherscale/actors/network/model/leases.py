"""The addresses that ports of public networks lease: which ones those are, packets of DHCP tell, and nothing else.

    a port asks ─▶ a server of the network answers ─▶ to the tap: the address in the answer becomes an element of LEASED
    from the tap ─▶ guard: a source of IPv4 or ARP that is in LEASED is the port's own

It is learnt on the way to the port, for the MAC that the port has, and so from no guest of ours: the guard drops what
says a server's words. Whether an answer is an offer or the last word cannot be told, since its options have no order.
A port leases a few addresses at once, and then one an hour.

What the tables have learnt is not in the log. `actors/network/leases.py` keeps it when they are replaced.
"""

from __future__ import annotations

from typing import Final

from aetherscale.actors.network.model.marks import Drop

LEASED: Final = "leased"
"""The set of the leased addresses, each with its tap."""
LEASING: Final = "leasing"
"""The set of the taps of ports that may lease some."""
LASTS: Final = "30d"
"""How long an address is a port's that neither uses it nor leases it again."""
MOST_AT_ONCE: Final = 8
"""Addresses that a port may lease before it counts how many an hour."""
MOST_AN_HOUR: Final = 1
"""Addresses that a port may lease in an hour beyond those: one that asks under other names is given others."""
MOST_KEPT: Final = 65_535
"""Leased addresses of all ports."""

SETS: Final = {
    LEASING: ("bridge", "set", "type ifname"),
    LEASED: ("bridge", "set", f"typeof iifname . @nh,96,32; size {MOST_KEPT}; flags dynamic,timeout"),
    "leasers": ("bridge", "set", f"type ifname; size {MOST_KEPT}; flags dynamic,timeout; timeout 1d"),
}

# No rule that looks an address up says that it is ARP or IPv4: nft would list the key by the address's name, and not
# read its own list again.
# Of BOOTP (RFC 951), behind the 8 bytes of UDP: the first byte is 2 in a reply; `yiaddr`, and `chaddr`.
CHAINS: Final = f"""
chain leased_source {{
    meta random & 0xf0000000 == 0 update @{LEASED} {{ iifname . @nh,96,32 timeout {LASTS} }}
    goto payload4
}}
chain leased_probe {{
    iifname . @nh,192,32 @{LEASED} accept
    meta mark set {Drop.ARP:d} goto dropped
}}
chain lease {{
    @th,64,8 != 2 return
    oifname . @th,288,48 != @nd_macs return
    @th,192,8 {{ 0, 127, 224-255 }} return
    oifname . @th,192,32 @{LEASED} update @{LEASED} {{ oifname . @th,192,32 timeout {LASTS} }} return
    update @leasers {{ oifname limit rate over {MOST_AN_HOUR}/hour burst {MOST_AT_ONCE} packets }} return
    add @{LEASED} {{ oifname . @th,192,32 timeout {LASTS} }}
}}
"""  # noqa: S608 - it is nft's language
LEARN: Final = f"ether type ip udp sport 67 udp dport 68 oifname @{LEASING} jump lease"
"""Learns from what is about to be sent to a tap."""
SOURCE: Final = f"iifname . @nh,96,32 @{LEASED} goto leased_source"
"""Lets a packet of IPv4 pass whose source is leased."""
SENDER: Final = f"""iifname . @nh,112,32 @{LEASED} accept
    arp operation request arp saddr ip 0.0.0.0 goto leased_probe"""
"""The same of ARP; and the question whether anybody has the address already."""
