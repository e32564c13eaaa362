"""What the kernel says of links and routes: rtnetlink(7), as much of it as is needed here.

pyroute2 reads all of a link, for half a millisecond, in which a node does nothing else. That is too long where there
are a thousand of them. So this reads what `Link` has, for a small part of that. Nothing here does I/O.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network
from socket import AF_INET, AF_UNSPEC
from typing import Final

from aetherscale.actors.network.model.addresses import Prefix
from aetherscale.actors.network.model.devices import Link
from aetherscale.actors.network.model.views import Traffic
from aetherscale.actors.network.netlink import settings

HEADER: Final = struct.Struct("=IHHII")
"""Of every netlink message: length, type, flags, sequence number, port id."""

_LINK: Final = struct.Struct("=BxHiII")
"""ifinfomsg: family, hardware type, index, flags, change."""
_ROUTE: Final = struct.Struct("=BBBBBBBBI")
"""rtmsg: family, lengths of destination and source, tos, table, protocol, scope, type, flags."""
_ATTRIBUTE: Final = struct.Struct("=HH")
_NUMBER: Final = struct.Struct("=I")
_TYPE_MASK: Final = 0x3FFF

_IFLA_ADDRESS: Final = 1
_IFLA_IFNAME: Final = 3
_IFLA_MTU: Final = 4
_IFLA_MASTER: Final = 10
_IFLA_LINKINFO: Final = 18
_IFLA_IFALIAS: Final = 20
_IFLA_GROUP: Final = 27
_IFLA_STATS64: Final = 23
_IFLA_PROTINFO: Final = 12
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _IFLA_INFO_SLAVE_DATA = 1, 2, 5
_STATISTICS: Final = struct.Struct("=QQQQ")
"""The beginning of rtnl_link_stats64: packets received and sent by the host, then bytes."""
_IFF_UP: Final = 1
_IFF_RUNNING: Final = 0x40
_AF_BRIDGE: Final = 7
_ADDRESS: Final = struct.Struct("=BBBBI")
"""ifaddrmsg: family, prefix length, flags, scope, index of the link."""
_NEIGHBOR: Final = struct.Struct("=BxHi")
"""ndmsg: family, padding, index."""
_IFA_ADDRESS, _IFA_LOCAL = 1, 2

_RTA_DST: Final = 1
_RTN_OF_MANY: Final = (3, 4, 5)
"""The types of routes to a broadcast, an anycast or a multicast address, which come with others."""
_RTM_F_CLONED: Final = 0x200


def messages_of(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The type and the whole of each message of a datagram."""
    offset = 0
    while offset + HEADER.size <= len(data):
        length, kind, _, _, _ = HEADER.unpack_from(data, offset)
        if not HEADER.size <= length <= len(data) - offset:
            return
        yield kind, data[offset : offset + length]
        offset += _aligned(length)


def link_of(message: bytes) -> Link | None:
    """The link that RTM_NEWLINK or RTM_DELLINK is about; None for what a bridge says of a port of its own.

    A bridge tells of a port that leaves it by an RTM_DELLINK of the family AF_BRIDGE: the device is not gone.
    """
    family, _, index, flags, _ = _LINK.unpack_from(message, HEADER.size)
    if family != AF_UNSPEC:
        return None
    of = attributes_of(message, HEADER.size + _LINK.size)
    info = attributes_of(of.get(_IFLA_LINKINFO, b""))
    kind = _text(info.get(_IFLA_INFO_KIND))
    return Link(
        index=index,
        name=_text(of.get(_IFLA_IFNAME)),
        kind=kind,
        alias_text=_text(of.get(_IFLA_IFALIAS)),
        mac=of.get(_IFLA_ADDRESS, b"").hex(":"),
        mtu=_number(of.get(_IFLA_MTU)),
        master=_number(of.get(_IFLA_MASTER)),
        group=_number(of.get(_IFLA_GROUP)),
        is_up=bool(flags & _IFF_UP),
        settings=settings.of_bridge(attributes_of(info.get(_IFLA_INFO_DATA, b"")))
        if kind == "bridge"
        else _port_settings(attributes_of(info.get(_IFLA_INFO_SLAVE_DATA, b"")), flags),
    )


def traffic_of(message: bytes) -> Traffic | None:
    """What went through the tap that an RTM_NEWLINK is about, as its guest sees it; None where it does not say.

    What the host receives from a tap, its guest has sent.
    """
    raw = attributes_of(message, HEADER.size + _LINK.size).get(_IFLA_STATS64, b"")
    if len(raw) < _STATISTICS.size:
        return None
    sent_packets, received_packets, sent_bytes, received_bytes = _STATISTICS.unpack_from(raw)
    return Traffic(received_bytes, received_packets, sent_bytes, sent_packets)


def port_of(message: bytes) -> tuple[int, settings.Settings] | None:
    """The index and the settings of a port of which an RTM_NEWLINK of its bridge tells; None for any other message."""
    family, _, index, flags, _ = _LINK.unpack_from(message, HEADER.size)
    info = attributes_of(message, HEADER.size + _LINK.size).get(_IFLA_PROTINFO, b"")
    return (index, _port_settings(attributes_of(info), flags)) if family == _AF_BRIDGE and info else None


def entry_of(message: bytes) -> int:
    """The index of the port that an RTM_NEWNEIGH or RTM_DELNEIGH of a bridge is about; 0 for neighbors of others."""
    family, _, index = _NEIGHBOR.unpack_from(message, HEADER.size)
    return int(index) if family == _AF_BRIDGE else 0


def address_of(message: bytes) -> tuple[int, IPv4Interface | IPv6Interface]:
    """The index of a link, and the address of the host that RTM_NEWADDR or RTM_DELADDR says of it."""
    family, length, _, _, index = _ADDRESS.unpack_from(message, HEADER.size)
    of = attributes_of(message, HEADER.size + _ADDRESS.size)
    address = of.get(_IFA_LOCAL) or of[_IFA_ADDRESS]
    return index, IPv4Interface((address, length)) if family == AF_INET else IPv6Interface((address, length))


def route_of(message: bytes) -> Prefix | None:
    """Where the route of an RTM_NEWROUTE leads; None for the default route and for what comes with other routes."""
    family, length, _, _, _, _, _, kind, flags = _ROUTE.unpack_from(message, HEADER.size)
    address = attributes_of(message, HEADER.size + _ROUTE.size).get(_RTA_DST)
    if address is None or kind in _RTN_OF_MANY or flags & _RTM_F_CLONED:
        return None
    return IPv4Network((address, length)) if family == AF_INET else IPv6Network((address, length))


def attributes_of(data: bytes, offset: int = 0) -> dict[int, bytes]:
    """The values of the attributes that begin at an offset, by their kinds."""
    found = {}
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size:
            break
        found[kind & _TYPE_MASK] = data[offset + _ATTRIBUTE.size : offset + length]
        offset += _aligned(length)
    return found


def _port_settings(said: settings.Settings, flags: int) -> settings.Settings:
    return settings.of_port(said, is_running=bool(flags & _IFF_RUNNING))


def _aligned(length: int) -> int:
    return length + 3 & ~3


def _text(raw: bytes | None) -> str:
    # An alias of somebody else's may hold any bytes.
    return (raw or b"").rstrip(b"\0").decode(errors="backslashreplace")


def _number(raw: bytes | None) -> int:
    return 0 if raw is None else int(_NUMBER.unpack(raw)[0])
