"""Ports on VDE switches, decided by a whole node on a simulated host: asked for, shown, reserved and refused."""

from __future__ import annotations

from typing import Any

import pytest

from aetherscale.actors.compute.model import commands, events
from aetherscale.actors.compute.model.commands import MAX_PORTS
from aetherscale.actors.compute.model.evolve import evolve
from aetherscale.actors.compute.model.presentation import MAC, VM_KIND, holds
from aetherscale.actors.compute.model.switches import MAX_PATH_BYTES, SwitchPort, parse_switches
from aetherscale.kernel.reservations import NodeKey
from tests.support.imaged_node import node
from tests.support.memory_node import MemoryNode

__all__ = ["node"]

LAB = "vde:/run/lab.ctl"
LONGEST = "vde:/" + "x" * (MAX_PATH_BYTES - 1)


async def vm(node: MemoryNode, name: str, *networks: str, **options: Any) -> Any:
    return await node.final(
        "compute", "create-vm", {"image": "i", "name": name, "virtual-network": list(networks), **options}
    )


async def network(node: MemoryNode, name: str) -> None:
    made = await node.final("network", "create-network", {"name": name})
    assert made["type"] == "result", made


@pytest.mark.parametrize("reference", [LAB, "vde:/x", "vde:/run/my lab", "vde:/run/löb,x=y", LONGEST, "vde:/a/..b/.c"])
def test_a_path_is_taken_as_it_is(reference: str) -> None:
    assert parse_switches(["lab", reference]) == [reference.removeprefix("vde:")]


BAD = [
    "vde:", "vde:lab", "vde:run/lab.ctl", "vde:/", "vde://", "vde://run/lab", "vde:/run//lab", "vde:/run/lab/",
    "vde:/run/./lab", "vde:/run/../lab", "vde:/run/..", "vde:/run/l\nb", "vde:/run/l\0b", "vde:/run/l\x1bb",
    "vde:/run/l\x85b", "vde:/run/l\u2028b", f"{LONGEST}x", "vde:/" + "ö" * 52, "vde:///run/lab.ctl",
]  # fmt: skip


@pytest.mark.parametrize("reference", BAD)
async def test_what_is_no_path_of_a_switch_is_refused_with_its_field(node: MemoryNode, reference: str) -> None:
    for given in (reference, [reference]):
        refused = await node.final("compute", "create-vm", {"image": "i", "virtual-network": given})
        assert (refused["code"], refused["details"]["field"].partition("[")[0]) == (400, "virtual-network"), refused
    assert not [each for each in await node.events() if each.stream.startswith("vm-")]


@pytest.mark.parametrize("reference", ["VDE:/run/lab", " vde:/run/lab", "vd:/run/lab", "/run/lab", "vde"])
async def test_what_does_not_begin_as_one_is_a_name(node: MemoryNode, reference: str) -> None:
    refused = await vm(node, "web", reference)
    assert refused["code"] == (404 if reference == "vde" else 400)


async def test_a_vm_has_a_card_there_and_the_view_says_so(node: MemoryNode) -> None:
    made = await vm(node, "web", LAB)
    (port,) = made["vm"].switches
    assert (port.path, made["vm"].ports) == ("/run/lab.ctl", [])
    assert int(port.mac[:2], 16) & 3 == 2, "it is local, and that of one card"
    other = (await vm(node, "db", LAB, "vde:/run/other.ctl"))["vm"].switches
    assert [each.path for each in other] == ["/run/lab.ctl", "/run/other.ctl"]
    assert len({port.mac, *(each.mac for each in other)}) == 3
    # One name, as for networks, is taken too.
    one = await node.final("compute", "create-vm", {"image": "i", "virtual-network": LAB})
    assert [each.path for each in one["vm"].switches] == ["/run/lab.ctl"]


async def test_it_goes_with_networks_and_counts_as_one(node: MemoryNode) -> None:
    names = [f"n{number}" for number in range(MAX_PORTS - 1)]
    for name in names:
        await network(node, name)
    made = await vm(node, "web", LAB, *names)
    assert ([each.network for each in made["vm"].ports], len(made["vm"].switches)) == (names, 1)
    await network(node, "more")
    refused = await node.final("compute", "attach-vm", {"vm-id": "web", "network": "more"})
    assert (refused["code"], refused["message"]) == (409, f"the VM 'web' has {MAX_PORTS} ports, and no VM more")
    refused = await vm(node, "db", LAB, *names, **{"public-ip": True})
    assert (refused["code"], refused["message"]) == (400, f"a VM has at most {MAX_PORTS} ports")
    refused = await vm(node, "db", LAB, *names, "more")
    assert (refused["code"], refused["details"]["field"]) == (400, "virtual-network")


