"""Which packets the table of flows looks at: parts of the table of rules, which knows what ports bear groups.

Of a port with groups it is every packet. Whether a packet is an answer nobody asks of any other port, until it bears a
group. So of those it is what begins a flow, what a side says last for the moment, and what ends one; of the rest each
sixteenth packet, by chance. What is no TCP is looked up always: it does not say when it begins.
"""

from __future__ import annotations

from typing import Final

from aetherscale.actors.network.model.marks import GUEST, LOOKED_UP, REPLY

_OF_NOBODY: Final = 0xFFFF_FFFF & ~(REPLY | LOOKED_UP)
_REST: Final = "tcp flags & (fin | syn | rst | psh) == 0 meta random & 0xf0000000 != 0"

SENDERS: Final = f"""{_REST} iifname != @judged meta mark set meta mark | {GUEST:#x} goto guard
    meta mark set meta mark | {GUEST | LOOKED_UP:#x}
    goto guard"""
"""The end of the chain of what comes from a tap."""


def _receivers(hook: str) -> str:
    return f"""chain {hook}_flows {{
    type filter hook {hook} priority -220; policy accept
    meta mark set meta mark & {_OF_NOBODY:#x}
    oifname != "aep*" accept
    {_REST} oifname != @judged accept
    meta mark set meta mark | {LOOKED_UP:#x}
}}
"""


RECEIVERS: Final = _receivers("forward") + _receivers("output")
"""The chains of what is sent to a tap. What was said of its sender is no more."""
