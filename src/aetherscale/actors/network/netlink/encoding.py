"""What is asked of the kernel about links, as bytes: rtnetlink(7), linux/if_link.h, linux/neighbour.h.

pyroute2 takes half a millisecond to write one of these messages, and its socket as long to match the answer. A port
takes four of them. Nothing here does I/O.
"""

from __future__ import annotations

import struct
from typing import Final

from aetherscale.actors.network.netlink.settings import Settings

RTM_NEWLINK: Final = 16
RTM_GETLINK: Final = 18
RTM_GETADDR: Final = 22
RTM_NEWNEIGH: Final = 28
RTM_GETNEIGH: Final = 30

_LINK: Final = struct.Struct("=BxHiII")
"""ifinfomsg: family, hardware type, index, flags, change."""
_NEIGHBOR: Final = struct.Struct("=BxHiHBB")
"""ndmsg: family, padding, index, state, flags, type."""
_ATTRIBUTE: Final = struct.Struct("=HH")
_NUMBER: Final = struct.Struct("=I")
_NESTED: Final = 0x8000
_IFF_UP: Final = 1
_AF_BRIDGE: Final = 7
_AF_INET6: Final = 10

_IFLA_ADDRESS: Final = 1
_IFLA_IFNAME: Final = 3
_IFLA_MTU: Final = 4
_IFLA_MASTER: Final = 10
_IFLA_LINKINFO: Final = 18
_IFLA_NET_NS_PID: Final = 19
_IFLA_IFALIAS: Final = 20
_IFLA_AF_SPEC: Final = 26
_IFLA_GROUP: Final = 27
_IFLA_EXT_MASK: Final = 29
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _IFLA_INFO_SLAVE_KIND, _IFLA_INFO_SLAVE_DATA = 1, 2, 4, 5
_VETH_INFO_PEER: Final = 1
_IFLA_INET6_ADDR_GEN_MODE: Final = 8
_IN6_ADDR_GEN_MODE_NONE: Final = 1
_RTEXT_FILTER_SKIP_STATS: Final = 1 << 3
"""Without the statistics, three quarters of what the kernel has to say of a link."""

_NDA_LLADDR: Final = 2
_NUD_NOARP: Final = 0x40
_NTF_MASTER: Final = 0x04
_HEADER_BYTES: Final = 16


def link(index: int = 0, attributes: bytes = b"", *, up: bool | None = None) -> bytes:
    """The body of a message about a link; with `up` it is to be set up, or down; else its state is left as it is."""
    return _LINK.pack(0, 0, index, _IFF_UP if up else 0, 0 if up is None else _IFF_UP) + attributes


def static_entry(port: int, mac: str) -> bytes:
    """The body of a message: the bridge of this port (its index) has to know that the MAC is behind it, for ever."""
    return _NEIGHBOR.pack(_AF_BRIDGE, 0, port, _NUD_NOARP, _NTF_MASTER, 0) + _lladdr(mac)


def entry(port: int, mac: str) -> bytes:
    """The body of a question: behind which port of its bridge this MAC is."""
    return _NEIGHBOR.pack(_AF_BRIDGE, 0, port, 0, _NTF_MASTER, 0) + _lladdr(mac)


def is_static_entry(message: bytes, port: int) -> bool:
    """Whether an answer to that says: behind this one, for ever."""
    _, _, found, state, _, _ = _NEIGHBOR.unpack_from(message, _HEADER_BYTES)
    return bool(found == port and state & _NUD_NOARP)


def name(value: str) -> bytes:
    """The name of a link."""
    return _attribute(_IFLA_IFNAME, value.encode() + b"\0")


def address(mac: str) -> bytes:
    """The MAC of a link itself."""
    return _attribute(_IFLA_ADDRESS, bytes.fromhex(mac.replace(":", "")))


def mtu(size_bytes: int) -> bytes:
    """The MTU of a link."""
    return _attribute(_IFLA_MTU, _NUMBER.pack(size_bytes))


def alias(text: str) -> bytes:
    """The alias of a link."""
    return _attribute(_IFLA_IFALIAS, text.encode())


def group(number: int) -> bytes:
    """The link group of a link. Beware: in a message without an index it says which links are meant."""
    return _attribute(_IFLA_GROUP, _NUMBER.pack(number))


def master(index: int) -> bytes:
    """The bridge that a link is to be a port of."""
    return _attribute(_IFLA_MASTER, _NUMBER.pack(index))


def without_statistics() -> bytes:
    """Of a question: the answer need not have any statistics."""
    return _attribute(_IFLA_EXT_MASK, _NUMBER.pack(_RTEXT_FILTER_SKIP_STATS))


def without_addresses() -> bytes:
    """The kernel is to give a link no link-local address. Refused where the host has no IPv6."""
    mode = _attribute(_IFLA_INET6_ADDR_GEN_MODE, bytes([_IN6_ADDR_GEN_MODE_NONE]))
    return _nested(_IFLA_AF_SPEC, _nested(_AF_INET6, mode))


def bridge() -> bytes:
    """A link that is to be a bridge."""
    return _nested(_IFLA_LINKINFO, _attribute(_IFLA_INFO_KIND, b"bridge\0"))


def veth(far_name: str, far_mac: str, far_mtu: int, far_pid: int) -> bytes:
    """A link that is to be one end of a cable, whose far end is in the network namespace of a process."""
    far = _LINK.pack(0, 0, 0, 0, 0) + name(far_name) + address(far_mac) + mtu(far_mtu)
    far += _attribute(_IFLA_NET_NS_PID, _NUMBER.pack(far_pid))
    kind = _attribute(_IFLA_INFO_KIND, b"veth\0")
    return _nested(_IFLA_LINKINFO, kind + _nested(_IFLA_INFO_DATA, _nested(_VETH_INFO_PEER, far)))


def bridge_settings(values: Settings) -> bytes:
    """What a bridge is to do: see `settings.bridge`."""
    kind = _attribute(_IFLA_INFO_KIND, b"bridge\0")
    data = b"".join(_attribute(attribute, value) for attribute, value in values.items())
    return _nested(_IFLA_LINKINFO, kind + _nested(_IFLA_INFO_DATA, data))


def port_settings(values: Settings) -> bytes:
    """What a port of a bridge, which it has to be already, is to do: see `settings`."""
    data = b"".join(_attribute(attribute, value) for attribute, value in values.items())
    slave = _attribute(_IFLA_INFO_SLAVE_KIND, b"bridge\0") + _nested(_IFLA_INFO_SLAVE_DATA, data)
    return _nested(_IFLA_LINKINFO, slave)


def _lladdr(mac: str) -> bytes:
    return _attribute(_NDA_LLADDR, bytes.fromhex(mac.replace(":", "")))


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def _nested(kind: int, attributes: bytes) -> bytes:
    return _attribute(kind | _NESTED, attributes)
