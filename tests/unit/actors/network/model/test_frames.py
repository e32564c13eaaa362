"""Frames in words, and those that are cut off or lie."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from aetherscale.actors.network.model.frames import ARP, IPV4, IPV6, read
from aetherscale.actors.network.model.views import Frame
from tests.support import frames

ONE, OTHER = "10.64.1.2", "192.0.2.9"
ONE6, OTHER6 = "fd00:1::2", "2001:db8::9"
HEADER = bytes.fromhex("ffffffffffff5254000001020806")


@pytest.mark.parametrize(
    ("payload", "packet", "protocol", "port", "icmp"),
    [
        (frames.ipv4(ONE, OTHER, frames.UDP, frames.udp(ONE, OTHER, (4000, 53), b"x")), "udp/53", "udp", 53, None),
        (frames.ipv4(ONE, OTHER, frames.TCP, frames.udp(ONE, OTHER, (4000, 443), b"x")), "tcp/443", "tcp", 443, None),
        (
            frames.ipv4(ONE, OTHER, frames.ICMP, frames.icmp(8, frames.echo(b"x"))),
            "icmp/echo-request", "icmp", None, "echo-request",
        ),
        (frames.ipv4(ONE, OTHER, frames.ICMP, frames.icmp(13, b"")), "icmp/13", "icmp", None, None),
        (frames.ipv4(ONE, OTHER, 47, b"x"), "protocol 47", "other", None, None),
        (frames.ipv4(ONE, OTHER, frames.TCP, b"\1\2\3"), "tcp", "tcp", None, None),
        (frames.ipv4(ONE, OTHER, frames.ICMP, b""), "icmp", "icmp", None, None),
    ],
)  # fmt: skip
def test_a_packet_of_ipv4(payload: bytes, packet: str, protocol: str, port: int | None, icmp: str | None) -> None:
    assert read(IPV4, HEADER, payload) == Frame(ONE, OTHER, packet, protocol, port, icmp)  # type: ignore[arg-type]


def test_the_port_is_found_behind_options_of_ipv4() -> None:
    whole = frames.ipv4(ONE, OTHER, frames.UDP, frames.udp(ONE, OTHER, (4000, 53), b"x"))
    with_options = bytes([0x46, *whole[1:20]]) + b"\x94\x04\0\0" + whole[20:]
    assert read(IPV4, HEADER, with_options).packet == "udp/53"


def test_a_later_fragment_has_no_ports() -> None:
    whole = bytearray(frames.ipv4(ONE, OTHER, frames.UDP, b"\0\1\0\2"))
    whole[7] = 1
    assert read(IPV4, HEADER, bytes(whole)) == Frame(ONE, OTHER, "udp", "udp")


def test_a_packet_of_ipv6() -> None:
    udp = frames.ipv6(ONE6, OTHER6, frames.UDP, frames.udp(ONE6, OTHER6, (4000, 53), b"x"))
    assert read(IPV6, HEADER, udp) == Frame(ONE6, OTHER6, "udp/53", "udp", 53)
    ping = frames.ipv6(ONE6, OTHER6, frames.ICMP6, frames.icmp6(ONE6, OTHER6, 128, frames.echo(b"x")))
    assert read(IPV6, HEADER, ping) == Frame(ONE6, OTHER6, "icmp/echo-request", "icmp", None, "echo-request")
    solicited = frames.ipv6(ONE6, OTHER6, frames.ICMP6, frames.icmp6(ONE6, OTHER6, 135, bytes(20)))
    assert read(IPV6, HEADER, solicited).packet == "icmp/135"
    report = b"\x3a\0\5\2\0\0\1\0" + frames.icmp6(ONE6, OTHER6, 143, bytes(4))
    assert read(IPV6, HEADER, frames.ipv6(ONE6, OTHER6, 0, report)).packet == "icmp/143"
    for cut in (b"", b"\x3a", b"\x3a\xff"):
        assert read(IPV6, HEADER, frames.ipv6(ONE6, OTHER6, 0, cut)).packet in ("protocol 0", "icmp")
    # As of IPv4 the number would have a name.
    assert read(IPV6, HEADER, frames.ipv6(ONE6, OTHER6, frames.ICMP6, b"\x08\0")).packet == "icmp/8"


def test_arp_is_from_and_to_addresses() -> None:
    asked = b"\0\1\x08\0\6\4\0\1" + bytes(6) + bytes([10, 0, 0, 1]) + bytes(6) + bytes([10, 0, 0, 2])
    assert read(ARP, HEADER, asked) == Frame("10.0.0.1", "10.0.0.2", "arp")


@pytest.mark.parametrize(
    ("ethertype", "payload", "packet"),
    [
        (0x88CC, b"", "ethertype 0x88cc"), (0x8100, b"", "vlan"), (ARP, b"\0\1", "arp"),
        (IPV4, b"\x45" + bytes(10), "ip"), (IPV4, b"\x65" + bytes(30), "ip"), (IPV6, b"\x60" + bytes(30), "ip6"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_further_is_from_macs(ethertype: int, payload: bytes, packet: str) -> None:
    assert read(ethertype, HEADER, payload) == Frame("52:54:00:00:01:02", "ff:ff:ff:ff:ff:ff", packet)
    assert read(ethertype, b"", payload) == Frame("", "", packet)


@given(some.sampled_from([IPV4, IPV6, ARP, 0x8100, 0]), some.binary(max_size=20), some.binary(max_size=96))
def test_whatever_a_guest_writes_is_read_as_one_line(ethertype: int, header: bytes, payload: bytes) -> None:
    found = read(ethertype, header, payload)
    assert all(text.isascii() and text.isprintable() for text in (found.source, found.target, found.packet))
