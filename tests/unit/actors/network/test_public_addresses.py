"""Public addresses, decided by a whole node on a simulated host: where the port is, its addresses, who is refused."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from aetherscale.actors.compute.model.commands import MAX_PORTS
from aetherscale.actors.network.model.events import NetworkRequested
from tests.support.imaged_node import IMAGE, node
from tests.support.memory_node import MemoryNode

__all__ = ["node"]


async def vm(node: MemoryNode, name: str, tenant: str = "default", **options: Any) -> Any:
    return await node.final("compute", "create-vm", {"image": "i", "name": name, **options}, tenant=tenant)


async def public(node: MemoryNode, name: str, **options: Any) -> Any:
    return await vm(node, name, **{"public-ip": True, **options})


async def network(node: MemoryNode, name: str, **options: Any) -> Any:
    made = await node.final("network", "create-network", {"name": name, **options})
    assert made["type"] == "result", made
    return made["network"]


def where(made: Any) -> list[tuple[str, list[tuple[str, str]]]]:
    """The networks of a VM with its addresses there, and how it comes by them."""
    assert made["type"] == "result", made
    return [(port.network, [(each.ip, each.source) for each in port.addresses]) for port in made["vm"].ports]


async def requested(node: MemoryNode) -> list[str]:
    """The names of all networks that were ever asked for."""
    return [each.event.spec.name for each in await node.events() if isinstance(each.event, NetworkRequested)]


class TestThePort:
    async def test_the_first_vm_has_the_network_made_and_is_on_the_bridge(self, node: MemoryNode) -> None:
        made = await public(node, "web")
        assert where(made) == [("public", [])]
        there = (await node.final("network", "network-info", {"network": "public"}))["network"]
        assert (there.kind, there.bridge, there.device, there.ipv4, there.ipv6) == ("public", "br0", "br0", None, None)
        assert (there.router, there.resolver, there.phase) == ([], [], "ready")
        assert node.networks.taps[made["vm"].ports[0].tap] == (made["vm-id"], "br0")

    async def test_of_many_at_once_one_makes_it(self, node: MemoryNode) -> None:
        ends = await asyncio.gather(*(public(node, f"vm-{number}") for number in range(10)))
        assert [where(end) for end in ends] == [[("public", [])]] * 10
        assert await requested(node) == ["public"]

    async def test_it_is_the_last_port_after_those_in_networks(self, node: MemoryNode) -> None:
        await network(node, "lab")
        made = await public(node, "web", **{"virtual-network": "lab"})
        assert [name for name, _ in where(made)] == ["lab", "public"]

    async def test_the_first_versions_message_has_both_made(self, node: MemoryNode) -> None:
        options = {"image": "i", "virtual-network": "my-virtual-subnet", "public-ip": True}
        made = await node.final("compute", "create-vm", options, legacy=True)
        assert [name for name, _ in where(made)] == ["my-virtual-subnet", "public"]

    async def test_a_network_of_the_kind_that_has_the_bridge_already_is_taken_whatever_its_name(
        self, node: MemoryNode
    ) -> None:
        await network(node, "street", kind="public")
        assert where(await public(node, "web")) == [("street", [])]
        assert where(await vm(node, "db", **{"virtual-network": "street"})) == [("street", [])]

    async def test_it_bears_groups(self, node: MemoryNode) -> None:
        await node.final("firewall", "create-group", {"name": "http", "rules": []})
        made = await public(node, "web", groups=["http"])
        assert [group.group for group in made["vm"].groups] == ["http"]


class TestChosenAddresses:
    async def test_one_of_each_family_is_the_vms_for_ever(self, node: MemoryNode) -> None:
        made = await public(node, "web", addresses=["203.0.113.7", "2001:DB8::7"])
        assert where(made) == [("public", [("203.0.113.7", "lease"), ("2001:db8::7", "lease")])]

    async def test_it_is_of_the_port_on_the_public_bridge_alone(self, node: MemoryNode) -> None:
        await network(node, "lab")
        made = await public(node, "web", **{"virtual-network": "lab", "addresses": ["203.0.113.7"]})
        (_, [(_, source)]), there = where(made)
        assert (source, there) == ("slaac", ("public", [("203.0.113.7", "lease")]))

    async def test_of_two_that_ask_for_one_at_once_one_gets_it(self, node: MemoryNode) -> None:
        await public(node, "first")
        asked = (public(node, name, addresses=["203.0.113.7"]) for name in ("a", "b"))
        won, lost = sorted(await asyncio.gather(*asked), key=lambda end: end["type"], reverse=True)
        assert where(won) == [("public", [("203.0.113.7", "lease")])]
        assert (lost["code"], lost["details"]["field"]) == (409, "addresses")
        assert lost["message"] == "another VM has the address 203.0.113.7 in the network 'public'"

    async def test_it_is_free_again_when_the_vm_is_deleted(self, node: MemoryNode) -> None:
        await public(node, "web", addresses=["203.0.113.7"])
        await node.final("compute", "delete-vm", {"vm-id": "web", "kill": True})
        assert where(await public(node, "db", addresses=["203.0.113.7"])) == [("public", [("203.0.113.7", "lease")])]

    async def test_one_of_the_host_is_refused(self, node: MemoryNode) -> None:
        node.networks.addresses = {"203.0.113.1"}
        refused = await public(node, "web", addresses=["203.0.113.1"])
        assert (refused["code"], refused["details"]["field"]) == (409, "addresses")
        assert not await requested(node)

    @pytest.mark.parametrize(
        "addresses",
        [
            ["203.0.113.7", "203.0.113.8"],
            ["203.0.113.7", "203.0.113.7"],
            ["203.0.113.0/24"],
            ["203.0.113.7/32"],
            ["127.0.0.1"],
            ["0.0.0.0"],  # noqa: S104 - nothing is bound
            ["224.0.0.1"],
            ["fe80::1"],
            ["::1"],
            ["2001:db8::8c:32ff:fe7b:ffdc"],
            ["2001:db8::7%eth0"],
            ["web"],
            [""],
            ['203.0.113.7"; drop'],
            ["203.0.113.7", "2001:db8::7", "2001:db8::8"],
        ],
    )
    async def test_what_is_no_address_of_a_guest_is_refused_with_its_field(
        self, node: MemoryNode, addresses: list[str]
    ) -> None:
        refused = await public(node, "web", addresses=addresses)
        assert (refused["code"], refused["details"]["field"]) == (400, "addresses")
        assert not await requested(node)

    async def test_without_a_public_address_none_is_chosen(self, node: MemoryNode) -> None:
        await network(node, "lab")
        options: dict[str, Any] = {"virtual-network": "lab", "addresses": ["203.0.113.7"]}
        refused = await vm(node, "web", **options)
        assert (refused["code"], refused["details"]["field"]) == (400, "addresses")


class TestRefusals:
    async def test_a_host_without_the_bridge_is_told_what_makes_it(self, node: MemoryNode) -> None:
        node.networks.public_bridge = ""
        refused = await public(node, "web")
        assert (refused["code"], refused["details"]["field"]) == (409, "public-ip")
        assert refused["message"] == "the host has no bridge br0"
        assert not await requested(node)

    async def test_a_node_that_can_have_no_networks_says_so(self, node: MemoryNode) -> None:
        node.networks.lacking = "no CAP_NET_ADMIN"
        assert (await public(node, "web"))["code"] == 501

    async def test_a_bridge_that_is_a_network_in_which_anything_is_taken(self, node: MemoryNode) -> None:
        await network(node, "office", kind="bridged", bridge="br0")
        refused = await public(node, "web")
        assert (refused["code"], refused["details"]["field"]) == (409, "public-ip")
        assert "the bridge br0 is the network 'office' already" in refused["message"]

    async def test_a_bridge_that_another_tenant_has(self, node: MemoryNode) -> None:
        await public(node, "web")
        await node.final("images", "import-image", IMAGE, tenant="other")
        refused = await public(node, "web", tenant="other")
        assert (refused["code"], refused["message"]) == (409, "the bridge br0 is a network of another tenant")

    async def test_a_name_that_another_network_has(self, node: MemoryNode) -> None:
        await network(node, "public")
        refused = await public(node, "web")
        assert refused["message"] == "the network 'public' is not the bridge br0, which public addresses are on"
        assert refused["details"]["hint"] == "make one that is: aetherscale network create public-br0 --kind public"
        await network(node, "public-br0", kind="public")
        assert where(await public(node, "web")) == [("public-br0", [])]

    async def test_the_network_named_beside_it(self, node: MemoryNode) -> None:
        await network(node, "public", kind="public")
        refused = await public(node, "web", **{"virtual-network": "public"})
        assert (refused["code"], refused["message"]) == (400, "the network 'public' is named twice")

    async def test_more_ports_than_a_vm_can_have(self, node: MemoryNode) -> None:
        names = [f"n{number}" for number in range(MAX_PORTS)]
        for name in names:
            await network(node, name)
        refused = await public(node, "web", **{"virtual-network": names})
        assert (refused["code"], refused["details"]["field"]) == (400, "public-ip")
        assert len(where(await public(node, "web", **{"virtual-network": names[1:]}))) == MAX_PORTS

    @pytest.mark.parametrize("option", [{"publish": ["8080:80"]}, {"host-loopback": True}])
    async def test_what_is_of_user_mode_networking(self, node: MemoryNode, option: dict[str, Any]) -> None:
        refused = await public(node, "web", **option)
        assert (refused["type"], refused["details"]["field"]) == ("error", next(iter(option)))

    async def test_a_network_that_is_being_deleted(self, node: MemoryNode) -> None:
        await network(node, "public", kind="public")
        go_on = asyncio.Event()

        async def wait(step: str, what: str) -> None:
            await go_on.wait()

        node.networks.interfere = wait
        deleting = asyncio.ensure_future(node.final("network", "delete-network", {"network": "public"}))
        await node.until("NetworkDeleteRequested")
        refused = await public(node, "web")
        assert (refused["code"], refused["message"]) == (409, "the network 'public' is not ready but deleting")
        go_on.set()
        assert (await deleting)["type"] == "result"
