"""What has the kernel log the packets that it drops of ports, for those who watch: the text of nft. Pure.

While nobody watches, the chains that drop are as `chains.py` has them, and it costs nothing. What is logged is limited
for each port and kind, so that a flood hides nothing but itself, and in all.
"""

from __future__ import annotations

from typing import Final

from aetherscale.actors.network.model.chains import DROPPED, TABLE, dropped
from aetherscale.actors.network.model.ruleset import UNNOTED

GROUP: Final = 44531
"""The group of nflog, which one program of a network namespace has."""
SNAP_BYTES: Final = 96
"""How much of a packet is logged, from its header of IP on: what it is, and to which port."""
PER_SECOND: Final = 5
"""Packets of each port and kind that are logged in a second."""
ALL_PER_SECOND: Final = 100
"""Packets of all ports that are logged in a second."""

_METER: Final = "logged"
_SET: Final = f"set bridge {TABLE} {_METER}"


def text(*, logs: bool) -> str:
    """One transaction after which the kernel logs what it drops, or does not. It may be repeated."""
    lines = [f"add {_SET} {{ type ifname . mark; size 65535; flags dynamic,timeout; timeout 1m; }}"]
    lines += (f"flush chain bridge {TABLE} {chain}" for chain in DROPPED)
    bodies = "".join(dropped(chain, _rule(device) if logs else "") for chain, device in DROPPED.items())
    lines.append(f"table bridge {TABLE} {{{bodies}\n}}")
    if not logs:
        lines.append(f"delete {_SET}")
    return UNNOTED + "\n".join(lines) + "\n"


def _rule(device: str) -> str:
    each = f"update @{_METER} {{ {device} . meta mark limit rate {PER_SECOND}/second burst {PER_SECOND} packets }}"
    every = f"limit rate {ALL_PER_SECOND}/second burst {ALL_PER_SECOND} packets"
    return f"{each} {every} log group {GROUP} snaplen {SNAP_BYTES}"
