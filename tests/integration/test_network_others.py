"""Docker, ufw, firewalld and libvirt beside us: what they drop of ours is told, and what is to be typed helps.

The host is a network namespace with our rules and theirs, its guests are descriptors of taps.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from aetherscale.actors.network import needs
from aetherscale.actors.network.model import flows, ruleset
from aetherscale.actors.network.model.ruled import ForwardRules
from aetherscale.actors.network.model.views import Obstacle
from tests.support import firewalled, others
from tests.support.fake_guest import FakeGuest
from tests.support.firewalled import Firewalled
from tests.support.others import DOCKER, FIREWALLD, LIBVIRT, UFW, type_it

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(firewalled.missing() is not None, reason=str(firewalled.missing())),
]
GROUP = "a" * 16
BOTH = ("ip", "ip6")
PROGRAMS = {
    "docker": "".join(DOCKER.format(family=family) for family in BOTH),
    "ufw": "".join(UFW.format(family=family) for family in BOTH),
    "firewalld": FIREWALLD,
}


@pytest.fixture
def host() -> Iterator[Firewalled]:
    with firewalled.firewalled() as made:
        yield made


def obstacles(way: str = "") -> list[Obstacle]:
    """Those of others; whether the host forwards is not asked here."""
    return [each for each in needs.obstacles() if way in (*each.ways, "") and "does not forward" not in each.what]


def gets_out(host: Firewalled, guest: FakeGuest, world: FakeGuest, bridge: str) -> bool:
    """Whether what a guest begins arrives in the world."""
    world.received()
    guest.send(guest.udp(world.ipv4, b"to the world", mac=host.mac(bridge), ports=(4000, 53)))
    return world.has_seen(b"to the world")


def gets_in(host: Firewalled, guest: FakeGuest, world: FakeGuest, port: int) -> bool:
    """Whether what the world begins arrives at a guest, by a forward."""
    guest.received()
    world.send(world.udp("192.0.2.1", b"to the guest", mac=host.mac("uplink"), ports=(4000, port)))
    return guest.has_seen(b"to the guest")


@pytest.mark.parametrize("program", PROGRAMS)
def test_what_they_drop_is_told_until_what_it_says_was_typed(host: Firewalled, program: str) -> None:
    group = host.group(GROUP, "in:udp:53")
    lab, world = host.network(1, "nat"), host.outside()
    guest = host.guest(lab, 2, groups=(group,))
    forward = ForwardRules("udp", None, 5353, 53)
    host.ports[guest.tap] = replace(host.ports[guest.tap], forwards=(forward,))
    host.apply()
    host.acquaint(lab.bridge, guest)
    assert obstacles() == []
    assert gets_out(host, guest, world, lab.bridge)
    assert gets_in(host, guest, world, 5353)

    host.nft.run(PROGRAMS[program])
    (told, *_) = obstacles("out")
    assert told.what.lower().startswith(f"{program}'s chain")
    assert not gets_out(host, guest, world, lab.bridge)
    for each in obstacles():
        type_it(host.nft, each.remedy)
    assert obstacles() == []
    assert gets_out(host, guest, world, lab.bridge)
    host.replace()
    assert gets_in(host, guest, world, 5353)


def test_of_docker_a_rule_for_answers_lets_nothing_begin_outside(host: Firewalled) -> None:
    host.nft.run(PROGRAMS["docker"])
    for family in BOTH:
        host.nft.run(f'insert rule {family} filter DOCKER-USER iifname "aeb*" counter accept')
        host.nft.run(f'insert rule {family} filter DOCKER-USER oifname "aeb*" ct state established counter accept')
    assert obstacles("out") == []
    assert [each.families for each in obstacles("in")] == [(4,), (6,)]
    assert "drops what is begun outside of networks of kind nat" in obstacles("in")[0].what


def test_libvirt_drops_what_is_of_its_own_bridge_alone(host: Firewalled) -> None:
    host.nft.run(LIBVIRT)
    lab, world = host.network(1, "nat"), host.outside()
    guest = host.guest(lab, 2)
    host.acquaint(lab.bridge, guest)
    assert obstacles() == []
    assert gets_out(host, guest, world, lab.bridge)


def test_none_of_their_rules_is_touched_by_ours(host: Firewalled) -> None:
    host.nft.run(PROGRAMS["docker"] + others.FIREWALLD + LIBVIRT)
    theirs = [host.nft.run(f"list table {each}") for each in ("ip filter", "ip6 filter", "inet firewalld")]
    host.network(1, "nat")
    host.replace()
    assert [host.nft.run(f"list table {each}") for each in ("ip filter", "ip6 filter", "inet firewalld")] == theirs


@pytest.mark.parametrize(("setting", "version"), [("net/ipv4/ip_forward", 4), ("net/ipv6/conf/all/forwarding", 6)])
def test_a_host_that_does_not_forward_is_told_until_it_does(host: Firewalled, setting: str, version: int) -> None:
    path = Path("/proc/sys", setting)
    path.write_text("0")
    (told,) = (each for each in needs.obstacles() if each.families == (version,))
    assert told.what == f"this host does not forward IPv{version} ({setting.replace('/', '.')} = 0)"
    assert {"out", "in", "led"} == set(told.ways)
    assert f"{setting.replace('/', '.')}=1" in told.remedy
    path.write_text("1")
    assert not any(each.families == (version,) for each in needs.obstacles())


def test_nothing_of_the_rules_is_a_name_that_the_host_may_not_know(host: Firewalled) -> None:
    """A small Debian has no /etc/protocols."""
    lab = host.network(1, "nat")
    group = host.group(GROUP, "in:icmp", "out:icmp:echo-request", "in:tcp:80", "out:udp", "in:any:from=192.0.2.0/24")
    guest = host.guest(lab, 2, groups=(group,))
    leads = tuple(ForwardRules(each, None, 5353, 53) for each in ("tcp", "udp"))
    host.ports[guest.tap] = replace(host.ports[guest.tap], forwards=leads)
    rules = flows.table() + ruleset.replace_all(host.ruleset())
    # It is there to be hidden on most machines, and read by what was started before.
    hide = "if [ -e /etc/protocols ]; then mount --bind /dev/null /etc/protocols; fi; exec nft --check --file -"
    said = subprocess.run(
        ["unshare", "--mount", "sh", "-ec", hide], input=rules, capture_output=True, text=True, check=False
    )
    assert (said.returncode, said.stderr) == (0, "")
