"""Real guests in real networks, through a whole node in a network namespace: addresses, names, restarts, strangers."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from aetherscale.actors.network.dnsmasq.resolvers import Resolvers
from tests.integration.conftest import MakeNode
from tests.support.cli import told
from tests.support.network_namespaces import missing, network_namespace
from tests.support.node import PATIENCE_S, ROOT, RunningNode

_NUMBERS = itertools.count(1)

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(missing()), reason=missing()),
    pytest.mark.skipif(shutil.which("dnsmasq") is None, reason="dnsmasq is not installed"),
]


@pytest.fixture
async def networked(make_node: MakeNode) -> AsyncIterator[RunningNode]:
    """A node with the image `tiny`, in a namespace of its own, whose host forwards."""
    node = make_node()
    await node.start()
    built = await node.task("images", "build-image", recipe="tiny")
    assert built["type"] == "result", built
    await node.stop()
    with network_namespace():
        await host("ip", "link", "set", "lo", "up")
        for setting in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            Path("/proc/sys/net", setting).write_text("1")
        await node.start()
        yield node
        await node.close()
        left = Resolvers(node.state_dir, node.name, lambda network_id, words: None)
        await left.start()
        await left.reconcile(())
        await left.close()


async def host(*words: str) -> str:
    """Have a program of the host do something in the namespace."""
    done = await asyncio.to_thread(subprocess.run, words, check=True, capture_output=True, text=True)
    return done.stdout


async def network(node: RunningNode, name: str, **options: Any) -> Any:
    made = await node.task("network", "create-network", name=name, **options)
    assert made["type"] == "result", made
    return made["network"]


async def guest(node: RunningNode, name: str, *networks: str) -> Any:
    made = await node.task(
        "compute", "create-vm", name=name, image="tiny", memory_mib=128, virtual_network=list(networks)
    )
    assert made["type"] == "result", made
    return made["vm"]


async def typed(node: RunningNode, name: str, line: str) -> str:
    """What a guest answers to a line of its shell, from its serial log: some answers take their time in silence."""
    view = await node.vm(name)
    log: Path = node.state_dir / "vms" / view["id"] / "console.log"
    begun, mark = log.stat().st_size, f"end-{next(_NUMBERS)}"
    status, _, err = await node.cli("vm", "console", name, stdin=f"{line}; echo e''{mark[1:]}\n")
    assert status == 0, err
    said: str = ""
    async with asyncio.timeout(PATIENCE_S):
        while mark not in (said := log.read_bytes()[begun:].decode(errors="replace")):  # noqa: ASYNC110 - of QEMU
            await asyncio.sleep(0.05)
    return said


async def until(node: RunningNode, name: str, line: str, wanted: str) -> str:
    """Type a line until the guest's answer has this in it."""
    async with asyncio.timeout(PATIENCE_S):
        while not re.search(wanted, out := await typed(node, name, line)):  # noqa: ASYNC110 - of a guest
            await asyncio.sleep(0.05)
    return out


async def is_called(node: RunningNode, name: str) -> None:
    """Wait until a guest is called as its VM, by itself and in its prompt."""
    await until(node, name, "hostname\ntrue", rf"\n{name}\r\n{name}:~# ")


async def downs(node: RunningNode) -> list[str]:
    """Why networks were down, in the order of the log."""
    _, out, _ = await node.cli("events", "list", "--type", "NetworkDown", "--json")
    return re.findall(r'"what": ?"([^"]*)"', out)


async def test_guests_of_one_network_reach_each_other_by_name_and_nobody_else(networked: RunningNode) -> None:
    await network(networked, "lab", ipv4_prefix="10.9.8.0/24")
    await network(networked, "other", ipv4_prefix="10.9.9.0/24")
    web, _, far = await asyncio.gather(
        guest(networked, "web", "lab"), guest(networked, "db", "lab"), guest(networked, "far", "other")
    )
    lease, slaac = (each["ip"] for each in web["ports"][0]["addresses"])
    shown = await until(networked, "web", "ip addr show eth0", re.escape(slaac))
    assert f"inet {lease}/24" in shown
    assert web["ports"][0]["mac"] in shown
    assert f"({lease})" in await until(networked, "db", "ping -4 -c 1 web", "1 packets received")
    assert f"({slaac})" in await until(networked, "db", "ping -6 -c 1 web.lab.internal", "1 packets received")
    await is_called(networked, "web")
    await typed(networked, "db", "ip route replace default dev eth0")
    for address in (far["ports"][0]["addresses"][0]["ip"], "10.9.8.1", "10.9.8.200"):
        assert "0 packets received" in await typed(networked, "db", f"ping -c 1 -w 2 {address}")
    assert "NXDOMAIN" in await typed(networked, "db", "nslookup far.other.internal; nslookup example.org")
    await what_a_group_drops_is_told(networked)


