"""`explain`, asked of a whole node on a simulated host: which ends there are, what leads to them, and what decides."""

from __future__ import annotations

from collections.abc import AsyncIterator
from ipaddress import ip_network
from typing import Any, Final

import pytest

from aetherscale.actors.firewall.model.judge import LAW
from aetherscale.actors.network.model.views import Obstacle
from aetherscale.kernel.fault import Fault
from tests.support.memory_node import MemoryNode

WORLD: Final = "192.0.2.7"


@pytest.fixture
async def node() -> AsyncIterator[MemoryNode]:
    """The VMs `web`, which bears a group, and `db`, which bears none, in a network of the kind nat."""
    node = MemoryNode()
    await node.start()
    await node.final("images", "import-image", {"source": "/x.raw", "name": "i", "ready": "none"})
    await good(node, "network", "create-network", name="lab", kind="nat")
    await good(node, "firewall", "create-group", name="http", rules=["in:tcp:80", "out:tcp:5432"])
    for name, groups in (("web", ["http"]), ("db", [])):
        options = {"virtual-network": "lab", "groups": groups}
        await good(node, "compute", "create-vm", image="i", name=name, **options)
    yield node
    await node.close()


async def good(node: MemoryNode, component: str, task: str, **options: Any) -> Any:
    answer = await node.final(component, task, {name.replace("_", "-"): value for name, value in options.items()})
    assert answer["type"] == "result", answer
    return answer


async def explained(node: MemoryNode, source: str, target: str, port: str, tenant: str = "default") -> Any:
    return await node.final("firewall", "explain", {"from": source, "to": target, "port": port}, tenant=tenant)


def decided(answer: Any) -> tuple[bool, str, str | None]:
    assert answer["type"] == "result", answer
    return answer["passes"], answer["because"], answer["rule"]


async def test_from_one_vm_to_another_the_group_of_each_has_its_say(node: MemoryNode) -> None:
    assert decided(await explained(node, "web", "db", "tcp/5432")) == (True, f"{LAW[0]} Both are in 'lab'.", None)
    passes, because, _ = decided(await explained(node, "web", "db", "tcp/22"))
    assert (passes, because) == (False, f"No rule `out` of the groups of 'web' allows it. {LAW[2]}")
    assert decided(await explained(node, "db", "web", "tcp/80")) == (
        True, "The group 'http' allows it.", "in:tcp:80"
    )  # fmt: skip
    passes, because, _ = decided(await explained(node, "db", "web", "icmp"))
    assert (passes, because) == (False, f"No group of 'web' allows it. {LAW[1]}")


async def test_from_the_world_what_a_group_allows_passes(node: MemoryNode) -> None:
    answer = await explained(node, WORLD, "web", "tcp/80")
    assert decided(answer) == (True, "The group 'http' allows it.", "in:tcp:80")
    assert (answer["source"], answer["target"], answer["packet"], answer["group"], answer["forward"]) == (
        WORLD, "web", "tcp/80", "http", None
    )  # fmt: skip
    assert decided(await explained(node, WORLD, "db", "tcp/80")) == (False, LAW[0], None)


async def test_a_vm_is_meant_by_its_name_its_id_and_its_addresses(node: MemoryNode) -> None:
    vm = (await good(node, "compute", "vm-info", vm_id="web"))["vm"]
    for end in ("web", vm.id, vm.id[:8], *(address.ip for address in vm.ports[0].addresses)):
        answer = await explained(node, "db", end, "tcp/80")
        assert (answer["target"], answer["passes"]) == ("web", True)
    too_short = await explained(node, "db", vm.id[:3], "tcp/80")
    assert (too_short["code"], too_short["details"]["field"]) == (400, "to")


async def test_the_address_of_a_router_is_the_host(node: MemoryNode) -> None:
    for router in (await good(node, "network", "network-info", network="lab"))["network"].router:
        assert decided(await explained(node, "db", router, "icmp")) == (True, "Of the host, a VM reaches ping.", None)
        passes, because, _ = decided(await explained(node, "db", router, "tcp/22"))
        assert (passes, because) == (False, "Of the host, a VM reaches ping and nothing else.")
        assert decided(await explained(node, router, "db", "tcp/22")) == (False, LAW[0], None)


