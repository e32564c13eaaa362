"""What a frame of Ethernet is, in words: who sends what to whom. Pure.

Guests write frames, and no word of one is trusted. Only its beginning may be there: what is missing is not told.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from aetherscale.actors.firewall.model.commands import ICMP_TYPES
from aetherscale.actors.network.model.views import Frame, FrameProtocol

IPV4: Final = 0x0800
ARP: Final = 0x0806
IPV6: Final = 0x86DD
VLAN: Final = 0x8100

_PROTOCOLS: Final[Mapping[int, FrameProtocol]] = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmp"}
_ICMP4: Final = {numbers[0]: name for name, numbers in ICMP_TYPES.items() if numbers[0] is not None}
_ICMP6: Final = {numbers[1]: name for name, numbers in ICMP_TYPES.items()}
_OPTIONS: Final = 0
_SOURCE: Final = slice(6, 12)
"""Where a header of Ethernet has who sends."""
_FRAGMENT_OFFSET: Final = 0x1FFF


def read(ethertype: int, header: bytes, payload: bytes) -> Frame:
    """The frame; `header` is that of Ethernet, or none of it, and `payload` begins behind it."""
    if ethertype == IPV4 and len(payload) >= 20 and payload[0] >> 4 == 4:
        length = (payload[0] & 0xF) * 4
        offset = int.from_bytes(payload[6:8], "big") & _FRAGMENT_OFFSET
        rest = payload[length:] if offset == 0 else b""
        source, target = (str(IPv4Address(payload[at : at + 4])) for at in (12, 16))
        return _ip(source, target, payload[9], rest, _ICMP4)
    if ethertype == IPV6 and len(payload) >= 40 and payload[0] >> 4 == 6:
        source, target = (str(IPv6Address(payload[at : at + 16])) for at in (8, 24))
        return _ip(source, target, *_behind_options(payload[6], payload[40:]), _ICMP6)
    if ethertype == ARP and len(payload) >= 28 and payload[:6] == b"\0\1\x08\0\6\4":
        source, target = (str(IPv4Address(payload[at : at + 4])) for at in (14, 24))
        return Frame(source, target, "arp")
    packet = {IPV4: "ip", IPV6: "ip6", ARP: "arp", VLAN: "vlan"}.get(ethertype, f"ethertype {ethertype:#06x}")
    return Frame(_mac(header[_SOURCE]), _mac(header[:6]), packet)


def _behind_options(number: int, rest: bytes) -> tuple[int, bytes]:
    """The protocol and its beginning behind a header of hop-by-hop options, as reports of multicast groups have one."""
    return (rest[0], rest[(rest[1] + 1) * 8 :]) if number == _OPTIONS and len(rest) >= 2 else (number, rest)


def _ip(source: str, target: str, number: int, rest: bytes, types: Mapping[int, str]) -> Frame:
    protocol = _PROTOCOLS.get(number, "other")
    if protocol == "other":
        return Frame(source, target, f"protocol {number}")
    if protocol == "icmp":
        if not rest:
            return Frame(source, target, protocol, protocol)
        named = types.get(rest[0])
        return Frame(source, target, f"icmp/{named or rest[0]}", protocol, icmp=named)
    if len(rest) < 4:
        return Frame(source, target, protocol, protocol)
    port = int.from_bytes(rest[2:4], "big")
    return Frame(source, target, f"{protocol}/{port}", protocol, port)


def _mac(address: bytes) -> str:
    return address.hex(":") if len(address) == 6 else ""
