"""User-mode networking: QEMU's own stack (libslirp), and a filter of the kernel between it and the guest's card.

    card ── dgram ══ socket pair ══[filter]══ dgram ── hub ── user (10.0.2.0/24, fec0::/64) ── sockets of the host

libslirp opens a socket of the host for what a guest sends, and takes many a destination to the host's loopback:
10.0.2.2, `fec0::/64` but for the server of names, 0.0.0.0, 127.0.0.0/8, broadcasts, `::/64` with all that is mapped
into it, groups. QEMU lets none of that be turned off but with everything else. So the guest's frames cross a
pair of sockets, and what leads there never reaches libslirp. There is no other process: what the filter is attached to
lives and dies with QEMU.

The filter has no memory. What answers a connection that came in is known by its flags in TCP, and by nothing in UDP: a
datagram that came from the host's loopback gets no answer.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Final

from aetherscale.actors.compute.model.effects import PublishedPort
from aetherscale.actors.compute.qemu import packetfilter
from aetherscale.actors.compute.qemu.packetfilter import (
    DROP,
    KEEP,
    Mark,
    Program,
    any_bit,
    at_least,
    byte,
    byte_after,
    equal,
    go,
    half,
    half_after,
    header_length,
    masked,
    word,
)

GUEST: Final = "10.0.2.15"
"""The address that DHCP gives the guest."""
ROUTER: Final = "10.0.2.2"
NAMES: Final = "10.0.2.3"
ROUTER6: Final = "fec0::2"
LOCAL_ROUTER6: Final = "fe80::2"
NAMES6: Final = "fec0::3"
STACK: Final[Mapping[str, Any]] = {
    "net": "10.0.2.0/24",
    "host": ROUTER,
    "dns": NAMES,
    "dhcpstart": GUEST,
    "ipv6-prefix": "fec0::",
    "ipv6-prefixlen": 64,
    "ipv6-host": ROUTER6,
    "ipv6-dns": NAMES6,
}
"""QEMU's defaults, spelled out, since the filter depends on them."""
HUB_WITHOUT_CARD: Final = "warning: hub 0 with no nics"
"""The end of a line that QEMU says of it at each start: the card is at the other end of the pair."""

# Offsets in an Ethernet frame, without and with a header of IPv4 before them.
_KIND: Final = 12
_IPV4: Final = 14
_FRAGMENT, _PROTOCOL, _TO = 20, 23, 30
_PORT_AFTER, _FLAGS_AFTER = 14 + 2, 14 + 13
_NEXT, _TO6, _ICMP6_TYPE, _PORT6 = 20, 38, 54, 56
# What is found there.
_IS_ARP, _IS_IPV4, _IS_IPV6 = 0x0806, 0x0800, 0x86DD
_ICMP, _TCP, _UDP, _ICMP6 = 1, 6, 17, 58
_MORE_OR_LATER: Final = 0x3FFF
_RST_OR_ACK: Final = 0x14
_DHCP, _DHCP6, _DNS = 67, 547, 53
_ECHO, _NEIGHBORS, _NEIGHBORS_END = 128, 133, 137
_ALL_DHCP6_SERVERS: Final = "ff02::1:2"


def _number(address: str) -> int:
    return int(IPv4Address(address))


def _words(address: str) -> tuple[int, int, int, int]:
    packed = IPv6Address(address).packed
    first, second, third, fourth = (int.from_bytes(packed[at : at + 4]) for at in (0, 4, 8, 12))
    return first, second, third, fourth


_TO_IPV4: Final[Program] = (
    Mark("ipv4"),
    word(_TO),
    equal(_number(ROUTER), "router"),
    equal(_number(NAMES), "names"),
    equal(_number("255.255.255.255"), "dhcp"),
    at_least(_number("224.0.0.0"), DROP),
    masked(0xFFFFFF00),
    equal(_number("10.0.2.0"), DROP),
    masked(0xFF000000),
    equal(_number("127.0.0.0"), DROP),
    equal(0, DROP),
    go(KEEP),
    Mark("router"),
    byte(_PROTOCOL),
    # It answers an echo itself.
    equal(_ICMP, KEEP),
    equal(_UDP, "dhcp"),
    equal(_TCP, "answer"),
    go(DROP),
    Mark("answer"),
    half(_FRAGMENT),
    any_bit(_MORE_OR_LATER, DROP),
    header_length(_IPV4),
    byte_after(_FLAGS_AFTER),
    # libslirp opens a connection for a segment with SYN and without these (tcp_input.c).
    any_bit(_RST_OR_ACK, KEEP),
    go(DROP),
    Mark("dhcp"),
    byte(_PROTOCOL),
    equal(_UDP, "to-dhcp"),
    go(DROP),
    Mark("to-dhcp"),
    half(_FRAGMENT),
    any_bit(_MORE_OR_LATER, DROP),
    header_length(_IPV4),
    half_after(_PORT_AFTER),
    equal(_DHCP, KEEP),
    go(DROP),
    Mark("names"),
    byte(_PROTOCOL),
    equal(_UDP, "to-names"),
    equal(_TCP, "to-names"),
    go(DROP),
    Mark("to-names"),
    half(_FRAGMENT),
    any_bit(_MORE_OR_LATER, DROP),
    header_length(_IPV4),
    half_after(_PORT_AFTER),
    # Without this all ports of the host's server of names would be reached, which may be on the loopback.
    equal(_DNS, KEEP),
    go(DROP),
)