async def test_the_resolver_is_always_asked_of_names(node: MemoryNode) -> None:
    for resolver in (await good(node, "network", "network-info", network="lab"))["network"].resolver:
        for what in ("udp/53", "tcp/53"):
            passes, because, _ = decided(await explained(node, "web", resolver, what))
            assert (passes, because) == (True, "Names are always asked of the resolver of the network, here 'lab'.")
        passes, because, _ = decided(await explained(node, "web", resolver, "udp/54"))
        assert (passes, because) == (False, f"No rule `out` of the groups of 'web' allows it. {LAW[2]}")
        passes, because, _ = decided(await explained(node, resolver, "web", "udp/53"))
        assert (passes, because) == (False, f"{resolver} is the resolver of the network 'lab', which only answers VMs.")


async def test_of_an_address_that_the_log_does_not_know_it_says_what_it_is_taken_for(node: MemoryNode) -> None:
    """It may be one of the host, where a forward of all its addresses leads on."""
    await good(node, "firewall", "add-forward", vm_id="web", host_port=8080, guest_port=80)
    from_outside = await explained(node, WORLD, "198.51.100.2", "tcp/8080")
    assert (from_outside["target"], from_outside["forward"]) == ("web", "8080:80/tcp")
    assert from_outside["because"].endswith(" 198.51.100.2 is taken for an address of the host.")
    from_a_vm = await explained(node, "db", "198.51.100.2", "tcp/8080")
    assert (from_a_vm["target"], from_a_vm["forward"], from_a_vm["passes"]) == ("198.51.100.2", None, True)
    assert from_a_vm["because"].endswith(" 198.51.100.2 is taken for an address of the world, not for one of the host.")
    assert (await explained(node, "db", "198.51.100.2", "tcp/8081"))["because"] == LAW[2]
    lab = (await good(node, "network", "network-info", network="lab"))["network"]
    by_the_router = await explained(node, "db", lab.router[0], "tcp/8080")
    assert (by_the_router["target"], by_the_router["because"]) == ("web", "The group 'http' allows it.")
    for source in ("db", WORLD):
        answer = await explained(node, source, lab.resolver[0], "tcp/8080")
        assert (answer["target"], answer["forward"]) == (lab.resolver[0], None)


async def test_a_forward_leads_to_a_vm_and_its_groups_judge_the_port_of_the_guest(node: MemoryNode) -> None:
    for number, guest in ((8080, 80), (8081, 81)):
        await good(node, "firewall", "add-forward", vm_id="web", host_port=number, guest_port=guest)
    answer = await explained(node, WORLD, "host", "tcp/8080")
    assert decided(answer) == (True, "The group 'http' allows it.", "in:tcp:80")
    assert (answer["target"], answer["packet"], answer["forward"]) == ("web", "tcp/80", "8080:80/tcp")
    answer = await explained(node, WORLD, "host", "tcp/8081")
    assert (answer["passes"], answer["target"], answer["packet"]) == (False, "web", "tcp/81")
    answer = await explained(node, WORLD, "host", "udp/8080")
    assert (answer["target"], answer["forward"]) == ("host", None)


async def test_a_forward_at_one_address_of_the_host_leads_nowhere_from_another(node: MemoryNode) -> None:
    at = {"host_port": 8080, "guest_port": 80, "host_address": "198.51.100.1"}
    await good(node, "firewall", "add-forward", vm_id="web", **at)
    assert (await explained(node, WORLD, "198.51.100.1", "tcp/8080"))["target"] == "web"
    assert (await explained(node, WORLD, "198.51.100.2", "tcp/8080"))["target"] == "198.51.100.2"