async def what_a_group_drops_is_told(node: RunningNode) -> None:
    """`firewall watch` tells it as it happens, and says why."""
    for line in (("group", "create", "closed"), ("attach", "web", "closed")):
        status, _, err = await node.cli("firewall", *line)
        assert status == 0, err
    command = (sys.executable, "-m", "aetherscale", "firewall", "watch", "web")
    watching = await asyncio.create_subprocess_exec(*command, stdout=PIPE, env=node.environment, cwd=ROOT)
    assert watching.stdout is not None
    told = asyncio.ensure_future(watching.stdout.readuntil(b"included."))
    while not told.done():
        assert "0 packets received" in await typed(node, "db", "ping -4 -c 1 -w 1 web")
    said = (await told).decode()
    assert re.search(r"web: icmp/echo-request from db, 10\.9\.8\.\d+ \(uninvited\)\n", said), said
    assert "No group of 'web' allows it." in said
    watching.send_signal(signal.SIGINT)
    assert await watching.wait() == 0


async def test_a_guest_in_two_networks_finds_the_machines_of_both_by_name(networked: RunningNode) -> None:
    """As its C library finds them, in the order of its cards; nslookup asks the first server alone."""
    await network(networked, "lab", ipv4_prefix="10.9.8.0/24")
    await network(networked, "other", ipv4_prefix="10.9.9.0/24")
    x, y, _ = await asyncio.gather(
        guest(networked, "x", "lab"), guest(networked, "y", "other"), guest(networked, "both", "lab", "other")
    )
    for server in ("10.9.8.254", "10.9.9.254"):
        await until(networked, "both", "cat /etc/resolv.conf", re.escape(f"nameserver {server}"))
    for vm, name in ((x, "x.lab.internal"), (y, "y.other.internal")):
        lease, slaac = (each["ip"] for each in vm["ports"][0]["addresses"])
        assert f"({lease})" in await until(networked, "both", f"ping -4 -c 1 {name}", "1 packets received")
        assert f"({slaac})" in await until(networked, "both", f"ping -6 -c 1 {name}", "1 packets received")
        # Both ask by the address who that is.
        assert f"{name} ({lease})" in await typed(networked, "both", f"traceroute -m 1 -q 1 {lease}")
        assert f"{name} ({slaac})" in await typed(networked, "both", f"traceroute6 -m 1 -q 1 {slaac}")
    assert "REFUSED" in await typed(networked, "x", "nslookup y.other.internal")
    for name in ("y.lab.internal", "x.nowhere.internal", "example.org"):
        assert "NXDOMAIN" in await typed(networked, "x", f"nslookup {name}")


async def test_guests_of_a_network_without_ipv4_reach_each_other_by_name(networked: RunningNode) -> None:
    """It is what `network create lab` makes: whom to ask of names is said by router advertisements alone."""
    await network(networked, "lab")
    web, _ = await asyncio.gather(guest(networked, "web", "lab"), guest(networked, "db", "lab"))
    [address] = (each["ip"] for each in web["ports"][0]["addresses"])
    said = await until(networked, "db", "ping -c 1 web", "1 packets received")
    assert f"PING web ({address})" in said
    assert address in await typed(networked, "db", "nslookup web.lab.internal")
    for name in ("web", "db"):
        await is_called(networked, name)


async def test_guests_keep_their_network_when_the_node_is_killed_and_comes_back(networked: RunningNode) -> None:
    await network(networked, "lab", ipv4_prefix="10.9.8.0/24")
    web, _ = await asyncio.gather(guest(networked, "web", "lab"), guest(networked, "db", "lab"))
    await until(networked, "db", "ping -4 -c 1 web", "1 packets received")
    devices = await host("ip", "-br", "link")
    await networked.kill()
    await host("nft", "flush", "ruleset")
    await networked.start()
    assert web["ports"][0]["tap"] in await host("nft", "list", "set", "bridge", "aetherscale", "ports")
    assert await host("ip", "-br", "link") == devices
    await until(networked, "db", "ping -4 -c 1 web", "1 packets received")
    started = await networked.task("compute", "restart-vm", vm_id="web")
    assert started["vm"]["ports"] == web["ports"]
    await until(networked, "db", "ping -4 -c 1 web", "1 packets received")


