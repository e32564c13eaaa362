"""Forwards of ports of the host to VMs, decided by a whole node on a simulated host."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.support.memory_node import MemoryNode
from tests.support.ruled_node import firewall, group, node, vm

__all__ = ["node"]

WEB_RULE = "in:tcp:80"


class TestForwards:
    async def test_one_leads_to_a_vm_in_a_nat_network(self, node: MemoryNode) -> None:
        vm_id = (await vm(node, network=["inner", "lab"]))["vm-id"]
        added = await firewall(node, "add-forward", host_port=8080, guest_port=80)
        [forward] = added["vm"].forwards
        assert (forward.protocol, forward.address, forward.host_port, forward.guest_port) == ("tcp", "", 8080, 80)
        assert node.networks.rules[vm_id].forwards == (forward,)
        removed = await firewall(node, "remove-forward", host_port=8080)
        assert removed["vm"].forwards == []
        assert node.networks.rules == {}

    async def test_none_leads_elsewhere(self, node: MemoryNode) -> None:
        await vm(node, network="inner")
        await vm(node, "user", network=None)
        for name, where in (("vm", "; it is in inner (isolated)"), ("user", "")):
            refused = await firewall(node, "add-forward", name, host_port=8080, guest_port=80)
            assert (refused["code"], refused["message"]) == (
                409, f"the VM {name!r} is in no network of the kind nat, so that the host has no way to it{where}"
            )  # fmt: skip

    async def test_one_of_a_family_that_the_vm_has_not_leads_nowhere(self, node: MemoryNode) -> None:
        await node.final("network", "create-network", {"name": "six", "kind": "nat", "ipv4-prefix": "none"})
        await vm(node, network="six")
        refused = await firewall(node, "add-forward", host_port=80, guest_port=80, host_address="192.0.2.1")
        assert refused["code"] == 409
        assert refused["message"].startswith("the VM 'vm' is in no network of the kind nat with IPv4, so that the host")
        added = await firewall(node, "add-forward", host_port=80, guest_port=80, host_address="2001:DB8::0:1")
        assert added["vm"].forwards[0].address == "2001:db8::1"

    async def test_a_port_of_the_host_is_one_vms(self, node: MemoryNode) -> None:
        await vm(node)
        await vm(node, "other")
        await vm(node, "user", network=None, publish=["9090:90"])
        assert (await firewall(node, "add-forward", host_port=8080, guest_port=80))["type"] == "result"
        refused = await firewall(node, "add-forward", "other", host_port=8080, guest_port=8, host_address="192.0.2.1")
        assert (refused["code"], refused["message"]) == (409, "the VM 'vm' has the port 8080/tcp of the host")
        assert refused["details"]["hint"] == "take another port of the host, or remove that forward"
        refused = await firewall(node, "add-forward", "other", host_port=9090, guest_port=8)
        assert (refused["code"], refused["message"]) == (409, "the VM 'user' has the port 9090/tcp of the host")
        assert refused["details"]["hint"] == "take another port of the host, or delete that VM"
        refused = await vm(node, "late", network=None, publish=["8080:80"])
        assert (refused["code"], refused["message"]) == (409, "the VM 'vm' has the port 8080/tcp of the host")
        added = await firewall(node, "add-forward", "other", host_port=8080, guest_port=8, protocol="udp")
        assert added["type"] == "result"

    async def test_of_two_that_race_for_a_port_one_is_refused(self, node: MemoryNode) -> None:
        await vm(node)
        await vm(node, "other")
        answers = await asyncio.gather(
            *(firewall(node, "add-forward", name, host_port=8080, guest_port=80) for name in ("vm", "other"))
        )
        assert sorted(each["type"] for each in answers) == ["error", "result"]

    async def test_what_the_host_listens_at_is_its_own(self, node: MemoryNode) -> None:
        await vm(node)
        node.host.taken_ports.add("tcp-22")
        refused = await firewall(node, "add-forward", host_port=22, guest_port=22)
        assert (refused["code"], refused["message"], refused["details"]["field"]) == (
            409, "a program of the host listens at the port 22/tcp, which a forward would take from it", "host-port"
        )  # fmt: skip

    async def test_the_same_once_more_is_no_event(self, node: MemoryNode) -> None:
        await vm(node)
        first = await firewall(node, "add-forward", host_port=8080, guest_port=80, host_address="")
        before = len(await node.events())
        again = await firewall(node, "add-forward", host_port=8080, guest_port=80)
        assert again["vm"].forwards == first["vm"].forwards
        assert len(await node.events()) == before

    @pytest.mark.parametrize(
        "address",
        ["127.0.0.1", "::1", "0.0.0.0", "::", "224.0.0.1", "ff02::1",  # noqa: S104
         "0.1.2.3", "fe80::1", "::ffff:1.2.3.4", "240.0.0.1",
         "2001:db8::1%x", "x", "1.2.3", "1.2.3.4/32", " 1.2.3.4", "1.2.3.4; drop"],
    )  # fmt: skip
    async def test_an_address_that_no_host_is_reached_at_is_refused(self, node: MemoryNode, address: str) -> None:
        await vm(node)
        refused = await firewall(node, "add-forward", host_port=8080, guest_port=80, host_address=address)
        assert (refused["code"], refused["details"]["field"]) == (400, "host-address")

    @pytest.mark.parametrize("ports", [(0, 80), (65536, 80), (80, 0), (80, 65536), (-1, 80), ("80", 80), (80.5, 80)])
    async def test_ports_that_are_none_are_refused(self, node: MemoryNode, ports: Any) -> None:
        await vm(node)
        assert (await firewall(node, "add-forward", host_port=ports[0], guest_port=ports[1]))["code"] == 400

    async def test_one_is_named_in_one_way(self, node: MemoryNode) -> None:
        await vm(node)
        assert (await firewall(node, "remove-forward"))["code"] == 400
        assert (await firewall(node, "remove-forward", forward="1" * 16, host_port=80))["code"] == 400
        assert (await firewall(node, "remove-forward", forward="1" * 16))["code"] == 404
        assert (await firewall(node, "remove-forward", forward="x"))["code"] == 400

    async def test_a_list_says_what_is_let_in(self, node: MemoryNode) -> None:
        await group(node, "http", WEB_RULE)
        made = await vm(node)
        other = await vm(node, "other", groups=["http", "ssh"])
        await firewall(node, "add-forward", "other", host_port=80, guest_port=80)
        await firewall(node, "add-forward", "other", host_port=81, guest_port=81)
        await firewall(node, "add-forward", host_port=8080, guest_port=80)
        *items, last = await node.ask("firewall", "list-forwards")
        assert [(i["vm-id"], i["name"], i["forward"].host_port, i["let-in"], i["rule"]) for i in items] == [
            (other["vm-id"], "other", 80, True, "in:tcp:80"),
            (other["vm-id"], "other", 81, False, "in:tcp:81"),
            (made["vm-id"], "vm", 8080, False, "in:tcp:80"),
        ]
        assert last["count"] == 3
        *items, last = await node.ask("firewall", "list-forwards", {"vm-id": "vm"})
        assert [each["forward"].host_port for each in items] == [8080]
        assert (await firewall(node, "list-forwards", "nowhere"))["code"] == 404
        assert [each["type"] for each in await node.ask("firewall", "list-forwards", tenant="blue")] == ["result"]

    async def test_a_list_says_from_where_it_is_let_in_and_of_which_family(self, node: MemoryNode) -> None:
        members = "in:tcp:80:from=group/"
        await group(node, "some", f"{members}web", "in:tcp:81:from=192.0.2.0/24", "in:tcp:81:from=2001:db8::/32")
        await group(node, "more", "in:tcp:82:from=2001:db8::/32", "in:tcp:83", "in:tcp:83:from=192.0.2.0/24")
        await vm(node, groups=["some", "more"])
        for number, address in ((80, ""), (81, ""), (82, "198.51.100.1"), (83, "")):
            await firewall(node, "add-forward", host_port=number, guest_port=number, host_address=address)
        *items, _ = await node.ask("firewall", "list-forwards")
        assert [(each["forward"].host_port, each["let-in"], each["from"]) for each in items] == [
            (80, False, []), (81, True, ["192.0.2.0/24", "2001:db8::/32"]), (82, False, []), (83, True, []),
        ]  # fmt: skip