async def test_the_rules_are_those_that_the_kernel_has(node: MemoryNode) -> None:
    async def refuse(step: str, what: str) -> None:
        if step == "group":
            raise Fault("nft said no", "mend it", retryable=False)

    node.networks.interfere = refuse
    refused = await node.final("firewall", "set-rules", {"group": "http", "rules": ["in:tcp:443"]})
    assert refused["code"] == 500
    assert (await explained(node, WORLD, "web", "tcp/80"))["passes"]
    assert not (await explained(node, WORLD, "web", "tcp/443"))["passes"]


async def test_a_vm_without_a_network_and_a_deleted_one(node: MemoryNode) -> None:
    await good(node, "compute", "create-vm", image="i", name="alone")
    passes, because, _ = decided(await explained(node, "web", "alone", "tcp/80"))
    assert (passes, because) == (False, "The VM 'alone' is in no network: it has user-mode networking.")
    await good(node, "compute", "delete-vm", vm_id="db", kill=True)
    assert (await explained(node, "web", "db", "tcp/80"))["code"] == 404


@pytest.mark.parametrize(("source", "target", "port"), [
    ("lonely", "db", "tcp/80"), ("db", "lonely", "tcp/80"), ("lonely", WORLD, "tcp/80"), (WORLD, "lonely", "icmp"),
    ("lonely", "host", "tcp/8080"), ("lonely", "host", "icmp"), ("lonely", "other", "tcp/80"),
])  # fmt: skip
async def test_nothing_is_said_of_what_a_vm_on_switches_alone_reaches(
    node: MemoryNode, source: str, target: str, port: str
) -> None:
    for name in ("lonely", "other"):
        await good(node, "compute", "create-vm", image="i", name=name, **{"virtual-network": "vde:/run/lab.ctl"})
    await good(node, "firewall", "add-forward", vm_id="web", host_port=8080, guest_port=80)
    refused = await explained(node, source, target, port)
    assert (refused["code"], refused["details"]["field"]) == (
        409,
        "from" if target not in ("lonely", "other") else "to",
    )
    assert "is on VDE switches alone" in refused["message"]


async def test_the_vms_of_another_tenant_are_not_there(node: MemoryNode) -> None:
    assert (await explained(node, WORLD, "web", "tcp/80", tenant="blue"))["code"] == 404


@pytest.mark.parametrize("field", ["from", "to"])
async def test_an_end_that_is_not_there_is_not_found(node: MemoryNode, field: str) -> None:
    refused = await node.final("firewall", "explain", {"from": "web", "to": "web", "port": "icmp", field: "wbe"})
    assert (refused["code"], refused["message"], refused["details"]["field"]) == (404, "no such VM: 'wbe'", field)
    assert "vm list" in refused["details"]["hint"]


@pytest.mark.parametrize(
    "address",
    ["ff02::1", "224.0.0.1", "0.0.0.0", "::", "fe80::1%eth0", "127.0.0.1", "::1", "fe80::1", "169.254.0.9",  # noqa: S104
     "255.255.255.255", "10.64.0.0/24", "fd00::/64", "fd00::x"],
)  # fmt: skip
async def test_an_address_of_many_devices_or_of_none_is_refused(node: MemoryNode, address: str) -> None:
    refused = await explained(node, address, "web", "tcp/80")
    assert (refused["code"], refused["details"]["field"]) == (400, "from")


async def test_an_address_of_a_whole_network_is_refused(node: MemoryNode) -> None:
    prefix = ip_network((await good(node, "network", "network-info", network="lab"))["network"].ipv4)
    for address in (prefix.broadcast_address, prefix.network_address):
        refused = await explained(node, "web", str(address), "icmp")
        assert (refused["code"], refused["details"]["field"]) == (400, "to")
        assert "expected the address of one device" in refused["message"]


@pytest.mark.parametrize("field", ["from", "to"])
async def test_an_address_of_ipv4_within_ipv6_is_refused_with_what_is_meant(node: MemoryNode, field: str) -> None:
    options = {"from": "web", "to": "db", "port": "icmp", field: "::ffff:192.0.2.7"}
    refused = await node.final("firewall", "explain", options)
    assert (refused["code"], refused["details"]["field"]) == (400, field)
    assert refused["message"].endswith("expected the address itself, as 192.0.2.7")


