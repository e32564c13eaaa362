"""The table of flows: what each tap has sent and has taken, so that answers are told from what is not asked for.

    from a tap ─▶ out_answer: was it taken? then REPLY ─▶ the groups' rules ─▶ out_record: else it is sent
    to a tap   ─▶ in_answer: was it sent? then REPLY   ─▶ the groups' rules ─▶ in_record: else it is taken

An element is a tap, the port's own address, the other one's, and both ports: the same from whichever side a packet
comes. Packets make the elements, and only answers make them last, so that a flood of questions is forgotten soon. A
tap begins so many flows and no more: beyond that they are not recorded, and have no answers. Only packets with the mark
LOOKED_UP are looked at (`looked_up.py`).

No rule that looks a pair up says of which IP family a packet is: where nft knows that, it lists the addresses by their
names, and does not read again what it has listed.

The table is a text that knows no port and no network. It is made once and stays when the rules are replaced. Protocols
have sets of their own since nft 1.0.6 cannot tell the type of a key of more than five parts.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from aetherscale.actors.network.model.marks import FLOWS_TABLE, LOOKED_UP, REPLY

ASKED_TCP: Final = "2m"
"""How long a flow of TCP is remembered that was not answered; and one of which an end was seen, after its last."""
ANSWERED_TCP: Final = "1h"
"""How long one is remembered after the last answer."""
ASKED_UDP: Final = "30s"
"""The same of UDP, and of echo requests."""
ANSWERED_UDP: Final = "3m"
"""The same of UDP, and of protocols without ports."""
PAIRS_LAST: Final = "1h"
"""How long two addresses may have errors about what they sent each other."""
MOST_FLOWS: Final = 262_144
"""Elements of a set."""
MOST_BEGUN: Final = 1_000
"""Flows that a tap may begin in a second."""
MOST_AT_ONCE: Final = 20_000
"""Flows that it may begin before that counts."""

KINDS: Final = {"tcp4": ANSWERED_TCP, "tcp6": ANSWERED_TCP, "udp4": ANSWERED_UDP, "udp6": ANSWERED_UDP}
"""The flows that can go on whatever the rules say, and how long they last after their last packet.

