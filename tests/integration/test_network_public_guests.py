"""A real guest on a public bridge, with a machine beside it that gives out addresses, through a whole node."""

from __future__ import annotations

import asyncio
import re
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.test_network_guests import host, networked, typed, until
from tests.support import frames
from tests.support.cli import good, told
from tests.support.guest_namespaces import Guest
from tests.support.network_namespaces import missing
from tests.support.node import RunningNode

__all__ = ["networked"]

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(missing()), reason=missing()),
    pytest.mark.skipif(shutil.which("dnsmasq") is None, reason="dnsmasq is not installed"),
]
GATEWAY = ("192.0.2.254", "2001:db8:5::fe")


@pytest.fixture
async def gateway(networked: RunningNode, tmp_path: Path) -> AsyncIterator[Guest]:
    """A machine on the bridge br0 that gives out 192.0.2.100 to .110 and advertises 2001:db8:5::/64."""
    await host("ip", "link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
    await host("ip", "link", "set", "br0", "up")
    made = Guest("br0", "cable7", "52:54:00:00:01:07")
    made.up()
    made.sh("ip", "addr", "add", f"{GATEWAY[0]}/24", "dev", "eth0")
    made.sh("ip", "-6", "addr", "add", f"{GATEWAY[1]}/64", "dev", "eth0", "nodad")
    options = (
        "--keep-in-foreground --port=0 --conf-file=/dev/null --interface=eth0 --bind-interfaces --no-ping --user=root "
        "--dhcp-range=192.0.2.100,192.0.2.110,1h --dhcp-range=2001:db8:5::,ra-only --enable-ra "
        f"--dhcp-leasefile={tmp_path}/leases --pid-file"
    )
    server = made.do(lambda: subprocess.Popen(["dnsmasq", *options.split()], stderr=subprocess.DEVNULL))
    yield made
    server.terminate()
    await asyncio.to_thread(server.wait)
    made.close()


def answers(gateway: Guest, address: str) -> bool:
    """Whether an address answers a ping of the machine beside."""
    six = ":" in address
    question = frames.icmp(128 if six else 8, frames.echo(b"are you there"))

    def ping() -> bool:
        family, protocol = (socket.AF_INET6, socket.IPPROTO_ICMPV6) if six else (socket.AF_INET, socket.IPPROTO_ICMP)
        with socket.socket(family, socket.SOCK_RAW, protocol) as sock:
            sock.settimeout(3)
            sock.sendto(question, (address, 0))
            try:
                while b"are you there" not in sock.recv(2048):
                    pass
            except TimeoutError:
                return False
            return True

    return gateway.do(ping)


async def test_a_guest_has_an_address_of_the_network_takes_what_is_allowed_and_no_other_address(
    networked: RunningNode, gateway: Guest
) -> None:
    node = networked
    await good(node, "vm", "create", "web", "--image", "tiny", "--memory", "128M", "--public-ip", "--timeout", "5m")
    said = await until(node, "web", "ip address show dev eth0", r"192\.0\.2\.1[01]\d/24")
    leased = re.search(r"192\.0\.2\.1[01]\d", said)
    assert leased is not None
    said = await until(node, "web", "ip address show dev eth0", r"2001:db8:5::?[0-9a-f:]+/64")
    formed = re.search(r"2001:db8:5:[0-9a-f:]+", said)
    assert formed is not None
    (port,) = (shown := await told(node, "vm", "show", "web"))["ports"]
    assert (port["network"], port["addresses"], shown["leased"]) == ("public", [], {port["tap"]: [leased[0]]})
    assert f"leased public  {leased[0]}" in re.sub(" {3,}", "  ", await good(node, "vm", "show", "web"))
    for address in GATEWAY:
        await until(node, "web", f"ping -c 1 -W 3 {address}", "1 packets received")
    own = (leased[0], formed[0])
    assert [answers(gateway, address) for address in own] == [False, False]
    await good(node, "firewall", "group", "create", "pinged", "--allow", "in:icmp:echo-request")
    await good(node, "firewall", "attach", "web", "pinged")
    assert [answers(gateway, address) for address in own] == [True, True]
    await typed(node, "web", "ip address add 192.0.2.9/24 dev eth0")
    said = await typed(node, "web", f"ping -c 1 -W 2 -I 192.0.2.9 {GATEWAY[0]}")
    assert "0 packets received" in said
    await node.stop()
    await node.start()
    await until(node, "web", f"ping -c 1 -W 3 {GATEWAY[0]}", "1 packets received")
    assert (await told(node, "vm", "show", "web"))["leased"] == shown["leased"]
    await good(node, "vm", "delete", "web", "--kill")
    await good(node, "network", "delete", "public")


async def test_where_the_host_has_no_bridge_the_error_says_what_makes_it(networked: RunningNode) -> None:
    status, _, err = await networked.cli("vm", "create", "web", "--image", "tiny", "--public-ip")
    assert (status, "the host has no bridge br0" in err) == (1, True), err
    assert "sudo aetherscale host setup bridge --bridge br0 --device eth0" in " ".join(err.split())
    assert (await told(networked, "network", "list"), await told(networked, "vm", "list")) == ([], [])