@pytest.mark.parametrize("source", ["host", WORLD, "2001:db8::7", "alone"])
async def test_of_a_network_nobody_outside_reaches_what_is_no_vm(node: MemoryNode, source: str) -> None:
    await good(node, "compute", "create-vm", image="i", name="alone")
    await good(node, "network", "create-network", name="inner", ipv4_prefix="10.99.0.0/24")
    for name, unused in (("lab", 200), ("inner", 200)):
        lab = (await good(node, "network", "network-info", network=name))["network"]
        for resolver in lab.resolver:
            passes, because, _ = decided(await explained(node, source, resolver, "udp/53"))
            where = f"of the network {name!r}: it is the resolver, which only its VMs reach."
            assert (passes, because) == (False, f"{resolver} is {where}")
        nobody = str(ip_network(lab.ipv4)[unused])
        passes, because, _ = decided(await explained(node, source, nobody, "tcp/80"))
        assert (passes, because) == (False, f"{nobody} is of the network {name!r}: no VM has it.")
    passes, because, _ = decided(await explained(node, source, "198.51.100.9", "udp/53"))
    assert (passes, "is in no network" in because) == (True, source == "alone")


async def test_of_a_vm_that_does_not_run_it_is_said(node: MemoryNode) -> None:
    await good(node, "compute", "stop-vm", vm_id="db", kill=True)
    assert (await explained(node, "web", "db", "tcp/5432"))["because"].endswith(" But 'db' is stopped.")
    assert (await explained(node, "db", "web", "tcp/80"))[
        "because"
    ] == "The group 'http' allows it. But 'db' is stopped."
    assert "stopped" not in (await explained(node, "web", "db", "tcp/22"))["because"]
    await good(node, "firewall", "add-forward", vm_id="db", host_port=8080, guest_port=80)
    await good(node, "firewall", "attach-group", vm_id="db", group="http")
    assert (await explained(node, WORLD, "host", "tcp/8080"))["because"].endswith(" But 'db' is stopped.")


@pytest.mark.parametrize(
    "what",
    ["tcp", "tcp/", "tcp/0", "tcp/65536", "tcp/+80", "tcp/８０", "tcp/080000", "sctp/80", "icmp/", "icmp/x", "80"],
)
async def test_what_is_no_packet_is_refused(node: MemoryNode, what: str) -> None:
    refused = await explained(node, "db", "web", what)
    assert (refused["code"], refused["details"]["field"]) == (400, "port")
    assert "expected what is sent, as tcp/443, udp/53, icmp or icmp/echo-request" in refused["message"]


DOCKER: Final = Obstacle((4,), ("out", "in"), "Docker's chain FORWARD drops it", "iptables -I DOCKER-USER -i aeb+")
MINE: Final = Obstacle((4, 6), ("bridge",), "the chain f drops it", "nft 'insert rule'")
SENT: Final = Obstacle((4,), ("host",), "the chain o drops it", "nft 'insert rule'")
LED: Final = Obstacle((4,), ("host-led",), "the chain o drops it", "nft 'insert rule'")
CALLS: Final = Obstacle((4,), ("led",), "bridge-nf-call-iptables: a VM does not reach itself", "sysctl -w")


@pytest.mark.parametrize(
    ("source", "target", "port", "told"),
    [
        ("db", WORLD, "tcp/22", [DOCKER]),
        ("db", "2001:db8::9", "tcp/22", []),
        (WORLD, "web", "tcp/80", [DOCKER]),
        ("web", "db", "tcp/5432", [MINE]),
        ("db", "host", "icmp", []),
        ("host", "web", "tcp/80", [SENT]),
        ("host", "db", "tcp/80", []),
        ("web", WORLD, "tcp/22", []),
        (WORLD, "db", "tcp/80", []),
    ],
)
async def test_what_passes_our_rules_and_others_drop_is_told_with_the_remedy(
    node: MemoryNode, source: str, target: str, port: str, told: list[Obstacle]
) -> None:
    assert (await explained(node, source, target, port))["others"] == []
    node.networks.obstacles += [DOCKER, MINE, SENT]
    answer = await explained(node, source, target, port)
    assert answer["others"] == [{"what": each.what, "remedy": each.remedy} for each in told]


