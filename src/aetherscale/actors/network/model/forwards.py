"""Forwards in the kernel: the fixed part. A forward is elements of its maps and sets alone.

    from outside, from guests ─▶ prerouting ┐                             ┌─▶ forward ─▶ postrouting ─▶ the guest's port
                                            ├─▶ forwards ─▶ forwarded ────┤       (masqueraded, from its own network)
    from the host itself ──────▶ output ────┘   (DNAT)      (of ours?)    └─▶ dropped, where it leads there no more

conntrack keeps what the first packet of a flow was led to. So each packet of such a flow, in either direction, is
looked up by what the flow was and by what it has become: a forward that is gone, or leads elsewhere, ends its flows.
What other programs lead to a guest has no label of ours, and is not judged here.

A forward opens nothing: the guest's port judges what comes, and what is sent back is told by the label to be an answer.
"""

from __future__ import annotations

from typing import Final

from aetherscale.actors.network.model.marks import ANSWER, FORWARDED

SETS: Final = {
    "forwards4": ("inet", "map", "type inet_proto . inet_service : ipv4_addr . inet_service"),
    "forwards6": ("inet", "map", "type inet_proto . inet_service : ipv6_addr . inet_service"),
    "forwards_at4": ("inet", "map", "type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service"),
    "forwards_at6": ("inet", "map", "type ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service"),
    "forwarded4": ("inet", "set", "type inet_proto . inet_service . ipv4_addr . inet_service"),
    "forwarded6": ("inet", "set", "type inet_proto . inet_service . ipv6_addr . inet_service"),
    "forwarded_at4": ("inet", "set", "type ipv4_addr . inet_proto . inet_service . ipv4_addr . inet_service"),
    "forwarded_at6": ("inet", "set", "type ipv6_addr . inet_proto . inet_service . ipv6_addr . inet_service"),
}
"""As `chains.SETS`. The maps lead the first packet of a flow; the sets have the flows that may go on."""

_PORTS: Final = "meta l4proto { tcp, udp }"


def _go_on(version: int) -> str:
    """Accepts the packets of flows that a forward has led, and leads."""
    ip = "ip" if version == 4 else "ip6"
    flow = f"ct original protocol . ct original proto-dst . ct reply {ip} saddr . ct reply proto-src"
    label = f"ct label set {FORWARDED} accept"
    return f"""    {_PORTS} {flow} @forwarded{version} {label}
    {_PORTS} ct original {ip} daddr . {flow} @forwarded_at{version} {label}
"""


# An address of the link, and the loopback, have no way back from a guest.
CHAINS: Final = f"""
chain lead_in {{
    type nat hook prerouting priority -100; policy accept
    fib daddr type local goto forwards
}}
chain lead_out {{
    type nat hook output priority -100; policy accept
    fib daddr type local goto forwards
}}
chain forwards {{
    ip daddr 127.0.0.0/8 return
    ip6 daddr {{ ::1, fe80::/10 }} return
    dnat ip to ip daddr . meta l4proto . th dport map @forwards_at4
    dnat ip6 to ip6 daddr . meta l4proto . th dport map @forwards_at6
    dnat ip to meta l4proto . th dport map @forwards4
    dnat ip6 to meta l4proto . th dport map @forwards6
}}
chain led_in {{
    type filter hook prerouting priority -90; policy accept
    ct status dnat goto forwarded
}}
chain led_out {{
    type filter hook output priority -90; policy accept
    ct status dnat goto forwarded
}}
chain forwarded {{
{_go_on(4)}{_go_on(6)}    {_PORTS} ct label {FORWARDED} counter drop
}}
chain within {{
    ct label {FORWARDED} ct direction reply ct state established,related meta mark set meta mark | {ANSWER:#x}
    accept
}}
chain across {{
    ct direction reply ct state established,related meta mark set meta mark | {ANSWER:#x} accept
    iifname . ip saddr @leads4 oifname . ip daddr @open4 accept
    iifname . ip6 saddr @leads6 oifname . ip6 daddr @open6 accept
    goto dropped_inward
}}
chain hairpin {{
    type nat hook postrouting priority 100; policy accept
    ct label {FORWARDED} oifname . ip saddr @leads4 masquerade
    ct label {FORWARDED} oifname . ip6 saddr @leads6 masquerade
}}
"""
"""`within` is of what comes from the network that it goes to, `across` of what comes from another one of ours."""
