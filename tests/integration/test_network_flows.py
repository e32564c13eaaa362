"""What two ports of a bridge show to conntrack between themselves is no answer: to the host, or to a nat network.

They are of a bridged network, where a port may have any address, and see to it that conntrack knows a flow that neither
the host nor the guest of the nat network has begun. One of them might as well be a machine of the LAN.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import pytest

from aetherscale.actors.network.nft.nftables import NftError
from tests.support import firewalled
from tests.support.fake_guest import FakeGuest
from tests.support.firewalled import Firewalled, heard

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(firewalled.missing() is not None, reason=str(firewalled.missing())),
]
Way = Literal["asked", "answered"]
HOST = {4: "10.64.1.1", 6: "fd00:1::1"}
WORLD = {4: "192.0.2.9", 6: "2001:db8::9"}
ANYONE = ("10.64.0.0/16", "192.0.2.0/24", "fd00::/16", "2001:db8::/64")
TRACKING = "table bridge others {\nchain f {\ntype filter hook forward priority 0\nct state invalid counter\n}\n}\n"
"""A firewall of others that has conntrack track what passes bridges, as br_netfilter does."""


@pytest.fixture(params=["beside-docker", "beside-conntrack-of-bridges"])
def host(request: pytest.FixtureRequest) -> Iterator[Firewalled]:
    """Where conntrack sees what passes bridges, in each of the two ways that there are.

    By the first it did open the host, and nat networks, once; by the second nothing was seen to.
    """
    with firewalled.firewalled() as made:
        if request.param == "beside-docker":
            if not Path("/proc/sys/net/bridge").exists():
                pytest.skip("needs br_netfilter")
            made.call_iptables("1")
        else:
            try:
                made.nft.run(TRACKING)
            except NftError as error:
                pytest.skip(f"this kernel has no conntrack for bridges: {error.words}")
        yield made


def to(guest: FakeGuest, version: int) -> str:
    return guest.ipv4 if version == 4 else guest.ipv6


def converse(one: FakeGuest, other: FakeGuest, ends: Sequence[tuple[str, int]]) -> None:
    """Two ports of a bridge have a flow between the ends, address and port each, and see all of it."""
    (near, near_port), (far, far_port) = ends
    for _ in range(2):
        one.send(one.udp(far, b"a question", mac=other.mac, ports=(near_port, far_port), source=near))
        other.until(b"a question")
        other.send(other.udp(near, b"its answer", mac=one.mac, ports=(far_port, near_port), source=far))
        one.until(b"its answer")


@pytest.mark.parametrize("way", ["asked", "answered"])
@pytest.mark.parametrize("version", [4, 6])
def test_the_host_has_not_begun_a_flow_that_another_had_in_its_name(host: Firewalled, version: int, way: Way) -> None:
    lan = host.network(1, "bridged")
    guest, friend = host.guest(lan, 2, allowed=ANYONE), host.guest(lan, 3, allowed=ANYONE)
    host.acquaint(lan.bridge, guest, friend)
    listener = host.listening(HOST[version], 53)
    ends = ((to(guest, version), 4000), (HOST[version], 53))
    if way == "asked":
        converse(guest, friend, ends)
    else:
        converse(friend, guest, ends[::-1])
    guest.send(guest.udp(HOST[version], b"to the host", mac=host.mac(lan.bridge), ports=(4000, 53)))
    assert heard(listener) is None
    # What the host has begun goes on.
    listener.sendto(b"a question", (to(guest, version), 4001))
    guest.send(guest.udp(HOST[version], b"an answer", mac=host.mac(lan.bridge), ports=(4001, 53)))
    assert heard(listener) == b"an answer"


@pytest.mark.parametrize("way", ["asked", "answered"])
@pytest.mark.parametrize("version", [4, 6])
def test_a_guest_has_not_asked_the_world_what_another_did_in_its_name(host: Firewalled, version: int, way: Way) -> None:
    lan, lab, world = host.network(1, "bridged"), host.network(2, "nat"), host.outside()
    one, other, guest = host.guest(lan, 2, allowed=ANYONE), host.guest(lan, 3, allowed=ANYONE), host.guest(lab, 2)
    host.acquaint(lab.bridge, guest)
    ends = ((to(guest, version), 4000), (WORLD[version], 53))
    converse(one, other, ends if way == "asked" else ends[::-1])
    world.send(world.udp(to(guest, version), b"uninvited", mac=host.mac("uplink"), ports=(53, 4000)))
    assert not guest.has_seen(b"uninvited")


@pytest.mark.parametrize("version", [4, 6])
def test_a_flow_that_was_in_the_bridge_before_does_not_leave_in_the_name_of_its_guest(
    host: Firewalled, version: int
) -> None:
    """Its beginning was sent to another port: conntrack has confirmed it there, without a translation."""
    lab, world = host.network(1, "nat"), host.outside()
    guest, friend = host.guest(lab, 2), host.guest(lab, 3)
    host.acquaint(lab.bridge, guest, friend)
    guest.send(guest.udp(WORLD[version], b"by the bridge", mac=friend.mac, ports=(4000, 53)))
    friend.until(b"by the bridge")
    guest.send(guest.udp(WORLD[version], b"by the host", mac=host.mac(lab.bridge), ports=(4000, 53)))
    guest.send(guest.udp(WORLD[version], b"another flow", mac=host.mac(lab.bridge), ports=(4001, 53)))
    assert not any(b"by the host" in frame for frame in world.until(b"another flow"))
