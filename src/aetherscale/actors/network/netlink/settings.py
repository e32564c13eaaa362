"""What bridges of ours, and the ports in them, are set to: linux/if_link.h, IFLA_BR_… and IFLA_BRPORT_….

What is asked of the kernel and what it says are compared here, as bytes by attribute. What a kernel does not know it
passes over where it is asked, and does not say. Nothing here does I/O.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final

Settings = Mapping[int, bytes]
"""Values by the number of their attribute."""

_OFF, _ON = b"\0", b"\1"

_STP_STATE, VLAN_FILTERING, _GROUP_FWD_MASK, _MCAST_SNOOPING, _BOOLOPT = 5, 7, 9, 23, 46
_NF_CALLS: Final = (36, 37, 38)
_NO_LL_LEARN: Final = 1 << 0
"""BR_BOOLOPT_NO_LL_LEARN."""
_BRIDGE: Final = {
    _STP_STATE: "stp_state",
    VLAN_FILTERING: "vlan_filtering",
    _GROUP_FWD_MASK: "group_fwd_mask",
    _MCAST_SNOOPING: "mcast_snooping",
    **dict(zip(_NF_CALLS, ("nf_call_iptables", "nf_call_ip6tables", "nf_call_arptables"), strict=True)),
    _BOOLOPT: "no_linklocal_learn",
}
"""What matters of a bridge, by the names that ip-link(8) has: with another value it carries what no rule has seen, or
loses what it should carry."""

_STATE, _LEARNING, _UNICAST_FLOOD, _FLUSH, _PORT_GROUP_FWD_MASK = 1, 8, 9, 24, 31
_DISABLED, _FORWARDING = b"\0", b"\3"
_ARE_OFF: Final = {
    4: "hairpin",
    5: "guard",
    6: "root_block",
    10: "proxy_arp",
    12: "proxy_arp_wifi",
    28: "mcast_to_unicast",
    29: "vlan_tunnel",
    32: "neigh_suppress",
    33: "isolated",
    39: "locked",
}
_ARE_ON: Final = {27: "mcast_flood", 30: "bcast_flood"}
_PORT: Final = {
    **_ARE_OFF,
    **_ARE_ON,
    _STATE: "state",
    _LEARNING: "learning",
    _UNICAST_FLOOD: "flood",
    _PORT_GROUP_FWD_MASK: "group_fwd_mask",
}
"""What matters of a port, by the same names."""


def bridge(*, calls_netfilter: bool) -> Settings:
    """What a bridge of ours is to do: forward, and believe nothing that is said to bridges.

    A frame to one of the addresses 01:80:c2:00:00:0x is for the bridge itself, and no rule sees it; without
    BR_BOOLOPT_NO_LL_LEARN the bridge would learn its source. It does not speak the spanning tree protocol, forwards
    none of these frames but that protocol's, and takes no guest's word for who wants which multicast.

    VLAN_FILTERING is off as well. A kernel that cannot do it refuses even that, so it is asked only where it is on.
    """
    return {
        _STP_STATE: bytes(4),
        VLAN_FILTERING: _OFF,
        _GROUP_FWD_MASK: bytes(2),
        _MCAST_SNOOPING: _OFF,
        **dict.fromkeys(_NF_CALLS, bytes([calls_netfilter])),
        # br_boolopt_multi: the values, and which of them are meant. A kernel before 5.0 passes it over.
        _BOOLOPT: struct.pack("=II", _NO_LL_LEARN, _NO_LL_LEARN),
    }


MUTE: Final[Settings] = {
    **dict.fromkeys((*_ARE_OFF, _LEARNING, _UNICAST_FLOOD), _OFF),
    **dict.fromkeys(_ARE_ON, _ON),
    _PORT_GROUP_FWD_MASK: bytes(2),
}
"""The bridge neither takes the addresses that speak there for being there, nor sends it what is for nobody it knows."""
NOTHING_LEARNT: Final[Settings] = {**MUTE, _FLUSH: _ON}
"""The same of the tap of a port, and the bridge forgets what it has learnt there."""
LEARNING: Final[Settings] = {**MUTE, _LEARNING: _ON, _UNICAST_FLOOD: _ON}
"""As the kernel makes a port."""
FORWARDING: Final[Settings] = {_STATE: _FORWARDING}
"""The state of a port where no spanning tree is spoken. Refused (ENETDOWN) while nobody is attached to it."""


def of_bridge(said: Settings) -> Settings:
    """What matters of what the kernel says of a bridge."""
    found = {kind: value for kind, value in said.items() if kind in _BRIDGE}
    if len(options := found.get(_BOOLOPT, b"")) == 8:
        values, _ = struct.unpack("=II", options)
        found[_BOOLOPT] = struct.pack("=II", values & _NO_LL_LEARN, _NO_LL_LEARN)
    return found


def of_port(said: Settings, *, is_running: bool) -> Settings:
    """What matters of what the kernel says of a port of a bridge. One without a carrier has no state yet."""
    found = {kind: value for kind, value in said.items() if kind in _PORT}
    if found.get(_STATE) == _DISABLED and not is_running:
        del found[_STATE]
    return found


def wrong_with_bridge(said: Settings, *, calls_netfilter: bool = False) -> list[str]:
    """The names of the settings of a bridge that are not what they are to be."""
    return _differing(said, bridge(calls_netfilter=calls_netfilter), _BRIDGE)


def wrong_with_port(said: Settings, wanted: Settings) -> list[str]:
    """The names of the settings of a port that are not what they are to be."""
    return _differing(said, wanted, _PORT)


def _differing(said: Settings, wanted: Settings, names: Mapping[int, str]) -> list[str]:
    return [names[kind] for kind, value in wanted.items() if said.get(kind, value) != value]
