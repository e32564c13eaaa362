"""What no port may send: each kind dropped, counted once, and seen by nobody; and what looks like it and may pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count

import pytest

from aetherscale.actors.network.model.chains import Drop
from tests.support import firewalled, frames
from tests.support.fake_guest import FakeGuest
from tests.support.firewalled import Firewalled
from tests.support.frames import BROADCAST, link_layer
from tests.support.spoofs import ANY, NONCE, NOWHERE, Spoof, spoofs

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(firewalled.missing() is not None, reason=str(firewalled.missing())),
]

Network = tuple[Firewalled, FakeGuest, FakeGuest, FakeGuest]
MADE_UP = FakeGuest("aep000000000102", "52:54:00:00:01:02", "10.64.1.2", "fd00:1::2", -1)
VICTIM = FakeGuest("aep000000000103", "52:54:00:00:01:03", "10.64.1.3", "fd00:1::3", -1)
SEQUENCE = count()
SPOOFS = list(spoofs(MADE_UP, VICTIM))
LEGAL = {
    "udp4": MADE_UP.udp(VICTIM.ipv4, b"x", mac=VICTIM.mac),
    "udp6": MADE_UP.udp(VICTIM.ipv6, b"x", mac=VICTIM.mac),
    "udp6-of-the-link": MADE_UP.udp(VICTIM.local, b"x", mac=VICTIM.mac),
    "tcp4": MADE_UP.tcp(VICTIM.ipv4, frames.SYN, mac=VICTIM.mac, ports=(9, 80), at=(1, 0)),
    "tcp6": MADE_UP.tcp(VICTIM.ipv6, frames.SYN, mac=VICTIM.mac, ports=(9, 80), at=(1, 0)),
    "ping4": MADE_UP.ping(VICTIM.ipv4, b"x", mac=VICTIM.mac),
    "ping6": MADE_UP.ping(VICTIM.ipv6, b"x", mac=VICTIM.mac),
    "esp4": MADE_UP.packet(VICTIM.ipv4, 50, bytes(24), mac=VICTIM.mac),
    "esp6": MADE_UP.packet(VICTIM.ipv6, 50, bytes(24), mac=VICTIM.mac),
    "broadcast": MADE_UP.udp("10.64.1.255", b"x", mac=BROADCAST),
    "group4": MADE_UP.udp("224.0.0.251", b"x", mac=frames.group_mac("224.0.0.251"), ports=(5353, 5353)),
    "group6": MADE_UP.udp("ff02::fb", b"x", mac=frames.group_mac("ff02::fb"), ports=(5353, 5353)),
    "arp-request": MADE_UP.arp(1, MADE_UP.ipv4, (NOWHERE, VICTIM.ipv4)),
    "arp-reply": MADE_UP.arp(2, MADE_UP.ipv4, (VICTIM.mac, VICTIM.ipv4)),
    "arp-gratuitous": MADE_UP.arp(1, MADE_UP.ipv4, (NOWHERE, MADE_UP.ipv4)),
    "arp-probe": MADE_UP.arp(1, ANY, (NOWHERE, MADE_UP.ipv4)),
    "question": MADE_UP.solicit(VICTIM.ipv6, link_layer(1, MADE_UP.mac)),
    "question-without-mac": MADE_UP.solicit(VICTIM.ipv6),
    "answer": MADE_UP.advertise(MADE_UP.ipv6, link_layer(2, MADE_UP.mac)),
    "answer-without-mac": MADE_UP.advertise(MADE_UP.local),
    "detection": MADE_UP.solicit(MADE_UP.ipv6, source="::"),
    "detection-of-the-link": MADE_UP.solicit(MADE_UP.local, source="::"),
    "detection-with-nonce": MADE_UP.solicit(MADE_UP.ipv6, NONCE, source="::"),
    "router-question": MADE_UP.icmp6("ff02::2", 133, bytes(4) + link_layer(1, MADE_UP.mac)),
    "router-question-without-mac": MADE_UP.icmp6("ff02::2", 133, bytes(4)),
    "router-question-of-nothing": MADE_UP.icmp6("ff02::2", 133, bytes(4), source="::"),
    "dhcp-discover": MADE_UP.udp("255.255.255.255", b"x", mac=BROADCAST, ports=(68, 67), source=ANY),
    "dhcp-renew": MADE_UP.udp(VICTIM.ipv4, b"x", mac=VICTIM.mac, ports=(68, 67)),
    "dhcp6-solicit": MADE_UP.udp("ff02::1:2", b"x", mac=frames.group_mac("ff02::1:2"), ports=(546, 547)),
    "member4": MADE_UP.packet("224.9.9.9", 2, frames.icmp(0x16, bytes([224, 9, 9, 9])), mac="01:00:5e:09:09:09"),
    "unreachable": MADE_UP.packet(VICTIM.ipv4, frames.ICMP, frames.icmp(3, bytes(32), 4), mac=VICTIM.mac),
    "too-big": MADE_UP.icmp6(VICTIM.ipv6, 2, bytes(44), mac=VICTIM.mac),
}


@pytest.fixture(scope="module")
def shared() -> Iterator[Network]:
    """A network with a guest, its victim, and one that listens."""
    with ExitStack() as stack:
        host = stack.enter_context(firewalled.firewalled())
        lab = host.network(1)
        guests = [host.guest(lab, number) for number in (2, 3, 4)]
        assert (guests[0].mac, guests[1].ipv6, guests[0].tap) == (MADE_UP.mac, VICTIM.ipv6, MADE_UP.tap)
        yield host, guests[0], guests[1], guests[2]


@pytest.fixture
def network(shared: Network) -> Network:
    """The same, and nothing is left of what others sent."""
    for guest in shared[0].guests:
        guest.received()
    return shared


@pytest.fixture
def marker() -> bytes:
    """Bytes that no other frame of this module has."""
    return f"marker {next(SEQUENCE):6}".encode()


@pytest.mark.parametrize("spoof", SPOOFS, ids=[name for name, _, _ in SPOOFS])
def test_a_spoofed_frame_is_dropped_and_counted_once(network: Network, spoof: Spoof, marker: bytes) -> None:
    host, guest, victim, witness = network
    _, kind, frame = spoof
    before = host.counters.of_port(guest.tap)
    guest.send(frame, guest.udp("10.64.1.255", marker, mac=BROADCAST))
    for listener in (victim, witness):
        assert len(listener.until(marker)) == 1
    assert host.counters.of_port(guest.tap) == {**before, kind: before.get(kind, 0) + 1}


def test_there_are_spoofs_of_every_kind() -> None:
    assert {kind for _, kind, _ in SPOOFS} == set(Drop) - {Drop.UNINVITED, Drop.FORBIDDEN}
    assert len({frame for _, _, frame in SPOOFS}) == len(SPOOFS) > 90


@pytest.mark.parametrize("name", LEGAL)
def test_what_a_guest_may_send_arrives_as_it_was_sent(network: Network, name: str, marker: bytes) -> None:
    host, guest, victim, _ = network
    before = host.counters.of_port(guest.tap)
    guest.send(LEGAL[name], guest.udp("10.64.1.255", marker, mac=BROADCAST))
    assert victim.until(marker)[:-1] == [LEGAL[name]]
    assert host.counters.of_port(guest.tap) == before


def test_a_frame_for_another_is_not_flooded_to_a_port(network: Network, marker: bytes) -> None:
    _, guest, victim, witness = network
    guest.send(guest.udp("10.64.1.99", b"for somebody", mac="52:54:00:00:01:99"), _to_all(guest, marker))
    for listener in (victim, witness):
        assert len(listener.until(marker)) == 1


def test_a_guest_that_poisons_what_the_bridge_learns_reads_no_frames_of_another(
    network: Network, marker: bytes
) -> None:
    # Frames to 01:80:c2:00:00:0e are learned from before any hook of netfilter sees them.
    _, thief, victim, sender = network
    poison = frames.ethernet("01:80:c2:00:00:0e", victim.mac, 0x88CC, bytes(46))
    victim.send(victim.udp(sender.ipv4, b"here", mac=sender.mac))
    thief.send(poison)
    sender.send(sender.udp(victim.ipv4, b"secret", mac=victim.mac), _to_all(sender, marker))
    assert [frame for frame in thief.until(marker) if b"secret" in frame] == []
    # What the bridge learns is mended by the victim's next frame.
    victim.send(victim.udp(sender.ipv4, b"here", mac=sender.mac))
    sender.send(sender.udp(victim.ipv4, b"heard", mac=victim.mac))
    victim.until(b"heard")


def _to_all(guest: FakeGuest, marker: bytes) -> bytes:
    return guest.udp("10.64.1.255", marker, mac=BROADCAST)
