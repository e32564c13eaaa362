"""What passes between a guest's card and user-mode networking: the filter itself, as the kernel runs it."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from aetherscale.actors.compute.model.effects import PublishedPort
from aetherscale.actors.compute.qemu import packetfilter, usernetwork
from aetherscale.actors.compute.qemu.packetfilter import DROP, KEEP, Mark, assemble, byte, equal, go
from tests.support import frames

MAC, ROUTER_MAC = "52:54:00:11:22:33", "52:55:0a:00:02:02"
GUEST, GUEST6 = "10.0.2.15", "fec0::15"
SYN, ACK, RST, FIN, PUSH = 0x02, 0x10, 0x04, 0x01, 0x08


def packet(to: str, protocol: int, payload: bytes, **how: int) -> bytes:
    if ":" in to:
        return frames.ethernet(ROUTER_MAC, MAC, frames.IPV6, frames.ipv6(GUEST6, to, protocol, payload))
    return frames.ethernet(ROUTER_MAC, MAC, frames.IPV4, frames.ipv4(GUEST, to, protocol, payload, **how))


def tcp(to: str, port: int = 80, flags: int = SYN, **how: int) -> bytes:
    own = GUEST6 if ":" in to else GUEST
    return packet(to, frames.TCP, frames.tcp(own, to, (4000, port), flags, at=(1, 0)), **how)


def udp(to: str, port: int = 80, **how: int) -> bytes:
    own = GUEST6 if ":" in to else GUEST
    return packet(to, frames.UDP, frames.udp(own, to, (4000, port), b"data"), **how)


def icmp6(to: str, kind: int) -> bytes:
    return packet(to, frames.ICMP6, frames.icmp6(GUEST6, to, kind, bytes(20)))


def ping(to: str) -> bytes:
    return icmp6(to, 128) if ":" in to else packet(to, frames.ICMP, frames.icmp(8, frames.echo(b"data")))


@contextmanager
def cable() -> Iterator[tuple[socket.socket, socket.socket]]:
    card, stack = usernetwork.cable()
    with card, stack:
        stack.setblocking(False)
        yield card, stack


def passes(frame: bytes) -> bool:
    with cable() as (card, stack):
        assert card.send(frame) == len(frame)
        try:
            assert stack.recv(65536) == frame
        except BlockingIOError:
            return False
        return True


WORLD = ("192.0.2.1", "1.0.0.0", "126.255.255.255", "128.0.0.1", "10.0.1.255", "10.0.3.0", "223.255.255.255")
WORLD6 = ("2001:db8::1", "fd00::2", "fec0:0:0:1::2", "0:0:0:1::1", "64:ff9b::7f00:1", "fe00::1")
LOOPBACK = ("127.0.0.1", "127.1.2.3", "127.255.255.255", "0.0.0.0", "0.255.255.255")  # noqa: S104 - destinations
GROUPS = ("224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.254", "255.255.255.255")
OWN = ("10.0.2.0", "10.0.2.1", "10.0.2.2", "10.0.2.3", "10.0.2.4", "10.0.2.15", "10.0.2.255")
LOOPBACK6 = ("::1", "::", "::ffff:127.0.0.1", "::ffff:192.0.2.1", "::127.0.0.1", "::ffff:ffff:ffff:ffff")
OWN6 = ("fec0::", "fec0::1", "fec0::2", "fec0::3", "fec0::15", "fec0::1:0:2", "fec0::1:0:0:2")
LINK6 = ("fe80::1", "fe80::2", "fe80::3", "febf::2", "fe80:1::2", "fe80::1:0:0:2")
GROUPS6 = ("ff02::1", "ff02::2", "ff01::1", "ff02::1:2", "ff05::1:3", "ff0e::1")
TOWARDS_THE_HOST = (*LOOPBACK, *GROUPS, *OWN, *LOOPBACK6, *OWN6, *LINK6, *GROUPS6)


@pytest.mark.parametrize("to", [*WORLD, *WORLD6])
def test_a_guest_sends_anything_to_the_world(to: str) -> None:
    assert passes(tcp(to))
    assert passes(udp(to))
    assert passes(ping(to))


@pytest.mark.parametrize("to", TOWARDS_THE_HOST)
@pytest.mark.parametrize("port", [1, 22, 80, 4222, 65535])
def test_a_guest_opens_nothing_on_the_host(to: str, port: int) -> None:
    for flags in (SYN, SYN | PUSH, SYN | FIN, SYN | 0xC0, 0, FIN, PUSH):
        assert not passes(tcp(to, port, flags)), flags
    assert not passes(udp(to, port))


@pytest.mark.parametrize("to", [each for each in TOWARDS_THE_HOST if each not in ("10.0.2.2", "fec0::2", "fe80::2")])
def test_only_the_router_itself_answers_an_echo(to: str) -> None:
    assert not passes(ping(to))


@pytest.mark.parametrize("to", ["10.0.2.2", "fec0::2", "fe80::2"])
def test_the_router_answers_an_echo(to: str) -> None:
    assert passes(ping(to))


@pytest.mark.parametrize("flags", [SYN | ACK, ACK, ACK | PUSH, ACK | FIN, RST, RST | ACK])
def test_what_answers_a_connection_that_came_in_passes_to_the_router_alone(flags: int) -> None:
    assert passes(tcp("10.0.2.2", 40000, flags))
    for to in (each for each in TOWARDS_THE_HOST if each != "10.0.2.2"):
        assert not passes(tcp(to, 40000, flags)), to


@pytest.mark.parametrize("to", ["10.0.2.3", "fec0::3"])
def test_the_server_of_names_is_asked_for_names_and_nothing_else(to: str) -> None:
    assert passes(tcp(to, 53))
    assert passes(udp(to, 53))
    for port in (52, 54, 80):
        assert not passes(tcp(to, port, ACK))
        assert not passes(udp(to, port))


@pytest.mark.parametrize("to", ["255.255.255.255", "10.0.2.2"])
def test_an_address_is_asked_for_by_dhcp(to: str) -> None:
    assert passes(udp(to, 67))
    assert not passes(udp(to, 69)), "tftp"
    assert not passes(tcp(to, 67))


def test_an_address_is_asked_for_by_dhcpv6() -> None:
    assert passes(udp("ff02::1:2", 547))
    assert not passes(udp("ff02::1:3", 547))
    assert not passes(udp("ff05::1:2", 547))
    assert not passes(tcp("ff02::1:2", 547))


@pytest.mark.parametrize("to", ["fec0::2", "fec0::3", "fe80::2", "fe80::9", "ff02::2", "ff02::1:ff00:2"])
def test_neighbors_are_discovered(to: str) -> None:
    assert [kind for kind in range(256) if passes(icmp6(to, kind)) and kind != 128] == [133, 134, 135, 136]


@pytest.mark.parametrize("first", [0x2000, 0x2001, 1, 0x1FFF])
def test_a_fragment_does_not_hide_its_port(first: int) -> None:
    assert not passes(tcp("10.0.2.2", 40000, ACK, fragment=first))
    for to in ("10.0.2.2", "255.255.255.255"):
        assert not passes(udp(to, 67, fragment=first))
    assert not passes(udp("10.0.2.3", 53, fragment=first))
    assert not passes(tcp("127.0.0.1", 80, fragment=first))
    assert passes(udp("192.0.2.1", 80, fragment=first))


def test_options_of_the_header_do_not_hide_a_port() -> None:
    def with_options(to: str, protocol: int, segment: bytes) -> bytes:
        return frames.ethernet(
            ROUTER_MAC, MAC, frames.IPV4, frames.ipv4(GUEST, to, protocol, b"\1" * 8 + segment, first=0x47)
        )

    # Where the ports and the flags are without options, these have 53 and ACK.
    decoy = frames.udp(GUEST, "10.0.2.3", (4000, 80), b"data")
    assert not passes(with_options("10.0.2.3", frames.UDP, decoy))
    assert passes(with_options("10.0.2.3", frames.UDP, frames.udp(GUEST, "10.0.2.3", (4000, 53), b"data")))
    connecting = frames.tcp(GUEST, "10.0.2.2", (4000, 80), SYN, at=(0, 0x10101010))
    assert not passes(with_options("10.0.2.2", frames.TCP, connecting))


@pytest.mark.parametrize("kind", [0x8100, 0x88A8, 0x88F8, 0x0842, 0x86DC, 0x0000, 0x05DC])
def test_no_other_kind_of_frame_passes(kind: int) -> None:
    inner = frames.ipv4(GUEST, "192.0.2.1", frames.UDP, frames.udp(GUEST, "192.0.2.1", (1, 80), b"data"))
    assert not passes(frames.ethernet(ROUTER_MAC, MAC, kind, inner))


def test_who_has_an_address_is_asked() -> None:
    nobody = "00:00:00:00:00:00"
    assert passes(frames.ethernet(frames.BROADCAST, MAC, frames.ARP, frames.arp(1, (MAC, GUEST), (nobody, "10.0.2.2"))))


@pytest.mark.parametrize("length", range(1, 62))
def test_a_frame_that_is_cut_off_anywhere_is_no_way_in(length: int) -> None:
    for whole in (tcp("10.0.2.2"), udp("10.0.2.3", 80), tcp("127.0.0.1"), tcp("::1"), udp("fec0::3", 80)):
        assert not passes(whole[:length])


def test_who_has_the_descriptor_cannot_take_the_filter_away() -> None:
    with cable() as (card, stack):
        for option in (26, 27):  # SO_ATTACH_FILTER, SO_DETACH_FILTER
            with pytest.raises(PermissionError):
                stack.setsockopt(socket.SOL_SOCKET, option, bytes(16))
        card.send(tcp("127.0.0.1"))
        with pytest.raises(BlockingIOError):
            stack.recv(65536)


def test_what_the_world_answers_is_not_filtered() -> None:
    with cable() as (card, stack):
        card.setblocking(False)
        for frame in (tcp("127.0.0.1"), udp(GUEST), bytes(60)):
            stack.send(frame)
            assert card.recv(65536) == frame


class TestTheProgram:
    def test_a_jump_leads_forward_and_not_too_far(self) -> None:
        with pytest.raises(AssertionError, match="leads back"):
            assemble([go("there"), Mark("there"), go("there")])
        with pytest.raises(AssertionError, match="too far"):
            assemble([equal(1, DROP), *[byte(0)] * 256, go(KEEP)])

    def test_no_step_falls_into_another_part(self) -> None:
        with pytest.raises(AssertionError, match="from above"):
            assemble([byte(0), Mark("there"), go(KEEP)])
        with pytest.raises(AssertionError, match="from above"):
            assemble([byte(0)])

    def test_a_name_is_one_place(self) -> None:
        with pytest.raises(AssertionError, match="two marks"):
            assemble([go("here"), Mark("here"), go(KEEP), Mark("here"), go(KEEP)])

    def test_the_kernel_refuses_what_is_no_program(self) -> None:
        card, stack = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        with card, stack, pytest.raises(OSError, match="Invalid"):
            packetfilter.attach(stack, bytes(8) * 2)


class TestTheWords:
    def test_a_guest_has_the_filter_between_its_card_and_the_stack(self) -> None:
        words = usernetwork.netdevs("user0", [], (20, 21))
        card, filtered, stack, *hubs = (json.loads(word) for word in words[1::2])
        assert card == {"type": "dgram", "id": "user0", "local": {"type": "fd", "str": "20"}}
        assert filtered["local"] == {"type": "fd", "str": "21"}
        assert (stack["type"], "hostfwd" in stack) == ("user", False)
        assert {hub["netdev"] for hub in hubs} == {filtered["id"], stack["id"]}

    def test_one_that_is_to_reach_the_loopback_is_on_the_stack_itself(self) -> None:
        (word,) = usernetwork.netdevs("user0", [], None)[1::2]
        assert json.loads(word) == {"type": "user", "id": "user0", **usernetwork.STACK}

    @pytest.mark.parametrize("ends", [None, (20, 21)])
    def test_published_ports_lead_to_the_guest(self, ends: tuple[int, int] | None) -> None:
        ports = [PublishedPort("tcp", "127.0.0.1", 8080, 80), PublishedPort("udp", "192.0.2.9", 5353, 53)]
        devices = [json.loads(word) for word in usernetwork.netdevs("user0", ports, ends)[1::2]]
        (stack,) = (device for device in devices if device["type"] == "user")
        assert stack["hostfwd"] == [
            {"str": "tcp:127.0.0.1:8080-10.0.2.15:80"},
            {"str": "udp:192.0.2.9:5353-10.0.2.15:53"},
        ]
