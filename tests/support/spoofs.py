"""Frames that no port may send, by name: what a guest makes up against another, and why it is dropped."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv6Network

from aetherscale.actors.network.model.chains import Drop
from tests.support import frames
from tests.support.fake_guest import FakeGuest
from tests.support.frames import ARP, BROADCAST, IPV4, IPV6, UDP, address, ethernet, link_layer, udp

NONCE = bytes([14, 1]) + b"nonce!"
"""An option of neighbor discovery that duplicate address detection has (RFC 7527)."""
ANY = "0.0.0.0"  # noqa: S104
NOWHERE = "00:00:00:00:00:00"

Spoof = tuple[str, Drop, bytes]


def spoofs(guest: FakeGuest, victim: FakeGuest) -> Iterator[Spoof]:
    """Each with its name and the kind that it is counted as."""
    yield from _macs(guest, victim)
    yield from _arp(guest, victim)
    yield from _ipv4(guest, victim)
    yield from _ipv6(guest, victim)
    yield from _neighbors(guest, victim)
    yield from _routers(guest, victim)
    yield from _dhcp(guest, victim)
    yield from _headers(guest, victim)
    yield from _ethertypes(guest, victim)


def _macs(guest: FakeGuest, victim: FakeGuest) -> Iterator[Spoof]:
    for name, frame in (
        ("ipv4", guest.udp(victim.ipv4, b"x", mac=victim.mac)),
        ("ipv6", guest.udp(victim.ipv6, b"x", mac=victim.mac)),
        ("arp", guest.arp(1, guest.ipv4, (NOWHERE, victim.ipv4))),
        ("discover", _discover(guest)),
        ("solicitation", guest.solicit(victim.ipv6)),
        ("unknown-type", ethernet(BROADCAST, guest.mac, 0x88CC, bytes(46))),
    ):
        yield f"mac-of-victim-{name}", Drop.MAC, _from(victim.mac, frame)
        yield f"mac-of-nobody-{name}", Drop.MAC, _from("02:00:00:00:66:66", frame)


def _arp(guest: FakeGuest, victim: FakeGuest) -> Iterator[Spoof]:
    gateway = victim.ipv4.rsplit(".", 1)[0] + ".1"
    asked = (NOWHERE, victim.ipv4)
    for name, frame in (
        ("request-of-victim", guest.arp(1, victim.ipv4, (NOWHERE, gateway))),
        ("reply-of-victim", guest.arp(2, victim.ipv4, (victim.mac, gateway))),
        ("reply-of-gateway", guest.arp(2, gateway, (victim.mac, victim.ipv4))),
        ("gratuitous", guest.arp(1, victim.ipv4, asked)),
        ("hardware-of-victim", guest.arp(2, guest.ipv4, (victim.mac, victim.ipv4), sender=victim.mac)),
        ("probe-for-victim", guest.arp(1, ANY, asked)),
        ("reply-of-nothing", guest.arp(2, ANY, (victim.mac, guest.ipv4))),
    ):
        yield f"arp-{name}", Drop.ARP, frame
    own = (guest.mac, guest.ipv4)
    for name, body in (
        ("inverse", frames.arp(8, own, asked)),
        ("of-infiniband", frames.arp(1, own, asked, hardware=32)),
        ("for-ipv6", frames.arp(1, own, asked, protocol=IPV6)),
        ("with-long-macs", frames.arp(1, own, asked, lengths=(8, 4))),
        ("with-long-addresses", frames.arp(1, own, asked, lengths=(6, 16))),
    ):
        yield f"arp-{name}", Drop.ARP, ethernet(BROADCAST, guest.mac, ARP, body)
    yield "arp-cut-off", Drop.ARP, ethernet(BROADCAST, guest.mac, ARP, b"")[:24]


def _ipv4(guest: FakeGuest, victim: FakeGuest) -> Iterator[Spoof]:
    for name, source in (
        ("victim", victim.ipv4),
        ("gateway", victim.ipv4.rsplit(".", 1)[0] + ".1"),
        ("world", "198.51.100.7"),
        ("all", "255.255.255.255"),
        ("loopback", "127.0.0.1"),
        ("group", "224.0.0.1"),
        ("nothing", ANY),
    ):
        yield f"ipv4-of-{name}", Drop.IPV4, guest.udp(victim.ipv4, b"x", mac=victim.mac, source=source)
    segment = frames.tcp(victim.ipv4, victim.ipv4, (1, 80), frames.SYN, at=(1, 0))
    yield "ipv4-tcp", Drop.IPV4, guest.packet(victim.ipv4, frames.TCP, segment, mac=victim.mac, source=victim.ipv4)
    message = frames.icmp(8, frames.echo(b"x"))
    yield "ipv4-icmp", Drop.IPV4, guest.packet(victim.ipv4, frames.ICMP, message, mac=victim.mac, source="10.9.9.9")
    yield "ipv4-broadcast", Drop.IPV4, guest.udp("255.255.255.255", b"x", mac=BROADCAST, source=victim.ipv4)


def _ipv6(guest: FakeGuest, victim: FakeGuest) -> Iterator[Spoof]:
    prefix = IPv6Network((victim.ipv6, 64), strict=False)
    for name, source in (
        ("victim", victim.ipv6),
        ("victims-link", victim.local),
        ("privacy", str(prefix[0xDEAD_BEEF])),
        ("world", "2001:db8::7"),
        ("mapped", f"::ffff:{victim.ipv4}"),
        ("group", "ff02::1"),
        ("loopback", "::1"),
        ("nothing", "::"),
    ):
        yield f"ipv6-of-{name}", Drop.IPV6, guest.udp(victim.ipv6, b"x", mac=victim.mac, source=source)
    yield "ipv6-answer-of-victim", Drop.IPV6, guest.advertise(guest.ipv6, source=victim.local)
    foreign = link_layer(1, guest.mac)
    yield "ipv6-router-question-of-nothing", Drop.IPV6, guest.icmp6("ff02::2", 133, bytes(4) + foreign, source="::")
    yield "ipv6-answer-of-nothing", Drop.IPV6, guest.advertise(guest.ipv6, source="::")


def _neighbors(guest: FakeGuest, victim: FakeGuest) -> Iterator[Spoof]:
    def own(kind: int) -> bytes:
        return link_layer(kind, guest.mac)

    def foreign(kind: int) -> bytes:
        return link_layer(kind, victim.mac)

    for name, frame in (
        ("answer-for-victim", guest.advertise(victim.ipv6)),
        ("answer-for-victims-link", guest.advertise(victim.local, own(2))),
        ("answer-with-foreign-mac", guest.advertise(guest.ipv6, foreign(2))),
        ("answer-with-source-option", guest.advertise(guest.ipv6, own(1))),
        ("answer-with-two-options", guest.advertise(guest.ipv6, own(2) + foreign(2))),
        ("answer-with-hidden-option", guest.advertise(guest.ipv6, bytes([14, 1]) + own(2)[2:] + foreign(2))),
        ("answer-with-long-option", guest.advertise(guest.ipv6, bytes([2, 2]) + own(2)[2:] + bytes(8))),
        ("question-with-foreign-mac", guest.solicit(victim.ipv6, foreign(1))),
        ("question-with-two-options", guest.solicit(victim.ipv6, own(1) + foreign(1))),
        ("question-with-hidden-option", guest.solicit(victim.ipv6, NONCE + foreign(1))),
        ("router-question-with-foreign-mac", guest.icmp6("ff02::2", 133, bytes(4) + foreign(1))),
        ("router-question-with-two-options", guest.icmp6("ff02::2", 133, bytes(4) + own(1) + foreign(1))),
        ("detection-for-victim", guest.solicit(victim.ipv6, source="::")),
        ("detection-for-victims-link", guest.solicit(victim.local, source="::")),
        ("detection-with-mac", guest.solicit(guest.ipv6, own(1), source="::")),
        ("detection-with-nonce-for-victim", guest.solicit(victim.ipv6, NONCE, source="::")),
    ):
        yield f"neighbor-{name}", Drop.NEIGHBOR, frame


def _routers(guest: FakeGuest, victim: FakeGuest) -> Iterator[Spoof]:
    lifetime = bytes([64, 0, 7, 8]) + bytes(8)
    yield "router-advertisement", Drop.ROUTER, guest.icmp6("ff02::1", 134, lifetime)
    yield "router-advertisement-unicast", Drop.ROUTER, guest.icmp6(victim.local, 134, lifetime, mac=victim.mac)
    redirect = bytes(4) + address(guest.local) + address("2001:db8::7")
    yield "router-redirect", Drop.ROUTER, guest.icmp6(victim.ipv6, 137, redirect, mac=victim.mac)
    yield "router-renumbering", Drop.ROUTER, guest.icmp6("ff02::1", 138, bytes(12))
    yield "router-of-groups", Drop.ROUTER, guest.icmp6("ff02::6a", 151, bytes(4))
    query = frames.icmp(0x11, address("224.9.9.9"))
    group = frames.group_mac("224.0.0.1")
    yield "router-of-groups4", Drop.ROUTER, guest.packet("224.0.0.1", 2, query, mac=group)
    for name, kind, rest in (("redirect4", 5, address(guest.ipv4) + bytes(28)), ("advertisement4", 9, bytes(12))):
        message = frames.icmp(kind, rest)
        yield f"router-{name}", Drop.ROUTER, guest.packet(victim.ipv4, frames.ICMP, message, mac=victim.mac)


def _dhcp(guest: FakeGuest, victim: FakeGuest) -> Iterator[Spoof]:
    everyone = "255.255.255.255"
    yield "dhcp-offer", Drop.DHCP, guest.udp(everyone, b"x", mac=BROADCAST, ports=(67, 68))
    yield "dhcp-offer-unicast", Drop.DHCP, guest.udp(victim.ipv4, b"x", mac=victim.mac, ports=(67, 68))
    yield "dhcp-offer-of-another-port", Drop.DHCP, guest.udp(victim.ipv4, b"x", mac=victim.mac, ports=(6767, 68))
    yield "dhcp-relay", Drop.DHCP, guest.udp(victim.ipv4, b"x", mac=victim.mac, ports=(67, 67))
    yield "dhcp6-advertise", Drop.DHCP, guest.udp(victim.local, b"x", mac=victim.mac, ports=(547, 546))
    yield "dhcp6-of-another-port", Drop.DHCP, guest.udp(victim.local, b"x", mac=victim.mac, ports=(5470, 546))
    for name, to, ports in (
        ("to-a-server", "10.1.1.1", (68, 67)),
        ("of-another-port", everyone, (69, 67)),
        ("to-another-port", everyone, (68, 68)),
    ):
        frame = guest.udp(to, b"x", mac=BROADCAST, ports=ports, source=ANY)
        yield f"discover-{name}", Drop.IPV4, frame
    frame = _discover(guest)
    yield "discover-to-one", Drop.IPV4, frames.mac(victim.mac) + frame[6:]
    fragment = frames.ipv4(ANY, everyone, UDP, udp(ANY, everyone, (68, 67), b"x"), fragment=0x2000)
    yield "discover-in-parts", Drop.IPV4, ethernet(BROADCAST, guest.mac, IPV4, fragment)


def _headers(guest: FakeGuest, victim: FakeGuest) -> Iterator[Spoof]:
    datagram = udp(guest.ipv4, victim.ipv4, (1, 1), b"x" * 8)
    for name, options in (
        ("first-part", {"fragment": 0x2000}),
        ("later-part", {"fragment": 0x0001}),
        ("version", {"first": 0x65}),
        ("short", {"first": 0x44}),
        ("long", {"first": 0x4F}),
    ):
        for of, number in (("", UDP), ("-of-tcp", frames.TCP)):
            packet = frames.ipv4(guest.ipv4, victim.ipv4, number, datagram + bytes(8), **options)
            yield f"ipv4-header-{name}{of}", Drop.HEADER, ethernet(victim.mac, guest.mac, IPV4, packet)
    for of, number in (("", UDP), ("-of-tcp", frames.TCP)):
        lying = frames.ipv4(guest.ipv4, victim.ipv4, number, bytes(500))[:60]
        yield f"ipv4-header-of-more-than-there-is{of}", Drop.HEADER, ethernet(victim.mac, guest.mac, IPV4, lying)
    hidden = frames.icmp6(guest.local, "ff02::1", 134, bytes(12))
    for name, kind, head in (
        ("hop-by-hop", 0, bytes([58, 0, 5, 2, 0, 0, 1, 0])),
        ("routing", 43, bytes([58, 0, 0, 0, 0, 0, 0, 0])),
        ("fragment", 44, bytes([58, 0, 0, 0, 0, 0, 0, 1])),
        ("first-fragment", 44, bytes([58, 0, 0, 1, 0, 0, 0, 1])),
        ("authentication", 51, bytes([58, 1, 0, 0]) + bytes(8)),
        ("options", 60, bytes([58, 0, 1, 4, 0, 0, 0, 0])),
        ("nothing", 59, b""),
        ("mobility", 135, bytes([58, 0, 0, 0, 0, 0, 0, 0])),
    ):
        packet = frames.ipv6(guest.local, "ff02::1", kind, head + hidden)
        yield f"ipv6-header-{name}", Drop.HEADER, ethernet("33:33:00:00:00:01", guest.mac, IPV6, packet)
    datagram = udp(guest.ipv6, victim.ipv6, (1, 1), b"x" * 8)
    for name, changes in (("version", {"first": 0x40}), ("longer", {"length": 500})):
        for of, number in (("", UDP), ("-of-tcp", frames.TCP)):
            packet = frames.ipv6(guest.ipv6, victim.ipv6, number, datagram + bytes(8), **changes)
            yield f"ipv6-header-{name}{of}", Drop.HEADER, ethernet(victim.mac, guest.mac, IPV6, packet)


def _ethertypes(guest: FakeGuest, victim: FakeGuest) -> Iterator[Spoof]:
    fine = guest.udp(victim.ipv4, b"x", mac=victim.mac)
    for name, frame in (
        ("vlan", frames.vlan(fine, 5)),
        ("priority", frames.vlan(fine, 0xE000)),
        ("qinq", frames.vlan(frames.vlan(fine, 5), 6, 0x88A8)),
        ("two-tags", frames.vlan(frames.vlan(fine, 5), 6)),
        ("vlan-arp", frames.vlan(guest.arp(1, guest.ipv4, (NOWHERE, victim.ipv4)), 5)),
        ("vlan-ipv6", frames.vlan(guest.udp(victim.ipv6, b"x", mac=victim.mac), 5)),
        ("bpdu", ethernet("01:80:c2:00:00:00", guest.mac, 38, bytes([0x42, 0x42, 3]) + bytes(35))),
        ("llc", ethernet(victim.mac, guest.mac, 46, bytes([0xAA, 0xAA, 3]) + bytes(43))),
    ):
        yield f"type-{name}", Drop.ETHERTYPE, frame
    for name, kind in (
        ("rarp", 0x8035),
        ("lldp", 0x88CC),
        ("eapol", 0x888E),
        ("pppoe-discovery", 0x8863),
        ("pppoe", 0x8864),
        ("mpls", 0x8847),
        ("appletalk", 0x809B),
        ("ipx", 0x8137),
        ("wake-on-lan", 0x0842),
        ("batman", 0x4305),
        ("loopback", 0x9000),
        ("macsec", 0x88E5),
        ("none", 0xFFFF),
    ):
        yield f"type-{name}", Drop.ETHERTYPE, ethernet(victim.mac, guest.mac, kind, bytes(46))


def _discover(guest: FakeGuest) -> bytes:
    return guest.udp("255.255.255.255", b"discover", mac=BROADCAST, ports=(68, 67), source=ANY)


def _from(mac: str, frame: bytes) -> bytes:
    return frame[:6] + frames.mac(mac) + frame[12:]