Such a flow is in `sent` and in `taken`, so that either side's packets are answers. No packet looks into `kept_taken`
and `kept_sent`, which say what it was before.
"""


def table() -> str:
    """The table, as nft reads it. Always the same text."""
    ways = [_way(way, version) for way in ("out", "in") for version in (4, 6)]
    chains = "".join(_answers(of) + _records(of) for of in ways)
    return f"table bridge {FLOWS_TABLE} {{\n{_sets()}{_HOOKS}{chains}}}\n"


def _sets() -> str:
    lines: list[str] = []

    def add(name: str, key: str, size: int = MOST_FLOWS, more: str = "") -> None:
        lines.append(f"set {name} {{\n    {key}; size {size}; flags dynamic,timeout{more}\n}}\n")

    for version, address, raw in (
        (4, "ipv4_addr", "@nh,96,32 . @nh,128,32"),
        (6, "ipv6_addr", "@nh,64,128 . @nh,192,128"),
    ):
        ip = _ip(version)
        for protocol in ("tcp", "udp"):
            key = f"type ifname . {address} . {address} . inet_service . inet_service"
            for what in ("sent", "taken"):
                add(f"{what}_{protocol}{version}", key)
                lines.append(f"set kept_{what}_{protocol}{version} {{\n    {key}; size {MOST_FLOWS}\n}}\n")
        add(f"closing{version}", f"type ifname . {address} . {address} . inet_service . inet_service")
        for what in ("sent", "taken"):
            add(f"{what}_echo{version}", f"typeof iifname . {ip} saddr . {ip} daddr . @th,32,16", 65_536)
            add(f"{what}_other{version}", f"type ifname . inet_proto . {address} . {address}", 65_536)
        add(f"pairs{version}", f"typeof iifname . {raw}")
    for way in ("out", "in"):
        add(f"begun_{way}", "type ifname", 65_535, "; timeout 1m")
    return "".join(lines)


def _ip(version: int) -> str:
    return "ip" if version == 4 else "ip6"


_BEGUN_TOO_MANY: Final = f"limit rate over {MOST_BEGUN}/second burst {MOST_AT_ONCE} packets"
_SYN: Final = "tcp flags & (fin | syn | rst) == syn"
_SOMETIMES: Final = "meta random & 0xf0000000 == 0"
"""True of each sixteenth packet that is looked up: a pair that is in use for an hour is seen to by then."""
_AMONG_MANY: Final = "meta length > 512 tcp flags & (fin | syn | rst | psh) == 0 meta random & 0xf0000000 != 0 accept"
"""Ends it for most packets that are full of data, after which a side goes on to speak."""
_UNASKED: Final = f"meta mark & {LOOKED_UP:#x} == 0 accept"
_BEGINS: Final = f"meta mark & {LOOKED_UP | REPLY:#x} != {LOOKED_UP:#x} accept"
_FAMILIES: Final = "ether type ip goto {chain}4\n    ether type ip6 goto {chain}6"
_HOOKS: Final = "\n".join(
    [
        f"""chain is_answer {{
    meta mark set meta mark | {REPLY:#x}
}}
chain prerouting_answers {{
    type filter hook prerouting priority -260; policy accept
    {_UNASKED}
    {_FAMILIES.format(chain="out_answer")}
}}
chain prerouting_record {{
    type filter hook prerouting priority -240; policy accept
    {_BEGINS}
    {_AMONG_MANY}
    ether daddr & 01:00:00:00:00:00 != 00:00:00:00:00:00 accept
    {_FAMILIES.format(chain="out_record")}
}}""",
        *(
            f"""chain {hook}_answers {{
    type filter hook {hook} priority -210; policy accept
    {_UNASKED}
    {_FAMILIES.format(chain="in_answer")}
}}
chain {hook}_record {{
    type filter hook {hook} priority -190; policy accept
    {_BEGINS}
    {_AMONG_MANY}
    ether daddr & 01:00:00:00:00:00 != 00:00:00:00:00:00 accept
    {_FAMILIES.format(chain="in_record")}
}}"""
            for hook in ("forward", "output")
        ),
        "",
    ]
)


class _Way(Struct, frozen=True):
    """What a tap sends, `out`, or is sent, `in`, in one IP family: the parts of rules."""

    way: str
    v: int
    own: str
    """The sets of the flows that packets of this way begin."""
    others: str
    """Those of the flows whose answers go this way."""
    icmp: str
    icmp_number: str
    """By number: its name is in /etc/protocols, which a small Debian does not have."""
    errors: str
    later: str
    """Matches a fragment that is not the first."""
    flow: str
    echo: str
    other: str
    raw: str
    quoted: str
    """Both addresses in what an error quotes: for the one who gets it, the packet that it has sent."""
    begun: str
    """Ends it for a packet of a tap that has begun too many flows."""


def _way(way: str, v: int) -> _Way:
    ip, out = _ip(v), way == "out"
    tap, local, remote, near, far = (
        ("iifname", "saddr", "daddr", "sport", "dport") if out else ("oifname", "daddr", "saddr", "dport", "sport")
    )
    pair = f"{ip} {local} . {ip} {remote}"
    source, to = ("@nh,96,32", "@nh,128,32") if v == 4 else ("@nh,64,128", "@nh,192,128")
    quoted_source, quoted_to = ("@th,160,32", "@th,192,32") if v == 4 else ("@th,128,128", "@th,256,128")
    return _Way(
        way=way,
        v=v,
        own="sent" if out else "taken",
        others="taken" if out else "sent",
        icmp="icmp" if v == 4 else "icmpv6",
        icmp_number="1" if v == 4 else "58",
        errors="{ 3, 11, 12 }" if v == 4 else "{ 1, 2, 3, 4 }",
        later="ip frag-off & 0x1fff != 0" if v == 4 else "frag frag-off != 0",
        flow=f"{tap} . {pair} . th {near} . th {far}",
        echo=f"{tap} . {pair} . @th,32,16",
        other=f"{tap} . meta l4proto . {pair}",
        raw=f"{tap} . {source} . {to}" if out else f"{tap} . {to} . {source}",
        quoted=f"{tap} . {quoted_to} . {quoted_source}" if out else f"{tap} . {quoted_source} . {quoted_to}",
        begun=f"update @begun_{way} {{ {tap} {_BEGUN_TOO_MANY} }} accept",
    )


def _by_protocol(of: _Way, what: str) -> str:
    numbers = {"tcp": "tcp", "udp": "udp", "icmp": of.icmp_number}
    return "\n    ".join(f"meta l4proto {number} goto {of.way}_{what}{name}{of.v}" for name, number in numbers.items())


def _answers(of: _Way) -> str:
    """The chains that tell answers."""
    way, v, flow, others = of.way, of.v, of.flow, of.others
    # A guest's stack answers a flood of SYN by itself: that is no sign of life of the other end.
    synack = "accept" if way == "out" else f"update @{others}_tcp{v} {{ {flow} timeout {ANSWERED_TCP} }} accept"
    return f"""chain {way}_answer{v} {{
    {_by_protocol(of, "answer_")}
    {of.other} @{others}_other{v} update @{others}_other{v} {{ {of.other} timeout {ANSWERED_UDP} }} goto is_answer
    {of.later} goto {way}_later{v}
}}
chain {way}_later{v} {{
    {of.raw} @pairs{v} goto is_answer
}}
chain {way}_answer_tcp{v} {{
    {flow} @{others}_tcp{v} goto {way}_goes_on_tcp{v}
    {of.later} goto {way}_later{v}
}}
chain {way}_goes_on_tcp{v} {{
    meta mark set meta mark | {REPLY:#x}
    tcp flags & (fin | syn | rst) != 0 goto {way}_turns{v}
    {_AMONG_MANY}
    {flow} @closing{v} accept
    update @{others}_tcp{v} {{ {flow} timeout {ANSWERED_TCP} }}
}}
chain {way}_turns{v} {{
    {_SYN} {synack}
    update @closing{v} {{ {flow} timeout {ASKED_TCP} }}
    update @{others}_tcp{v} {{ {flow} timeout {ASKED_TCP} }}
}}
chain {way}_answer_udp{v} {{
    {flow} @{others}_udp{v} update @{others}_udp{v} {{ {flow} timeout {ANSWERED_UDP} }} goto is_answer
    {of.later} goto {way}_later{v}
}}
chain {way}_answer_icmp{v} {{
    {of.icmp} type echo-reply {of.echo} @{others}_echo{v} goto is_answer
    {of.icmp} type {of.errors} {of.quoted} @pairs{v} goto is_answer
}}
"""  # noqa: S608 - it is nft's language


def _records(of: _Way) -> str:
    """The chains that record what was let through, and is no answer."""
    way, v, flow, own = of.way, of.v, of.flow, of.own
    return f"""chain {way}_record{v} {{
    {_by_protocol(of, "")}
    {of.other} @{own}_other{v} goto {way}_other{v}
    {of.begun}
    goto {way}_other{v}
}}
chain {way}_other{v} {{
    update @{own}_other{v} {{ {of.other} timeout {ANSWERED_UDP} }}
    goto {way}_pair{v}
}}
chain {way}_tcp{v} {{
    {flow} @{own}_tcp{v} goto {way}_again_tcp{v}
    tcp flags & rst != 0 accept
    {of.begun}
    add @{own}_tcp{v} {{ {flow} timeout {ASKED_TCP} }}
    goto {way}_pair{v}
}}
chain {way}_again_tcp{v} {{
    tcp flags & (fin | syn | rst) != 0 goto {way}_again_turns{v}
    {_SOMETIMES} goto {way}_pair{v}
}}
chain {way}_again_turns{v} {{
    {_SYN} delete @closing{v} {{ {flow} }} accept
    update @closing{v} {{ {flow} timeout {ASKED_TCP} }}
    update @{own}_tcp{v} {{ {flow} timeout {ASKED_TCP} }}
}}
chain {way}_udp{v} {{
    {flow} @{own}_udp{v} goto {way}_again_udp{v}
    {of.begun}
    add @{own}_udp{v} {{ {flow} timeout {ASKED_UDP} }}
    goto {way}_pair{v}
}}
chain {way}_again_udp{v} {{
    {_SOMETIMES} goto {way}_pair{v}
}}
chain {way}_icmp{v} {{
    {of.icmp} type != echo-request accept
    {of.echo} @{own}_echo{v} goto {way}_echo{v}
    {of.begun}
    goto {way}_echo{v}
}}
chain {way}_echo{v} {{
    update @{own}_echo{v} {{ {of.echo} timeout {ASKED_UDP} }}
    goto {way}_pair{v}
}}
chain {way}_pair{v} {{
    update @pairs{v} {{ {of.raw} timeout {PAIRS_LAST} }}
}}
"""
