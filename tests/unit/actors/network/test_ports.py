"""The ports of VMs in networks, decided by a whole node on a simulated host: what is reserved, shown and refused."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest

from aetherscale.actors.compute.model.commands import MAX_ALLOWED, MAX_PORTS
from aetherscale.actors.compute.model.presentation import VM_KIND
from aetherscale.actors.network.model.addresses import ipv6_of
from aetherscale.kernel.fault import Fault
from tests.support.imaged_node import node
from tests.support.memory_node import MemoryNode
from tests.support.networked_node import network, vm

__all__ = ["node"]


class TestPorts:
    async def test_a_port_has_its_addresses_from_the_first_event_and_for_ever(self, node: MemoryNode) -> None:
        lab = await network(node, kind="nat")
        made = (await vm(node, "web", "lab"))["vm"]
        (port,) = made.ports
        assert (port.network, port.network_id) == ("lab", lab.id)
        lease, slaac = port.addresses
        assert (lease.source, slaac.source) == ("lease", "slaac")
        assert IPv4Address(lease.ip) == IPv4Network(lab.ipv4)[2]
        assert IPv6Address(slaac.ip) == ipv6_of(IPv6Network(lab.ipv6), port.mac)
        requested = next(each.event for each in await node.events() if type(each.event).__name__ == "VmRequested")
        assert VM_KIND.descriptions.describe(None, requested).text.endswith(
            f", in the network 'lab' as {lease.ip} and {slaac.ip}"
        )
        assert requested.spec.ports[0].mac == port.mac  # type: ignore[attr-defined]
        await node.final("compute", "stop-vm", {"vm-id": "web", "kill": True})
        again = (await node.final("compute", "start-vm", {"vm-id": "web"}))["vm"]
        assert again.ports == made.ports
        assert node.networks.taps == {port.tap: (made.id, next(iter(node.networks.bridges)))}

    async def test_a_guest_runs_only_when_its_taps_have_rules(self, node: MemoryNode) -> None:
        steps: list[tuple[str, str]] = []

        async def note(step: str, what: str) -> None:
            steps.append((step, what))

        await network(node)
        node.networks.interfere = note
        (port,) = (await vm(node, "web", "lab"))["vm"].ports
        assert steps[-2:] == [("rule", port.tap), ("tap", port.tap)]
        steps.clear()
        await node.final("compute", "delete-vm", {"vm-id": "web", "kill": True})
        assert steps == [("remove", port.tap), ("unrule", port.tap)]
        assert (node.networks.taps, node.networks.ruled_taps) == ({}, set())

    async def test_many_at_once_get_an_address_each(self, node: MemoryNode) -> None:
        await network(node, **{"ipv4-prefix": "10.9.8.0/24"})
        made = await asyncio.gather(*(vm(node, f"v{number}", "lab") for number in range(30)))
        addresses = [each["vm"].ports[0].addresses[0].ip for each in made]
        assert sorted(addresses, key=IPv4Address) == [f"10.9.8.{number}" for number in range(2, 32)]

    async def test_an_address_is_free_again_when_its_vm_is_deleted_and_not_before(self, node: MemoryNode) -> None:
        await network(node, **{"ipv4-prefix": "10.9.8.0/29"})
        for number in range(2, 6):
            assert (await vm(node, f"v{number}", "lab"))["vm"].ports[0].addresses[0].ip == f"10.9.8.{number}"
        refused = await vm(node, "more", "lab")
        assert refused["code"] == 409
        assert refused["message"] == "all 4 addresses of 10.9.8.0/29 that VMs can have are taken"
        await node.final("compute", "stop-vm", {"vm-id": "v3", "kill": True})
        assert (await vm(node, "more", "lab"))["code"] == 409
        await node.final("compute", "delete-vm", {"vm-id": "v3", "kill": True})
        assert (await vm(node, "more", "lab"))["vm"].ports[0].addresses[0].ip == "10.9.8.3"

    async def test_a_port_in_each_of_several_networks_in_the_order_that_was_given(self, node: MemoryNode) -> None:
        for name in ("a", "b", "c"):
            await network(node, name)
        ports = (await vm(node, "web", ["b", "c", "a"]))["vm"].ports
        assert [port.network for port in ports] == ["b", "c", "a"]
        assert len({port.mac for port in ports}) == len({port.tap for port in ports}) == 3

    async def test_a_network_that_is_named_twice_is_refused_and_nothing_is_made(self, node: MemoryNode) -> None:
        lab = await network(node, **{"ipv4-prefix": "10.9.8.0/24"})
        await network(node, "dmz")
        for named, twice in (
            (["lab", "lab"], "lab"),
            (["dmz", "lab", "dmz"], "dmz"),
            (["lab", lab.id], lab.id),
            ([lab.id, "dmz", "lab"], "lab"),
            (["nowhere", "nowhere"], "nowhere"),
        ):
            refused = await vm(node, "web", named)
            assert (refused["code"], refused["details"]["field"]) == (400, "virtual-network"), refused
            assert refused["message"] == f"the network {twice!r} is named twice"
        assert not await node.types()
        assert (await vm(node, "web", "lab"))["vm"].ports[0].addresses[0].ip == "10.9.8.2", "none was taken"

    async def test_a_vm_that_is_too_large_for_the_host_is_refused_before_it_has_an_address(
        self, node: MemoryNode
    ) -> None:
        await network(node, **{"ipv4-prefix": "10.9.8.0/24"})
        node.host.memory_mib = 4096
        refused = await vm(node, "web", "lab", **{"memory-mib": 4097})
        assert (refused["code"], refused["details"]["field"], refused["retryable"]) == (400, "memory-mib", False)
        assert refused["message"].startswith("got 4097, expected at most 4096 MiB of memory for a guest")
        assert not await node.types()
        made = (await vm(node, "web", "lab", **{"memory-mib": 4096}))["vm"]
        assert made.ports[0].addresses[0].ip == "10.9.8.2", "none was taken"

    async def test_a_network_that_is_missing_is_refused_with_the_command_that_makes_it(self, node: MemoryNode) -> None:
        refused = await vm(node, "web", "nowhere")
        assert (refused["code"], refused["details"]["field"]) == (404, "virtual-network")
        assert refused["details"]["hint"].startswith("aetherscale network create nowhere")

    async def test_a_network_of_another_tenant_is_missing(self, node: MemoryNode) -> None:
        await network(node)
        refused = await node.final(
            "compute", "create-vm", {"image": "i", "name": "w", "virtual-network": "lab"}, tenant="other"
        )
        assert refused["code"] == 404

    async def test_one_that_is_being_made_takes_no_vm_yet_since_it_may_be_rolled_back(self, node: MemoryNode) -> None:
        known = asyncio.Event()

        async def refuse(step: str, what: str) -> None:
            if step == "bridge":
                await known.wait()
                raise Fault("the kernel refused to make the bridge", retryable=False)

        node.networks.interfere = refuse
        making = asyncio.ensure_future(node.final("network", "create-network", {"name": "lab"}))
        await node.until("NetworkRequested")
        refused = await vm(node, "web", "lab")
        assert (refused["code"], refused["retryable"]) == (409, True)
        assert refused["message"] == "the network 'lab' is not ready but creating"
        known.set()
        assert (await making)["code"] == 500

    async def test_a_network_in_use_is_not_deleted_and_says_by_whom(self, node: MemoryNode) -> None:
        await network(node)
        await vm(node, "web", "lab")
        await vm(node, "db", "lab")
        refused = await node.final("network", "delete-network", {"network": "lab"})
        assert refused["message"] == "the network 'lab' is in use by 2 VM(s): db, web"
        for name in ("db", "web"):
            await node.final("compute", "delete-vm", {"vm-id": name, "kill": True})
        gone = await node.final("network", "delete-network", {"network": "lab"})
        assert gone["network"].phase == "deleted"
        assert (node.networks.bridges, node.networks.ruled_networks) == ({}, set())

    async def test_of_a_vm_and_a_deletion_of_its_network_that_race_one_is_refused(self, node: MemoryNode) -> None:
        for number in range(20):
            await network(node, f"n{number}")
            made, gone = await asyncio.gather(
                vm(node, f"v{number}", f"n{number}"),
                node.final("network", "delete-network", {"network": f"n{number}"}),
            )
            assert {made["type"], gone["type"]} == {"result", "error"}, (made, gone)

    async def test_more_networks_and_addresses_than_a_vm_can_have_are_refused_with_their_field(
        self, node: MemoryNode
    ) -> None:
        await network(node)
        refused = await vm(node, "web", ["lab"] * (MAX_PORTS + 1))
        assert (refused["code"], refused["details"]["field"]) == (400, "virtual-network")
        refused = await vm(node, "web", ["lab"] * 1000)
        assert (refused["code"], refused["details"]["field"]) == (400, "virtual-network")
        refused = await vm(node, "web", "lab", **{"allow-addresses": ["10.1.0.0/16"] * (MAX_ALLOWED + 1)})
        assert (refused["code"], refused["details"]["field"]) == (400, "allow-addresses")
        names = [(await network(node, f"n{number}")).name for number in range(MAX_PORTS)]
        assert len((await vm(node, "web", names))["vm"].ports) == MAX_PORTS

    @pytest.mark.parametrize("text", ["0.0.0.0/0", "::/0", "10.0.0.1/8", "224.0.0.1", "fe80::1", "lab", "10.1.1.1/33"])
    async def test_an_address_that_nobody_may_send_from_is_not_allowed(self, node: MemoryNode, text: str) -> None:
        await network(node)
        refused = await vm(node, "web", "lab", **{"allow-addresses": [text]})
        assert (refused["code"], refused["details"]["field"]) == (400, "allow-addresses"), refused

    async def test_addresses_are_not_allowed_to_a_vm_without_a_network(self, node: MemoryNode) -> None:
        refused = await node.final(
            "compute", "create-vm", {"name": "web", "image": "tiny", "allow-addresses": ["10.1.2.3"]}
        )
        assert (refused["code"], refused["details"]["field"]) == (400, "allow-addresses"), refused

    async def test_what_is_allowed_is_kept_in_its_canonical_form(self, node: MemoryNode) -> None:
        await network(node)
        allowed = ["172.17.0.0/16", "192.0.2.7", "FD12:0::/64"]
        made = (await vm(node, "web", "lab", **{"allow-addresses": allowed}))["vm"]
        assert made.ports[0].allowed == ["172.17.0.0/16", "192.0.2.7/32", "fd12::/64"]

    @pytest.mark.parametrize("text", ["10.9.8.1", "10.9.8.6", "10.9.8.3", "10.9.8.0/29", "10.9.8.4/31", "10.9.0.0/16"])
    async def test_an_address_of_the_network_itself_is_not_allowed(self, node: MemoryNode, text: str) -> None:
        """It is the router's, the resolver's, or that of one port."""
        await network(node, "lab", **{"ipv4-prefix": "10.9.8.0/29"})
        refused = await vm(node, "web", "lab", **{"allow-addresses": ["192.0.2.7", text]})
        assert (refused["code"], refused["details"]["field"]) == (400, "allow-addresses"), refused
        assert "has addresses of the network 'lab'" in refused["message"]

    async def test_an_address_of_ipv6_of_the_network_itself_is_not_allowed(self, node: MemoryNode) -> None:
        lab = await network(node)
        refused = await vm(node, "web", "lab", **{"allow-addresses": [lab.ipv6]})
        assert (refused["code"], refused["details"]["field"]) == (400, "allow-addresses"), refused

    async def test_a_vm_between_two_networks_may_have_the_addresses_of_each_in_the_other(
        self, node: MemoryNode
    ) -> None:
        for name, prefix in (("lab", "10.9.8.0/29"), ("dmz", "10.9.9.0/29")):
            await network(node, name, **{"ipv4-prefix": prefix})
        allowed = ["10.9.8.0/29", "10.9.9.0/29", "192.0.2.7/32"]
        made = (await vm(node, "web", ["lab", "dmz"], **{"allow-addresses": allowed}))["vm"]
        assert [port.allowed for port in made.ports] == [
            ["10.9.9.0/29", "192.0.2.7/32"],
            ["10.9.8.0/29", "192.0.2.7/32"],
        ]