@pytest.mark.parametrize(
    ("source", "way", "told"),
    [(WORLD, "in", [DOCKER]), ("web", "led", [CALLS]), ("db", "led", [CALLS]), ("host", "host-led", [LED])],
)
async def test_what_a_forward_leads_meets_the_filters_of_others(
    node: MemoryNode, source: str, way: str, told: list[Obstacle]
) -> None:
    await good(node, "firewall", "add-forward", vm_id="web", host_port=8080, guest_port=80)
    await good(node, "firewall", "set-rules", group="http", rules=["in:tcp:80"])
    node.networks.obstacles += [DOCKER, MINE, CALLS, SENT, LED]
    answer = await explained(node, source, "host", "tcp/8080")
    assert (answer["passes"], answer["way"]) == (True, way)
    assert answer["others"] == [{"what": each.what, "remedy": each.remedy} for each in told]


@pytest.mark.parametrize(("source", "target"), [("db", "198.51.100.7"), ("198.51.100.7", "db")])
async def test_an_address_that_the_host_has_is_the_hosts(node: MemoryNode, source: str, target: str) -> None:
    assert (await explained(node, source, target, "icmp"))["passes"] == (source == "db")
    node.networks.addresses.add("198.51.100.7")
    own, other = ("host" if "." in end else end for end in (source, target))
    as_host = await explained(node, own, other, "tcp/22")
    answer = await explained(node, source, target, "tcp/22")
    assert (answer["passes"], answer["because"]) == (as_host["passes"], as_host["because"])
    assert not answer["passes"]


async def test_what_a_vm_sends_to_itself_does_not_leave_it(node: MemoryNode) -> None:
    for port in ("tcp/80", "tcp/22", "icmp"):
        passes, because, _ = decided(await explained(node, "web", "web", port))
        assert (passes, because) == (True, "What a VM sends to itself does not leave it.")


async def test_where_frames_are_handed_to_the_rules_of_the_host_a_no_of_what_comes_back_is_in_doubt_too(
    node: MemoryNode,
) -> None:
    await good(node, "firewall", "add-forward", vm_id="web", host_port=8080, guest_port=22)
    node.networks.obstacles += [DOCKER, MINE, CALLS, SENT, LED]
    answer = await explained(node, "db", "host", "tcp/8080")
    assert (answer["passes"], answer["way"]) == (False, "led")
    assert answer["others"] == [{"what": CALLS.what, "remedy": CALLS.remedy}]
    assert (await explained(node, WORLD, "host", "tcp/8080"))["others"] == []


async def test_addresses_of_two_ip_families_are_said_to_be_so(node: MemoryNode) -> None:
    """Both VMs have one of each."""
    views = {name: (await good(node, "compute", "vm-info", vm_id=name))["vm"] for name in ("web", "db")}
    (web4, web6), (db4, _) = (
        sorted((one.ip for one in views[name].ports[0].addresses), key=len) for name in ("web", "db")
    )
    for source, target in (("2001:db8::7", web4), (WORLD, web6), (web4, "2001:db8::7"), (web6, WORLD)):
        assert decided(await explained(node, source, target, "tcp/80")) == (
            False,
            "The two addresses are not of one IP family.",
            None,
        )
    answer = await explained(node, db4, web6, "tcp/80")
    assert answer["because"] == "The two have no IP family in common that has such a packet."
    await good(node, "network", "create-network", name="six", kind="nat", ipv4_prefix="none")
    await good(node, "compute", "create-vm", image="i", name="only", virtual_network="six")
    for source, target in ((WORLD, "only"), ("only", WORLD)):
        assert (await explained(node, source, target, "tcp/80"))["because"] == "The VM 'only' has no IPv4 address."