async def test_what_somebody_else_breaks_is_mended_and_told_with_who_it_was(networked: RunningNode) -> None:
    lab = await network(networked, "lab", ipv4_prefix="10.9.8.0/24")
    web, _ = await asyncio.gather(guest(networked, "web", "lab"), guest(networked, "db", "lab"))
    tap = web["ports"][0]["tap"]
    await until(networked, "db", "ping -4 -c 1 web", "1 packets received")
    bridge = (await host("ip", "-br", "link", "show", "type", "bridge")).split()[0]
    for words in (
        ("nft", "flush", "ruleset"),
        ("ip", "link", "set", tap, "nomaster"),
        ("ip", "link", "delete", bridge),
    ):
        before = len(await downs(networked))
        await host(*words)
        async with asyncio.timeout(PATIENCE_S):
            while len(await downs(networked)) == before:  # noqa: ASYNC110 - of the log
                await asyncio.sleep(0.05)
        await until(networked, "db", "ping -4 -c 1 web", "1 packets received")
    lost = await downs(networked)
    assert lost[0] == "tables removed"
    assert f"the tap {tap} of VM web was changed: master" in lost
    assert f"the bridge {bridge} is gone" in lost
    _, why, _ = await networked.cli("why", "network", lab["name"], "--all")
    assert "tables removed, by nft, pid " in why


async def test_a_guest_whose_tap_is_removed_goes_on_by_a_new_one(networked: RunningNode) -> None:
    """Or it is told that it is cut off, and what to type: here of one whose device is another's by now."""
    await network(networked, "lab", ipv4_prefix="10.9.8.0/24")
    web, db = await asyncio.gather(guest(networked, "web", "lab"), guest(networked, "db", "lab"))
    await until(networked, "db", "ping -4 -c 1 web", "1 packets received")
    tap, other = (vm["ports"][0]["tap"] for vm in (web, db))
    await host("ip", "link", "delete", tap)
    await until(networked, "db", "ping -4 -c 1 web", "1 packets received")
    await until(networked, "db", "ping -6 -c 3 -s 1400 web", "3 packets received")
    assert f"the tap {tap} of VM web was removed" in await downs(networked)
    assert (await networked.vm("web"))["since"] == web["since"]
    os.kill(networked.pid, signal.SIGSTOP)
    await host("ip", "link", "delete", other)
    await host("ip", "tuntap", "add", other, "mode", "tap")
    os.kill(networked.pid, signal.SIGCONT)
    gone = f"the tap {other} is gone: VM db is without its network until it is restarted"
    async with asyncio.timeout(PATIENCE_S):
        while gone not in await downs(networked):  # noqa: ASYNC110 - of the log
            await asyncio.sleep(0.05)
        # It says the same in other words while the network is ensured once more.
        while (await told(networked, "network", "show", "lab"))["phase"] != "ready":  # noqa: ASYNC110 - of a view
            await asyncio.sleep(0.05)
    _, _, hint = await networked.cli("vm", "show", "db")
    assert f"the VM is cut off the network lab: another program removed its tap, {other}" in hint
    assert "aetherscale vm restart db" in hint
    await host("ip", "link", "delete", other)
    await networked.task("compute", "restart-vm", vm_id="db")
    await until(networked, "db", "ping -4 -c 1 web", "1 packets received")
    _, _, hint = await networked.cli("vm", "show", "db")
    assert hint == ""


async def test_a_guest_whose_tap_was_removed_while_no_node_ran_goes_on_by_a_new_one(networked: RunningNode) -> None:
    await network(networked, "lab", ipv4_prefix="10.9.8.0/24")
    web, _ = await asyncio.gather(guest(networked, "web", "lab"), guest(networked, "db", "lab"))
    await until(networked, "db", "ping -4 -c 1 web", "1 packets received")
    tap = web["ports"][0]["tap"]
    await networked.kill()
    await host("ip", "link", "delete", tap)
    await networked.start()
    removed = f"the tap {tap} of VM web was removed"
    assert removed in await downs(networked), "it was told before the node served"
    _, _, hint = await networked.cli("vm", "show", "web")
    assert hint == ""
    await until(networked, "db", "ping -4 -c 1 web", "1 packets received")
    assert (await networked.vm("web"))["since"] == web["since"]
    _, why, _ = await networked.cli("why", "vm", "web")
    assert removed in " ".join(why.split())


async def test_nothing_is_left_of_what_is_deleted(networked: RunningNode) -> None:
    await network(networked, "lab", ipv4_prefix="10.9.8.0/24")
    await network(networked, "out", kind="nat")
    await guest(networked, "web", "lab", "out")
    for component, task, options in (
        ("compute", "delete-vm", {"vm_id": "web", "kill": True}),
        ("network", "delete-network", {"network": "lab"}),
        ("network", "delete-network", {"network": "out"}),
    ):
        gone = await networked.task(component, task, **options)
        assert gone["type"] == "result", gone
    assert [line.split()[0] for line in (await host("ip", "-br", "link")).splitlines()] == ["lo"]
    assert await host("nft", "list", "ruleset") == ""
    assert list((networked.state_dir / "networks").iterdir()) == []
