"""The addresses and routes that a device holds, as rtnetlink(7) has them, and the same for another device.

What the kernel said is kept byte by byte, but for what names the device and for what the kernel does not take back: so
nothing of an address or a route is lost that is not known here. Nothing here does I/O.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_address
from socket import AF_INET, AF_INET6
from typing import Final

from msgspec import Struct

from aetherscale.actors.network.netlink.messages import HEADER, attributes_of

Interface = IPv4Interface | IPv6Interface
Address = IPv4Address | IPv6Address

_ADDRESS: Final = struct.Struct("=BBBBI")
"""ifaddrmsg: family, prefix length, flags, scope, index of the device."""
_ROUTE: Final = struct.Struct("=BBBBBBBBI")
"""rtmsg: family, lengths of destination and source, tos, table, protocol, scope, type, flags."""
_ATTRIBUTE: Final = struct.Struct("=HH")
_NUMBER: Final = struct.Struct("=I")
_CACHE: Final = struct.Struct("=IIII")
"""ifa_cacheinfo: seconds preferred, seconds valid, made, updated."""

_IFA_ADDRESS, _IFA_LOCAL, _IFA_LABEL, _IFA_BROADCAST, _IFA_CACHEINFO, _IFA_FLAGS = 1, 2, 3, 4, 6, 8
_NODAD: Final = 0x02
_KEPT_FLAGS: Final = 0x02 | 0x10 | 0x200 | 0x400
"""Of an address: IFA_F_NODAD, HOMEADDRESS, NOPREFIXROUTE, MCAUTOJOIN. The kernel sets the others by itself."""
_TYPE_MASK: Final = 0x3FFF
_FOR_EVER: Final = 0xFFFF_FFFF

_DST, _OIF, _GATEWAY, _PRIORITY, _MULTIPATH = 1, 4, 5, 6, 9
_CACHEINFO, _TABLE, _VIA, _EXPIRES, _NH_ID = 12, 15, 18, 23, 30
_PREFSRC, _METRICS, _ENCAP = 7, 8, 22
_TELLING: Final = (_DST, 2, _PRIORITY, _PREFSRC, _METRICS, _ENCAP)
"""Attributes by which two routes differ, beside those that `words` has."""
_MAIN: Final = 254
_REDIRECT, _KERNEL, _STATIC = 1, 2, 4
_UNICAST: Final = 1
_CLONED: Final = 0x200
_ONLINK: Final = 0x4
_USER_HZ: Final = 100
"""USER_HZ, in which the kernel says when a route expires; it is told so in seconds."""


class Holdings(Struct, frozen=True):
    """What a device holds: bodies of messages, in hexadecimal digits, in the order in which the kernel lists them."""

    addresses: tuple[str, ...] = ()
    routes: tuple[str, ...] = ()


class Route(Struct, frozen=True):
    """A route, as far as it has to be understood."""

    family: int
    to: str
    """`default`, or the prefix."""
    gateway: str
    """"" for one that needs none."""
    table: int
    protocol: int
    metric: int
    is_shared: bool
    """Whether it leads by several devices, or by an object of its own: it cannot be moved with one device."""


def address_body(message: bytes, index: int) -> str | None:
    """The body of an RTM_NEWADDR about a device; None where it is about another."""
    body = message[HEADER.size :]
    return body.hex() if _ADDRESS.unpack_from(body)[4] == index else None


def route_body(message: bytes, index: int) -> str | None:
    """The body of an RTM_NEWROUTE by a device; None for those of others, and for those that come with an address."""
    body = message[HEADER.size :]
    *_, protocol, _, kind, flags = _ROUTE.unpack_from(body)
    of = attributes_of(body, _ROUTE.size)
    if flags & _CLONED or protocol in (_REDIRECT, _KERNEL) or kind == 0:
        return None
    is_by = of.get(_OIF) == _NUMBER.pack(index) or any(each == index for each, _ in _hops(of.get(_MULTIPATH, b"")))
    return body.hex() if is_by else None


def to_add(body: str, index: int, names: tuple[str, str], *, nodad: bool) -> bytes:
    """The body of a message that gives an address to the device of this index; `names` are its old and its new one.

    With `nodad` no duplicates are looked for, which takes a second in which the address cannot be used.
    """
    raw = bytes.fromhex(body)
    family, length, _, scope, _ = _ADDRESS.unpack_from(raw)
    flags = _flags(raw) & _KEPT_FLAGS
    if family == AF_INET6 and nodad:
        flags |= _NODAD
    attributes = b""
    for kind, value in _attributes(raw, _ADDRESS.size):
        if kind == _IFA_LABEL:
            label = value.rstrip(b"\0").decode(errors="replace").replace(names[0], names[1], 1)
            attributes += _attribute(kind, label.encode()[:15] + b"\0")
        elif kind != _IFA_FLAGS:
            attributes += _attribute(kind, value)
    return (
        _ADDRESS.pack(family, length, flags & 0xFF, scope, index)
        + attributes
        + _attribute(_IFA_FLAGS, _NUMBER.pack(flags))
    )


def to_route(body: str, index: int) -> bytes:
    """The body of a message that makes, or removes, a route by the device of this index."""
    raw = bytes.fromhex(body)
    *head, flags = _ROUTE.unpack_from(raw)
    attributes = b""
    for kind, value in _attributes(raw, _ROUTE.size):
        if kind == _OIF:
            attributes += _attribute(kind, _NUMBER.pack(index))
        elif kind == _CACHEINFO:
            (expires,) = struct.unpack_from("=i", value, 8)
            if expires > 0:
                attributes += _attribute(_EXPIRES, _NUMBER.pack(-(-expires // _USER_HZ)))
        elif kind != _EXPIRES:
            attributes += _attribute(kind, value)
    return _ROUTE.pack(*head, flags & _ONLINK) + attributes


def own_hops(body: str, index: int) -> list[str]:
    """A route by several devices as routes of its own, those by this device; any other route as it is.

    IPv6 tells routes of one metric to one prefix as one, and takes them one by one.
    """
    raw = bytes.fromhex(body)
    several = attributes_of(raw, _ROUTE.size).get(_MULTIPATH)
    if several is None or raw[0] != AF_INET6:
        return [body]
    rest = [each for each in _attributes(raw, _ROUTE.size) if each[0] & _TYPE_MASK not in (_MULTIPATH, _GATEWAY, _OIF)]
    common = raw[: _ROUTE.size] + b"".join(_attribute(kind, value) for kind, value in rest)
    return [
        (common + hop + _attribute(_OIF, _NUMBER.pack(index))).hex()
        for number, hop in _hops(several)
        if number == index
    ]


def interface_of(body: str) -> Interface:
    """The address and its prefix."""
    raw = bytes.fromhex(body)
    family, length, *_ = _ADDRESS.unpack_from(raw)
    of = attributes_of(raw, _ADDRESS.size)
    address = of.get(_IFA_LOCAL) or of[_IFA_ADDRESS]
    return IPv4Interface((address, length)) if family == AF_INET else IPv6Interface((address, length))


def is_ipv6(body: str) -> bool:
    """Whether it is an address, or a route, of IPv6."""
    return bytes.fromhex(body)[0] == AF_INET6


def is_for_ever(body: str) -> bool:
    """Whether an address has no end: one by DHCP, or from a router advertisement, has one."""
    cache = attributes_of(bytes.fromhex(body), _ADDRESS.size).get(_IFA_CACHEINFO)
    return cache is None or _CACHE.unpack_from(cache)[1] == _FOR_EVER


def route_of(body: str) -> Route:
    """What there is to know of a route."""
    raw = bytes.fromhex(body)
    family, length, _, _, table, protocol, _, _, _ = _ROUTE.unpack_from(raw)
    of = attributes_of(raw, _ROUTE.size)
    to = f"{ip_address(of[_DST])}/{length}" if _DST in of else "default"
    gateway = str(ip_address(of[_GATEWAY])) if _GATEWAY in of else of.get(_VIA, b"").hex()
    return Route(
        family=family,
        to="default" if length == 0 else to,
        gateway=gateway,
        table=_NUMBER.unpack(of[_TABLE])[0] if _TABLE in of else table,
        protocol=protocol,
        metric=_NUMBER.unpack(of[_PRIORITY])[0] if _PRIORITY in of else 0,
        is_shared=_MULTIPATH in of or _NH_ID in of,
    )


def expires(body: str) -> bool:
    """Whether a route has an end, as one from a router advertisement has."""
    cache = attributes_of(bytes.fromhex(body), _ROUTE.size).get(_CACHEINFO, bytes(12))
    return bool(struct.unpack_from("=i", cache, 8)[0] > 0)


def static(addresses: Sequence[Interface], gateways: Sequence[Address]) -> Holdings:
    """Addresses without an end, and default routes by these routers."""
    return Holdings(tuple(_static(each) for each in addresses), tuple(_default(each) for each in gateways))


def facts(holdings: Holdings) -> frozenset[str]:
    """Every address and route as a text: the same for the same, whenever it is looked at and whatever device has it."""
    return frozenset((*map(_address_fact, holdings.addresses), *map(_route_fact, holdings.routes)))


def _address_fact(body: str) -> str:
    raw = bytes.fromhex(body)
    of = attributes_of(raw, _ADDRESS.size)
    peer = of.get(_IFA_ADDRESS, b"") if of.get(_IFA_LOCAL, of[_IFA_ADDRESS]) != of[_IFA_ADDRESS] else b""
    return f"address {interface_of(body)} {peer.hex()} scope {raw[3]} flags {_flags(raw) & _KEPT_FLAGS}"


def _route_fact(body: str) -> str:
    raw = bytes.fromhex(body)
    family, to, source, tos, _, protocol, scope, kind, flags = _ROUTE.unpack_from(raw)
    of = attributes_of(raw, _ROUTE.size)
    rest = " ".join(f"{each}={of[each].hex()}" for each in _TELLING if each in of)
    head = f"{family} {to} {source} tos {tos} protocol {protocol} scope {scope} type {kind} flags {flags & _ONLINK}"
    return f"route {words(body)} {head} table {route_of(body).table} {rest}"


def words(body: str) -> str:
    """A route as it is read."""
    route = route_of(body)
    return f"{route.to} via {route.gateway}" if route.gateway else route.to


def _static(address: Interface) -> str:
    family = AF_INET if address.version == 4 else AF_INET6
    ip = address.ip.packed
    attributes = _attribute(_IFA_ADDRESS, ip) + _attribute(_IFA_LOCAL, ip)
    if address.version == 4 and address.network.prefixlen < 31:
        attributes += _attribute(_IFA_BROADCAST, address.network.broadcast_address.packed)
    return (_ADDRESS.pack(family, address.network.prefixlen, 0, 0, 0) + attributes).hex()


def _default(gateway: Address) -> str:
    family = AF_INET if gateway.version == 4 else AF_INET6
    head = _ROUTE.pack(family, 0, 0, 0, _MAIN, _STATIC, 0, _UNICAST, 0)
    # The metric that ip-route(8) has: without one IPv6 takes it from the kernel, and the route looks like another.
    metric = _attribute(_PRIORITY, _NUMBER.pack(1024)) if family == AF_INET6 else b""
    return (head + _attribute(_GATEWAY, gateway.packed) + _attribute(_OIF, bytes(4)) + metric).hex()


def _flags(raw: bytes) -> int:
    of = attributes_of(raw, _ADDRESS.size)
    return int(_NUMBER.unpack(of[_IFA_FLAGS])[0]) if _IFA_FLAGS in of else raw[2]


def _hops(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The index of the device of each hop, and its attributes: rtnexthop is length, flags, hops, index."""
    at = 0
    while at + 8 <= len(data):
        length, _, _, index = struct.unpack_from("=HBBi", data, at)
        if length < 8:
            return
        yield index, data[at + 8 : at + length]
        at += length + 3 & ~3


def _attributes(data: bytes, offset: int) -> Iterator[tuple[int, bytes]]:
    """In their order, each with the bits that say how it is to be read."""
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size:
            return
        yield kind, data[offset + _ATTRIBUTE.size : offset + length]
        offset += length + 3 & ~3


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)
