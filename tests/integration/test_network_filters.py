"""Somebody else on the host who drops what networks send: `doctor` tells it, and what it says to type helps.

The host is a network namespace with our rules, its guests are descriptors of taps.
"""

from __future__ import annotations

import shlex
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from aetherscale.actors.network import needs
from aetherscale.actors.network.filters import CHECK
from aetherscale.kernel.findings import Finding
from aetherscale.settings import Settings
from tests.support import firewalled
from tests.support.firewalled import Firewalled
from tests.support.forwarded import UPLINK as HOST
from tests.support.forwarded import forward, forwarded, hears

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(firewalled.missing() is not None, reason=str(firewalled.missing())),
]
WORLD = {4: "192.0.2.9", 6: "2001:db8::9"}
UPLINK = {4: "192.0.2.1", 6: "2001:db8::1"}
DROPS = "table {} mine {{\n chain f {{ type filter hook forward priority 0; policy drop; \n }}\n}}"


@pytest.fixture
def host() -> Iterator[Firewalled]:
    with firewalled.firewalled() as made:
        yield made


def told(tmp_path: Path) -> Finding:
    """The only finding about others that filter."""
    (found,) = [each for each in needs.findings(Settings(tmp_path, "host1")) if each.check == CHECK]
    return found


def type_it(host: Firewalled, remedy: str) -> None:
    """What `nft` would be given by whoever types a remedy."""
    for command in remedy.removeprefix("after each boot: ").split("; "):
        program, text = shlex.split(command)
        assert program == "nft"
        host.nft.run(text)


@pytest.mark.parametrize("version", [4, 6])
def test_guests_of_a_nat_network_get_out_and_answers_in(host: Firewalled, tmp_path: Path, version: int) -> None:
    lab, world = host.network(1, "nat"), host.outside()
    guest = host.guest(lab, 2)
    host.acquaint(lab.bridge, guest)
    assert told(tmp_path).status == "ok", "our own rules are not those of somebody else"

    host.nft.run(DROPS.format("inet"))
    guest.send(guest.udp(WORLD[version], b"dropped", mac=host.mac(lab.bridge), ports=(4000, 53)))
    warning = told(tmp_path)
    assert warning.status == "warning"
    type_it(host, warning.remedy)
    guest.send(guest.udp(WORLD[version], b"a question", mac=host.mac(lab.bridge), ports=(4000, 53)))
    assert not any(b"dropped" in frame for frame in world.until(b"a question"))
    world.send(world.udp(UPLINK[version], b"an answer", mac=host.mac("uplink"), ports=(53, 4000)))
    guest.until(b"an answer")
    assert told(tmp_path).status == "ok"


def test_guests_of_one_network_reach_each_other(host: Firewalled, tmp_path: Path) -> None:
    lab = host.network(1)
    web, db = host.guest(lab, 2), host.guest(lab, 3)
    host.nft.run(DROPS.format("bridge"))
    web.send(web.udp(db.ipv6, b"dropped", mac=db.mac))
    warning = told(tmp_path)
    assert warning.status == "warning"
    type_it(host, warning.remedy)
    web.send(web.udp(db.ipv6, b"passes", mac=db.mac))
    assert not any(b"dropped" in frame for frame in db.until(b"passes"))
    assert told(tmp_path).status == "ok"


@pytest.mark.parametrize("version", [4, 6])
def test_the_host_reaches_a_guest_whose_groups_let_it_in(host: Firewalled, tmp_path: Path, version: int) -> None:
    lab = host.network(1, "nat")
    guest = host.guest(lab, 2, groups=(host.group("1111111111111111", "in:udp:4000"),))
    address = {4: guest.ipv4, 6: guest.ipv6}[version]
    host.neighbor(lab.bridge, address, guest.mac)

    def send(payload: bytes) -> None:
        family = {4: socket.AF_INET, 6: socket.AF_INET6}[version]
        # A sender whose packet is dropped is told so by the kernel.
        with socket.socket(family, socket.SOCK_DGRAM) as sender, suppress(PermissionError):
            sender.sendto(payload, (address, 4000))

    host.nft.run("table inet mine {\n chain o { type filter hook output priority 0; policy drop; \n }\n}")
    send(b"dropped")
    warning = told(tmp_path)
    assert warning.status == "warning"
    assert "what the host itself sends" in warning.found
    type_it(host, warning.remedy)
    send(b"passes")
    assert not any(b"dropped" in frame for frame in guest.until(b"passes"))
    assert told(tmp_path).status == "ok"


@pytest.mark.parametrize("version", [4, 6])
def test_the_host_is_led_to_a_guest_by_a_forward_of_its_own(tmp_path: Path, version: int) -> None:
    with forwarded() as made:
        made.bear(made.host.group("1111111111111111", "in:udp:4000"))
        made.lead(forward("udp", 8080, 4000))
        server = made.listens(version, "udp", 4000, address={4: "0.0.0.0", 6: "::"}[version])  # noqa: S104
        chain = 'chain o { type filter hook output priority 0; policy drop; oifname "aeb*" accept; }'
        made.host.nft.run(f"table inet mine {{\n {chain}\n}}")
        made.begins("host", version, "udp", HOST[version], 8080, b"dropped")
        warning = told(tmp_path)
        assert "what the host itself sends to its ports that lead to VMs" in warning.found
        type_it(made.host, warning.remedy)
        made.begins("host", version, "udp", HOST[version], 8080, b"passes")
        assert server.recv(2048) == b"passes"
        assert hears(server) is None
        assert told(tmp_path).status == "ok"
