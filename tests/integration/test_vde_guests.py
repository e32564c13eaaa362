"""Real guests on a real VDE switch, through a whole node: what they reach, and what comes of a switch that ends."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest

from aetherscale.processes import users
from tests.support import vde_switches
from tests.support.node import PATIENCE_S, RunningNode
from tests.support.vde_switches import until_in_use, vde_switch

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(vde_switches.missing()), reason=vde_switches.missing()),
]


async def guest(node: RunningNode, name: str, lab: Path) -> Any:
    made = await node.task(
        "compute", "create-vm", name=name, image="tiny", memory_mib=128, virtual_network=f"vde:{lab}"
    )
    assert made["type"] == "result", made
    return made["vm"]


async def told(node: RunningNode, name: str, line: str) -> tuple[int, str]:
    """The status and the output of a line of a shell in a guest."""
    status, out, err = await node.cli("vm", "exec", name, "--", "sh", "-c", line)
    return status, out + err


async def local_address(node: RunningNode, name: str) -> str:
    """The address that a guest has made for its link, once it may send from it."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            _, out = await told(node, name, "ip -6 addr show eth0 scope link")
            if (found := re.search(r"inet6 (fe80::\S+)/64", out)) and "tentative" not in out:
                return found[1]
            await asyncio.sleep(0.1)


async def reaches(node: RunningNode, name: str, address: str, *, patience_s: int = 25) -> bool:
    """Whether a guest has an answer from an address of its link in time.

    Its ping ends at once where it has no address itself, as in its first second.
    """
    await local_address(node, name)
    return await is_answered(node, name, f"-6 -I eth0 {address}", patience_s=patience_s)


async def is_answered(node: RunningNode, name: str, words: str, *, patience_s: int = 25) -> bool:
    """Whether one of the pings of a guest is answered in time: a switch may lose one, as any does. None fails to go."""
    status, out = await told(node, name, f"ping -c {patience_s} -w {patience_s} {words} | grep -m1 'bytes from'")
    assert "sendto" not in out, out
    return status == 0


async def test_guests_of_one_switch_reach_each_other_whatever_becomes_of_the_node(
    node: RunningNode, tmp_path: Path
) -> None:
    lab = tmp_path / "lab.ctl"
    with vde_switch(lab) as switch:
        web, _ = await asyncio.gather(guest(node, "web", lab), guest(node, "db", lab))
        (port,) = web["switches"]
        assert (port["path"], web["ports"]) == (str(lab), [])
        await until_in_use(lab, 2)
        # Nobody has let these users in.
        assert users.way() == "none" or web["process-user"] == "own"
        # One card, with this MAC, and nothing of user-mode networking.
        _, out = await told(node, "web", "ls /sys/class/net; cat /sys/class/net/eth0/address; ip -4 addr show eth0")
        assert out.split()[:3] == ["eth0", "lo", port["mac"]]
        assert "10.0.2." not in out
        address = await local_address(node, "web")
        assert await reaches(node, "db", address)
        for name, own in (("web", "192.0.2.1/24"), ("db", "192.0.2.2/24")):
            assert (await told(node, name, f"ip addr add {own} dev eth0"))[0] == 0
        assert await is_answered(node, "db", "192.0.2.1")
        # Frames as large as a card sends them.
        assert await is_answered(node, "db", "-s 1472 192.0.2.1")
        status, shown, _ = await node.cli("vm", "show", "web")
        assert status == 0
        assert re.search(rf"port vde:{lab} +MAC {port['mac']}; not filtered", shown)
        await node.kill()
        await node.start()
        await node.until_vm("web", phase="ready")
        assert await reaches(node, "db", address)
        # A switch that ends takes the ports with it: a restart of each VM joins it again.
        switch.terminate()
        switch.wait()
        assert not await reaches(node, "db", address, patience_s=5)
    with vde_switch(lab):
        assert not await reaches(node, "db", address, patience_s=5)
        await until_in_use(lab, 0)
        for name in ("web", "db"):
            status, _, err = await node.cli("vm", "restart", name)
            assert status == 0, err
        assert await reaches(node, "db", await local_address(node, "web"))
        for name in ("web", "db"):
            assert (await node.cli("vm", "delete", name, "--kill"))[0] == 0
        await until_in_use(lab, 0)


async def test_a_vm_whose_switch_is_not_there_waits_for_it(node: RunningNode, tmp_path: Path) -> None:
    lab = tmp_path / "lab.ctl"
    network = f"vde:{lab}"
    status, _, err = await node.cli("vm", "create", "web", "--image", "tiny", "--network", network)
    assert status != 0
    assert f"there is no VDE switch at {lab}" in err
    assert f"vde_switch -sock {lab} -daemon" in err
    with vde_switch(lab):
        await guest(node, "web", lab)
        assert (await node.cli("vm", "stop", "web", "--kill"))[0] == 0
    assert (await node.cli("vm", "start", "web", "--no-wait"))[0] == 0
    async with asyncio.timeout(PATIENCE_S):
        while True:
            _, out, _ = await node.cli("events", "list", "--type", "VmStepFailed", "--json")
            if found := json.loads(out):
                break
            await asyncio.sleep(0.1)
    assert f"there is no VDE switch at {lab}" in found[0]["data"]["reason"]
    assert found[0]["data"]["retry-at"] is not None
    with vde_switch(lab):
        await node.until_vm("web", phase="ready")
        await until_in_use(lab, 1)


async def test_a_switch_without_a_port_left_is_told(node: RunningNode, tmp_path: Path) -> None:
    lab = tmp_path / "lab.ctl"
    with vde_switch(lab, "-numports", "2"):
        await guest(node, "web", lab)
        made = await node.task(
            "compute", "create-vm", name="db", image="tiny", memory_mib=128, virtual_network=[f"vde:{lab}"]
        )
        assert made["type"] == "error", made
        assert "it gave the VM no port: it did not answer within 5 s, as one does that has none left" in made["message"]
