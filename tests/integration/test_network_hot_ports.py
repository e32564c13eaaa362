"""Ports that come and go while real guests run, through a whole node in a network namespace."""

from __future__ import annotations

import re
from typing import Any

from tests.integration.test_network_guests import guest, host, network, networked, typed, until
from tests.integration.test_network_guests import pytestmark as pytestmark
from tests.support.node import RunningNode

__all__ = ["networked"]


async def attach(node: RunningNode, vm: str, network: str) -> Any:
    return await node.task("compute", "attach-vm", vm_id=vm, network=network)


async def detach(node: RunningNode, vm: str, network: str) -> Any:
    return await node.task("compute", "detach-vm", vm_id=vm, network=network)


def cards(view: Any) -> dict[str, str]:
    """What the guest has of each port, by the network."""
    return {port["network"]: port["card"] for port in view["ports"]}


async def devices(node: RunningNode, name: str) -> int:
    """How many network cards a guest has."""
    return len(re.findall(r"(?m)^[0-9]+: eth[0-9]+", await typed(node, name, "ip -o link show")))


async def taps() -> set[str]:
    return set(re.findall(r"aep[0-9a-f]{12}", await host("ip", "-o", "link", "show")))


async def test_a_running_guest_is_attached_pings_and_is_detached_again(networked: RunningNode) -> None:
    await network(networked, "lab", ipv4_prefix="10.9.8.0/24")
    await network(networked, "dmz", ipv4_prefix="10.9.9.0/24")
    web = await guest(networked, "web", "lab")
    db = await guest(networked, "db", "dmz")
    attached = await attach(networked, "web", "dmz")
    assert attached["type"] == "result", attached
    assert cards(attached["vm"]) == {"lab": "plugged", "dmz": "plugged"}
    port = attached["vm"]["ports"][1]
    assert await taps() == {each["tap"] for each in (web["ports"][0], db["ports"][0], port)}
    lease = port["addresses"][0]["ip"]
    await until(networked, "web", "cat /sys/class/net/eth1/address", port["mac"])
    await until(networked, "web", "ip addr show eth1", f"inet {lease}/24")
    await until(networked, "web", "cat /etc/resolv.conf", r"nameserver 10\.9\.9\.254")
    far = db["ports"][0]["addresses"][0]["ip"]
    assert "1 packets received" in await until(networked, "web", f"ping -c 1 -w 5 {far}", "1 packets received")
    assert "1 packets received" in await until(networked, "db", "ping -6 -c 1 -w 5 web", "1 packets received")
    detached = await detach(networked, "web", "dmz")
    assert cards(detached["vm"]) == {"lab": "plugged"}
    assert await taps() == {each["tap"] for each in (web["ports"][0], db["ports"][0])}
    assert await devices(networked, "web") == 1
    for line in ("grep -c 10.9.9.254 /etc/resolv.conf", "ps | grep -c '[u]dhcpc.*eth1'"):
        await until(networked, "web", line, r"\n0\r\n")
    # And again, as another VM: with another MAC, at the address that the one before has leased.
    again = (await attach(networked, "web", "dmz"))["vm"]["ports"][1]
    assert (again["addresses"][0]["ip"], again["mac"] != port["mac"]) == (lease, True)
    await until(networked, "web", "ip addr show eth1", f"inet {lease}/24")


async def test_a_node_that_is_killed_in_the_midst_goes_on_after_its_restart(networked: RunningNode) -> None:
    await network(networked, "lab", ipv4_prefix="10.9.8.0/24")
    await network(networked, "dmz", ipv4_prefix="10.9.9.0/24")
    await guest(networked, "web", "lab")
    for task, wanted in (("attach-vm", {"lab": "plugged", "dmz": "plugged"}), ("detach-vm", {"lab": "plugged"})):
        status, _, err = await networked.cli("vm", task.removesuffix("-vm"), "web", "dmz", "--no-wait")
        assert status == 0, err
        await networked.kill()
        await networked.start()
        done = await networked.task("compute", task, vm_id="web", network="dmz")
        assert cards(done["vm"]) == wanted
        assert await taps() == {port["tap"] for port in done["vm"]["ports"]}
        assert await devices(networked, "web") == len(wanted)


async def test_a_stopped_vm_gets_and_loses_ports_for_its_next_boot(networked: RunningNode) -> None:
    for name in ("lab", "dmz"):
        await network(networked, name)
    await guest(networked, "web", "lab")
    await networked.task("compute", "stop-vm", vm_id="web", kill=True)
    assert cards((await attach(networked, "web", "dmz"))["vm"]) == {"lab": "unplugged", "dmz": "unplugged"}
    started = await networked.task("compute", "start-vm", vm_id="web")
    assert cards(started["vm"]) == {"lab": "plugged", "dmz": "plugged"}
    assert await devices(networked, "web") == 2
    # The card of its boot goes while it runs, too.
    assert cards((await detach(networked, "web", "lab"))["vm"]) == {"dmz": "plugged"}
    assert await devices(networked, "web") == 1
    refused = await detach(networked, "web", "dmz")
    assert (refused["code"], refused["error"]) == (409, "conflict")
    status, out, _ = await networked.cli("why", "vm", "web", "--all")
    assert status == 0
    assert "asked to attach it to the network 'dmz'" in out
    assert "it was detached from the network 'lab'" in out
