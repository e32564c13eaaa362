"""Prefixes of networks, and the addresses of their ports. Pure: what is taken is an argument, and ids decide the rest.

A port has its addresses for ever, before its VM has booted. Its MAC address follows from its id; its IPv6 addresses
follow from its MAC address, as guests form them by themselves (RFC 4291, appendix A: modified EUI-64); its IPv4 address
is the first free one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final, TypeVar

from aetherscale.kernel.errors import Reason, Refused
from aetherscale.kernel.rules import shown

Prefix = IPv4Network | IPv6Network
P = TypeVar("P", IPv4Network, IPv6Network)

POOL: Final = IPv4Network("10.64.0.0/10")
"""Where the prefixes of networks come from that have IPv4 and were given none."""
NO_PREFIX: Final = "none"

_POOL_PREFIX_BITS: Final = 24
_PORT_BITS: Final = 29
"""A longer IPv4 prefix has no room for a router, a resolver and some ports."""
_SHORTEST_BITS: Final = 16
"""A shorter IPv4 prefix would be reserved by more than 256 keys in one append."""
_IPV6_BITS: Final = 64
_EUI_64: Final = 0xFFFE
"""In the middle of what a device forms from its MAC."""
_LINK_LOCAL: Final = IPv6Network("fe80::/64")

_IPV4_TEXT: Final = re.compile(r"[0-9.]{7,15}/[0-9]{1,2}")
_IPV6_TEXT: Final = re.compile(r"[0-9a-fA-F:.]{2,45}/[0-9]{1,3}")

_IPV4_EXAMPLE: Final = "10.20.30.0/24"
_IPV6_EXAMPLE: Final = "fd12:3456:789a:1::/64"
_LEAVE_OUT: Final = "leave it out: the network then has a prefix of its own"

_IPV4_PRIVATE: Final = tuple(map(IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")))
"""RFC 1918."""
_IPV6_PRIVATE: Final = IPv6Network("fd00::/8")
"""RFC 4193, with the L bit set."""

_NO_NETWORKS: Final[dict[Prefix, str]] = {
    IPv4Network("0.0.0.0/8"): "addresses of no network",
    IPv4Network("127.0.0.0/8"): "loopback addresses",
    IPv4Network("169.254.0.0/16"): "link-local addresses",
    IPv4Network("224.0.0.0/4"): "multicast addresses",
    IPv4Network("240.0.0.0/4"): "reserved addresses",
    IPv6Network("::/127"): "the unspecified and the loopback address",
    IPv6Network("::ffff:0:0/96"): "IPv4-mapped addresses",
    IPv6Network("fe80::/10"): "link-local addresses",
    IPv6Network("ff00::/8"): "multicast addresses",
}


def ula_prefix(network_id: str) -> IPv6Network:
    """The /64 of a network: a unique local prefix (RFC 4193), whose 56 bits after `fd` follow from the id."""
    return IPv6Network((b"\xfd" + _digest("prefix", network_id)[:7] + bytes(8), _IPV6_BITS))


def free_ipv4_prefix(network_id: str, taken: Iterable[Prefix]) -> IPv4Network:
    """A /24 of 10.64.0.0/10 that overlaps none of those taken: the first from where the id says, in a circle.

    Raises `Refused` where there is none.
    """
    size = 1 << 32 - _POOL_PREFIX_BITS
    count = POOL.num_addresses // size
    is_taken = bytearray(count)
    for each in taken:
        if isinstance(each, IPv4Network) and each.overlaps(POOL):
            first = max(int(each.network_address) - int(POOL.network_address), 0) // size
            last = min(int(each.broadcast_address) - int(POOL.network_address), POOL.num_addresses - 1) // size
            is_taken[first : last + 1] = b"\1" * (last + 1 - first)
    start = int.from_bytes(_digest("ipv4", network_id)[:4], "big") % count
    for place in (*range(start, count), *range(start)):
        if not is_taken[place]:
            return IPv4Network((int(POOL.network_address) + place * size, _POOL_PREFIX_BITS))
    raise Refused(
        Reason.CONFLICT,
        f"every /24 of {POOL} is taken by a network or a route of the host",
        field="ipv4",
        remedy="give a prefix that is free, or delete a network",
    )


def overlaps(prefix: Prefix, others: Iterable[Prefix]) -> Prefix | None:
    """The first of the others that has an address in common with the prefix; None where none has."""
    return next(filter(prefix.overlaps, others), None)


def router_of(prefix: Prefix) -> IPv4Address | IPv6Address:
    """The address of the router in a network: the first one that a host can have."""
    return prefix[1]


def resolver_of(prefix: Prefix) -> IPv4Address | IPv6Address:
    """The address of the DNS and DHCP server in a network: the last one that a host can have, or `::53`."""
    return prefix[-2] if prefix.version == 4 else prefix[0x53]


def mac_of(port_id: str) -> str:
    """The MAC address of a port: locally administered, unicast (IEEE 802, 8.2), and the same for ever."""
    raw = _digest("mac", port_id)[:6]
    return ":".join(f"{byte:02x}" for byte in (raw[0] & 0xFC | 0x02, *raw[1:]))


def tap_mac_of(mac: str) -> str:
    """The MAC of a tap itself, for a port with this one: another, locally administered, and above what cards have.

    A bridge whose MAC was not set takes the lowest of its ports', and is to keep it whatever taps come and go.
    """
    raw = bytes.fromhex(mac.replace(":", ""))
    return bytes((0xFE, raw[1] ^ 0xFF, *raw[2:])).hex(":")


def ipv6_of(prefix: IPv6Network, mac: str) -> IPv6Address:
    """The address that a port with this MAC address forms in a /64."""
    assert prefix.prefixlen == _IPV6_BITS, prefix
    raw = bytes.fromhex(mac.replace(":", ""))
    return prefix[int.from_bytes(bytes((raw[0] ^ 0x02, *raw[1:3], 0xFF, 0xFE, *raw[3:])), "big")]


def link_local_of(mac: str) -> IPv6Address:
    """The link-local address that a port with this MAC address forms."""
    return ipv6_of(_LINK_LOCAL, mac)


def next_ipv4(prefix: IPv4Network, is_taken: Callable[[str], bool]) -> IPv4Address:
    """The lowest address that is free; never that of the network, router or resolver, nor the broadcast address.

    Raises `Refused` where there is none.
    """
    for number in range(int(prefix.network_address) + 2, int(prefix.broadcast_address) - 1):
        address = IPv4Address(number)
        if not is_taken(str(address)):
            return address
    raise Refused(
        Reason.CONFLICT,
        f"all {max(prefix.num_addresses - 4, 0)} addresses of {prefix} that VMs can have are taken",
        field="network",
        remedy="delete a VM of the network, or make a network with a larger prefix",
    )


def parse_ipv4(text: str, *, may_be_public: bool = False, field: str = "ipv4") -> IPv4Network | None:
    """The IPv4 prefix of a network as callers write it; None for `none`.

    Raises `Refused`, which names the field, for anything that is not a prefix of 8 or more private addresses.
    """
    if text == NO_PREFIX:
        return None
    prefix = _parsed(IPv4Network, _IPV4_TEXT, text, field, f"an IPv4 prefix, as {_IPV4_EXAMPLE}, or {NO_PREFIX!r}")
    if not may_be_public and not any(map(prefix.subnet_of, _IPV4_PRIVATE)):
        raise _refused(
            field, text, f"a prefix within {', '.join(map(str, _IPV4_PRIVATE))}: others may be in use elsewhere"
        )
    if prefix.prefixlen < _SHORTEST_BITS:
        raise _refused(field, text, f"a prefix of /{_SHORTEST_BITS} or longer")
    if prefix.prefixlen > _PORT_BITS:
        raise _refused(field, text, f"a prefix of /{_PORT_BITS} or shorter, with room for some VMs")
    return prefix


def parse_ipv6(text: str, *, may_be_public: bool = False, field: str = "ipv6") -> IPv6Network:
    """The IPv6 prefix of a network as callers write it.

    Raises `Refused`, which names the field, for anything that is not a unique local /64.
    """
    if text == NO_PREFIX:
        raise _refused(field, text, f"an IPv6 prefix, as {_IPV6_EXAMPLE}: every network has IPv6", _LEAVE_OUT)
    prefix = _parsed(IPv6Network, _IPV6_TEXT, text, field, f"an IPv6 prefix, as {_IPV6_EXAMPLE}")
    if not may_be_public and not prefix.subnet_of(_IPV6_PRIVATE):
        raise _refused(field, text, f"a prefix within {_IPV6_PRIVATE}: others may be in use elsewhere")
    if prefix.prefixlen != _IPV6_BITS:
        raise _refused(field, text, f"a prefix of /{_IPV6_BITS}, in which guests form their addresses by themselves")
    return prefix


def parse_allowed(text: str, field: str) -> Prefix:
    """An address or a prefix that a guest may send from besides its own, as callers write it.

    Raises `Refused`, which names the field, for anything else, and for addresses that no host may send from.
    """
    expected = f"an address or a prefix, as {_IPV4_EXAMPLE} or {_IPV6_EXAMPLE}"
    if ":" in text:
        return _parsed(IPv6Network, _IPV6_TEXT, text, field, expected, "" if "/" in text else "/128")
    return _parsed(IPv4Network, _IPV4_TEXT, text, field, expected, "" if "/" in text else "/32")


def parse_address(text: str, field: str) -> IPv4Address | IPv6Address:
    """An address that a guest may have in a network of others, as callers write it.

    Raises `Refused`, which names the field, for anything else, and for one that another port forms from its MAC.
    """
    expected = "an address, as 203.0.113.7 or 2001:db8::7"
    if "/" in text:
        raise _refused(field, text, f"{expected}, without the length of a prefix")
    if ":" not in text:
        return _parsed(IPv4Network, _IPV4_TEXT, text, field, expected, "/32")[0]
    address = _parsed(IPv6Network, _IPV6_TEXT, text, field, expected, "/128")[0]
    if int(address) >> 24 & 0xFFFF == _EUI_64:
        raise _refused(field, text, "an address that no device forms from its MAC (with ff:fe in the middle)")
    return address


def _parsed(kind: type[P], form: re.Pattern[str], text: str, field: str, expected: str, bits: str = "") -> P:
    """The prefix that a text is, with no bit behind it, and with no address that means something else everywhere.

    `bits` is the length that is meant where the text has none.
    """
    whole = text + bits
    try:
        prefix = kind(whole, strict=False) if form.fullmatch(whole) else None
    except ValueError:
        prefix = None
    if prefix is None:
        raise _refused(field, text, expected)
    if prefix.prefixlen == 0:
        raise _refused(field, text, "a prefix of some addresses, not of all")
    if (special := overlaps(prefix, _NO_NETWORKS)) is not None:
        raise _refused(field, text, f"a prefix without {_NO_NETWORKS[special]} ({special})")
    if type(prefix.network_address)(text.partition("/")[0]) != prefix.network_address:
        raise _refused(field, text, f"no bit set behind the prefix, as {prefix}")
    return prefix


def _refused(field: str, text: str, expected: str, remedy: str = "") -> Refused:
    return Refused(Reason.BAD_REQUEST, f"got {shown(text)}, expected {expected}", field=field, remedy=remedy)


def _digest(*parts: str) -> bytes:
    return hashlib.sha256("\0".join(parts).encode()).digest()