async def test_one_switch_is_named_once(node: MemoryNode) -> None:
    refused = await vm(node, "web", LAB, "vde:/run/other", LAB)
    assert (refused["code"], refused["message"]) == (400, "the VDE switch /run/lab.ctl is named twice")


async def test_a_switch_that_is_not_there_is_refused_with_what_makes_one(node: MemoryNode) -> None:
    node.host.missing_switches.add("/run/lab.ctl")
    refused = await vm(node, "web", "vde:/run/other", LAB)
    assert (refused["code"], refused["details"]["field"]) == (409, "virtual-network")
    assert refused["message"] == "there is no VDE switch at /run/lab.ctl: /run/lab.ctl/ctl is missing"
    line = "apt-get install --no-install-recommends vde2; vde_switch -sock /run/lab.ctl -daemon"
    assert refused["details"]["hint"] == line
    assert not [each for each in await node.events() if each.stream.startswith("vm-")]


OF_NETWORKS: list[tuple[dict[str, Any], int, str]] = [
    ({"groups": ["http"]}, 400, "a VM whose only ports are on VDE switches has no port that a group could let"),
    ({"allow-addresses": ["192.0.2.1"]}, 400, "a VM whose only ports are on VDE switches has no port that may have"),
    ({"addresses": ["192.0.2.1"]}, 400, "addresses are chosen for the port on the public bridge"),
    ({"host-loopback": True}, 400, "a VM on a VDE switch does not reach the host's loopback"),
    ({"publish": ["8080:80"]}, 501, "ports of a VM on a VDE switch cannot be published"),
]


@pytest.mark.parametrize(("options", "code", "told"), OF_NETWORKS)
async def test_what_is_of_networks_is_refused_where_there_is_none(
    node: MemoryNode, options: dict[str, Any], code: int, told: str
) -> None:
    refused = await vm(node, "web", LAB, **options)
    assert (refused["code"], refused["message"][: len(told)]) == (code, told)


async def test_a_vm_on_switches_alone_takes_no_port_group_or_forward(node: MemoryNode) -> None:
    await vm(node, "web", LAB)
    await network(node, "lab")
    assert (await node.final("firewall", "create-group", {"name": "http"}))["type"] == "result"
    asked: list[tuple[str, str, dict[str, Any], str]] = [
        ("compute", "attach-vm", {"network": "lab"}, "without a network, and has ports on VDE switches alone"),
        ("firewall", "attach-group", {"group": "http"}, "the VM 'web' is in no network, so that no group"),
        ("firewall", "add-forward", {"host-port": 8080, "guest-port": 80}, "is in no network of the kind nat"),
    ]
    for component, task, options, told in asked:
        refused = await node.final(component, task, {"vm-id": "web", **options})
        assert refused["code"] == 409, refused
        assert told in refused["message"]


async def test_the_last_network_of_one_with_both_stays_for_the_right_reason(node: MemoryNode) -> None:
    await network(node, "lab")
    assert (await vm(node, "web", "lab", LAB))["type"] == "result"
    refused = await node.final("compute", "detach-vm", {"vm-id": "web", "network": "lab"})
    assert refused["code"] == 409
    assert refused["message"].endswith("; a VM that was created in a network stays in one, whatever switches it is on")


async def test_a_boot_whose_switch_is_gone_is_tried_again(node: MemoryNode) -> None:
    made = await vm(node, "web", LAB)
    await node.final("compute", "stop-vm", {"vm-id": "web", "kill": True})
    node.host.missing_switches.add("/run/lab.ctl")
    failed = await node.final("compute", "start-vm", {"vm-id": "web"})
    assert failed["type"] == "error"
    assert "there is no VDE switch at /run/lab.ctl" in failed["message"], failed
    steps = [each.event for each in await node.events() if isinstance(each.event, events.VmStepFailed)]
    assert steps[0].retry_at is not None
    assert "vde_switch -sock /run/lab.ctl -daemon" in steps[0].hint
    node.host.missing_switches.clear()
    again = await node.final("compute", "start-vm", {"vm-id": "web"})
    assert again["vm"].switches == made["vm"].switches


def test_its_mac_is_a_key_of_the_node_and_the_event_is_told_with_the_switch() -> None:
    port = SwitchPort("/run/lab.ctl", "02:00:00:00:00:01")
    spec = commands.VmSpec(
        "web", "2" * 16, "i", "raw", 1, "none", 1, 512, 10240, "never", autostart=True, labels={}, switches=[port]
    )
    requested = events.VmRequested("1" * 16, spec)
    assert NodeKey(MAC, port.mac) in holds(evolve(None, requested, 0))
    assert "on the VDE switch /run/lab.ctl" in VM_KIND.descriptions.describe(None, requested).text