_TO_IPV6: Final[Program] = (
    Mark("ipv6"),
    byte(_TO6),
    equal(0xFF, "group"),
    half(_TO6),
    masked(0xFFC0),
    equal(0xFE80, "local"),
    word(_TO6),
    equal(0, "nought"),
    equal(_words(ROUTER6)[0], "site"),
    go(KEEP),
    # ::/64: the loopback, the unspecified address, and all that stands for an IPv4 address.
    Mark("nought"),
    word(_TO6 + 4),
    equal(0, DROP),
    go(KEEP),
    Mark("site"),
    word(_TO6 + 4),
    equal(0, "own"),
    go(KEEP),
    Mark("own"),
    word(_TO6 + 8),
    equal(0, "own-host"),
    go("neighbors"),
    Mark("own-host"),
    word(_TO6 + 12),
    equal(_words(ROUTER6)[3], "echo"),
    equal(_words(NAMES6)[3], "names6"),
    go("neighbors"),
    Mark("names6"),
    byte(_NEXT),
    equal(_UDP, "to-names6"),
    equal(_TCP, "to-names6"),
    go("neighbors"),
    Mark("to-names6"),
    half(_PORT6),
    equal(_DNS, KEEP),
    go(DROP),
    Mark("local"),
    word(_TO6),
    equal(_words(LOCAL_ROUTER6)[0], "local-net"),
    go("neighbors"),
    Mark("local-net"),
    word(_TO6 + 4),
    equal(0, "local-host"),
    go("neighbors"),
    Mark("local-host"),
    word(_TO6 + 8),
    equal(0, "local-router"),
    go("neighbors"),
    Mark("local-router"),
    word(_TO6 + 12),
    equal(_words(LOCAL_ROUTER6)[3], "echo"),
    go("neighbors"),
    Mark("echo"),
    byte(_NEXT),
    equal(_ICMP6, "is-echo"),
    go(DROP),
    Mark("is-echo"),
    byte(_ICMP6_TYPE),
    equal(_ECHO, KEEP),
    go("neighbors"),
    Mark("group"),
    byte(_NEXT),
    equal(_UDP, "group-udp"),
    go("neighbors"),
    Mark("group-udp"),
    word(_TO6),
    equal(_words(_ALL_DHCP6_SERVERS)[0], "dhcp6"),
    go(DROP),
    Mark("dhcp6"),
    word(_TO6 + 12),
    equal(_words(_ALL_DHCP6_SERVERS)[3], "to-dhcp6"),
    go(DROP),
    Mark("to-dhcp6"),
    half(_PORT6),
    equal(_DHCP6, KEEP),
    go(DROP),
    # Neighbor discovery and nothing else: all that a guest has to say within its own network.
    Mark("neighbors"),
    byte(_NEXT),
    equal(_ICMP6, "is-discovery"),
    go(DROP),
    Mark("is-discovery"),
    byte(_ICMP6_TYPE),
    at_least(_NEIGHBORS_END, DROP),
    at_least(_NEIGHBORS, KEEP),
    go(DROP),
)

WITHOUT_LOOPBACK: Final = packetfilter.assemble(
    (
        half(_KIND),
        equal(_IS_IPV4, "ipv4"),
        equal(_IS_IPV6, "ipv6"),
        equal(_IS_ARP, KEEP),
        go(DROP),
        *_TO_IPV4,
        *_TO_IPV6,
    )
)
"""Keeps a frame of a guest unless it is to reach the host's loopback, by libslirp's understanding."""


def cable() -> tuple[socket.socket, socket.socket]:
    """The two ends of what a guest's frames cross: the card's, and the filtered one of the stack. Raises `OSError`."""
    card, stack = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        packetfilter.attach(stack, WITHOUT_LOOPBACK)
    except BaseException:
        card.close()
        stack.close()
        raise
    return card, stack


def netdevs(name: str, published: Sequence[PublishedPort], cable: tuple[int, int] | None) -> list[str]:
    """The words that make the network that a card is connected to as `name`.

    `cable` are the descriptors of its two ends; None for a guest that is to reach the host's loopback.
    """
    if cable is None:
        return _stack(name, published)
    card, stack = cable
    return [
        *_netdev({"type": "dgram", "id": name, "local": {"type": "fd", "str": str(card)}}),
        *behind(stack, published),
    ]


def behind(stack: int, published: Sequence[PublishedPort]) -> list[str]:
    """The words of all that is behind the filter, which is attached to this descriptor."""
    return [
        *_netdev({"type": "dgram", "id": "filtered", "local": {"type": "fd", "str": str(stack)}}),
        *_stack("stack", published),
        *_netdev({"type": "hubport", "id": "hub-filtered", "hubid": 0, "netdev": "filtered"}),
        *_netdev({"type": "hubport", "id": "hub-stack", "hubid": 0, "netdev": "stack"}),
    ]


def _stack(name: str, published: Sequence[PublishedPort]) -> list[str]:
    forwards = [
        {"str": f"{each.protocol}:{each.address}:{each.host_port}-{GUEST}:{each.guest_port}"} for each in published
    ]
    return _netdev({"type": "user", "id": name, **STACK, **({"hostfwd": forwards} if forwards else {})})


def _netdev(value: Mapping[str, Any]) -> list[str]:
    return ["-netdev", json.dumps(value, separators=(",", ":"))]
