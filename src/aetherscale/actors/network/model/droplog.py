"""What has the kernel log the packets that it drops of ports, for those who watch: the text of nft. Pure.

While nobody watches, the chains that drop are as `chains.py` has them, and it costs nothing. What is logged is limited
for each port and kind, so that a flood hides nothing but itself, and in all.

The host does not log what a guest sends to everybody on the link, of which it has a copy: that is nobody's loss.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal

from aetherscale.actors.network.model.guard import DROPPED
from aetherscale.actors.network.model.marks import TABLE
from aetherscale.actors.network.model.ruleset import UNNOTED

GROUP: Final = 44531
"""The group of nflog, which one program of a network namespace has."""
SNAP_BYTES: Final = 96
"""How much of a packet is logged, from its header of IP on: what it is, and to which port."""
PER_SECOND: Final = 5
"""Packets of each port and kind that are logged in a second."""
ALL_PER_SECOND: Final = 100
"""Packets that are logged in a second by a rule, whatever the port and the kind."""

Direction = Literal["in", "out"]
"""Whether it was sent to the port or by it: the prefix of what is logged."""

_METERS: Final = {
    ("bridge", "logged"): "ifname . mark",
    ("inet", "logged4"): "ifname . ipv4_addr",
    ("inet", "logged6"): "ifname . ipv6_addr",
}
"""The sets that a limit for each of something is kept in; of what the host drops it is the address of the port."""
_UNICAST: Final = "meta pkttype host"
_LOGGED: Final[dict[tuple[str, str], tuple[Direction, tuple[str, ...]]]] = {
    ("bridge", "dropped"): ("out", ("update @logged { iifname . meta mark",)),
    ("bridge", "dropped_inward"): ("in", ("update @logged { oifname . meta mark",)),
    ("inet", "dropped"): (
        "out",
        (
            f"{_UNICAST} update @logged4 {{ iifname . ip saddr",
            f"{_UNICAST} update @logged6 {{ iifname . ip6 saddr",
        ),
    ),
    ("inet", "dropped_inward"): (
        "in",
        (
            f"{_UNICAST} update @logged4 {{ oifname . ip daddr",
            f"{_UNICAST} update @logged6 {{ oifname . ip6 daddr",
        ),
    ),
}
"""The direction of what a chain drops, and the beginnings of the rules that log it."""


def text(*, logs: bool) -> str:
    """One transaction after which the kernel logs what it drops, or does not. It may be repeated."""
    return UNNOTED + "".join(line + "\n" for line in _lines(logs))


def _lines(logs: bool) -> Iterator[str]:
    for (family, name), key in _METERS.items():
        yield f"add set {family} {TABLE} {name} {{ type {key}; size 65535; flags dynamic,timeout; timeout 1m; }}"
    for (family, chain), rule in DROPPED.items():
        yield f"flush chain {family} {TABLE} {chain}"
        direction, beginnings = _LOGGED[family, chain] if logs else ("", ())
        for beginning in beginnings:
            yield f"add rule {family} {TABLE} {chain} {beginning} {_ending(direction)}"
        yield f"add rule {family} {TABLE} {chain} {rule}"
    for family, name in () if logs else _METERS:
        yield f"delete set {family} {TABLE} {name}"


def _ending(direction: str) -> str:
    each = f"limit rate {PER_SECOND}/second burst {PER_SECOND} packets }}"
    every = f"limit rate {ALL_PER_SECOND}/second burst {ALL_PER_SECOND} packets"
    return f'{each} {every} log prefix "{direction}" group {GROUP} snaplen {SNAP_BYTES}'
