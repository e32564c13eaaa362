"""Ethernet frames by struct, with right checksums. MACs are bytes or text with colons, addresses are text."""

from __future__ import annotations

import ipaddress
import struct

BROADCAST = "ff:ff:ff:ff:ff:ff"
ARP, IPV4, IPV6 = 0x0806, 0x0800, 0x86DD
ICMP, TCP, UDP, ICMP6 = 1, 6, 17, 58
SYN, ACK = 0x02, 0x10


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def address(text: str) -> bytes:
    return ipaddress.ip_address(text).packed


def ethernet(to: str, source: str, kind: int, payload: bytes) -> bytes:
    """At least 60 bytes long, as on a wire."""
    return (mac(to) + mac(source) + struct.pack("!H", kind) + payload).ljust(60, b"\0")


def vlan(frame: bytes, number: int, tag: int = 0x8100) -> bytes:
    """The frame with a tag."""
    return frame[:12] + struct.pack("!HH", tag, number) + frame[12:]


def arp(
    operation: int,
    sender: tuple[str, str],
    target: tuple[str, str],
    *,
    hardware: int = 1,
    protocol: int = IPV4,
    lengths: tuple[int, int] = (6, 4),
) -> bytes:
    """Sender and target are MAC and IPv4 address each."""
    head = struct.pack("!HHBBH", hardware, protocol, *lengths, operation)
    return head + mac(sender[0]) + address(sender[1]) + mac(target[0]) + address(target[1])


def checksum(block: bytes) -> int:
    block += bytes(len(block) % 2)
    total: int = sum(struct.unpack(f"!{len(block) // 2}H", block))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


def ipv4(source: str, to: str, protocol: int, payload: bytes, *, fragment: int = 0, first: int = 0x45) -> bytes:
    """`fragment` is flags and offset, `first` version and length of the header in words."""
    length = 20 + len(payload)
    head = struct.pack("!BBHHHBBH", first, 0, length, 7, fragment, 64, protocol, 0) + address(source) + address(to)
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload


def ipv6(source: str, to: str, protocol: int, payload: bytes, *, first: int = 0x60, length: int | None = None) -> bytes:
    """The hop limit is 255, as neighbor discovery has it."""
    length = len(payload) if length is None else length
    return struct.pack("!BxxxHBB", first, length, protocol, 255) + address(source) + address(to) + payload


def _with_sum(source: str, to: str, protocol: int, segment: bytes, at: int) -> bytes:
    pseudo = address(source) + address(to) + struct.pack("!II", len(segment), protocol)
    return segment[:at] + struct.pack("!H", checksum(pseudo + segment) or 0xFFFF) + segment[at + 2 :]


def udp(source: str, to: str, ports: tuple[int, int], data: bytes) -> bytes:
    segment = struct.pack("!HHHH", *ports, 8 + len(data), 0) + data
    return _with_sum(source, to, UDP, segment, 6)


def tcp(source: str, to: str, ports: tuple[int, int], flags: int, *, at: tuple[int, int], data: bytes = b"") -> bytes:
    """`at` are the sequence number and the acknowledged one."""
    segment = struct.pack("!HHIIBBHHH", *ports, *at, 5 << 4, flags, 65535, 0, 0) + data
    return _with_sum(source, to, TCP, segment, 16)


def icmp(kind: int, rest: bytes, code: int = 0) -> bytes:
    message = struct.pack("!BBH", kind, code, 0) + rest
    return message[:2] + struct.pack("!H", checksum(message)) + message[4:]


def icmp6(source: str, to: str, kind: int, rest: bytes) -> bytes:
    return _with_sum(source, to, ICMP6, struct.pack("!BBH", kind, 0, 0) + rest, 2)


def echo(data: bytes) -> bytes:
    """What follows the checksum of an echo request or reply."""
    return struct.pack("!HH", 1, 1) + data


def link_layer(kind: int, text: str) -> bytes:
    """An option of neighbor discovery: 1 is the source's MAC, 2 the target's."""
    return bytes([kind, 1]) + mac(text)


def solicited(target: str) -> str:
    """The multicast address that the owner of `target` listens to."""
    return str(
        ipaddress.IPv6Address(int(ipaddress.IPv6Address("ff02::1:ff00:0")) | int.from_bytes(address(target)[-3:]))
    )


def group_mac(group: str) -> str:
    """The MAC of a multicast group."""
    last = address(group)
    prefix = b"\x33\x33" if len(last) == 16 else b"\x01\x00\x5e"
    tail = last[-4:] if len(last) == 16 else bytes([last[1] & 0x7F, *last[2:]])
    return (prefix + tail).hex(":")
