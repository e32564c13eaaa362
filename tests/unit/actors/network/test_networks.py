"""Networks, decided by a whole node on a simulated host: what is reserved, shown and refused."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Network, IPv6Network
from typing import Any

import pytest

from aetherscale.actors.network.model.addresses import POOL
from aetherscale.kernel.fault import Fault
from tests.support.imaged_node import node
from tests.support.memory_node import MemoryNode
from tests.support.networked_node import network, nothing, vm

__all__ = ["node"]


class TestNetworks:
    async def test_an_isolated_one_has_an_ipv6_prefix_of_its_own_and_no_ipv4(self, node: MemoryNode) -> None:
        made = await network(node)
        assert (made.phase, made.kind, made.ipv4, made.bridge) == ("ready", "isolated", None, None)
        assert IPv6Network(made.ipv6).subnet_of(IPv6Network("fd00::/8"))
        assert list(node.networks.bridges.values()) == [made.id]

    async def test_it_is_shown_with_its_bridge_on_the_host_and_the_addresses_of_router_and_resolver(
        self, node: MemoryNode
    ) -> None:
        lab = await network(node)
        web = await network(node, "web", kind="nat", **{"ipv4-prefix": "10.9.8.0/24"})
        office = await network(node, "office", kind="bridged", bridge="br0")
        assert {lab.device, web.device} == set(node.networks.bridges)
        assert office.device == "br0"
        prefix = web.ipv6.removesuffix("/64")
        assert (web.router, web.resolver) == (["10.9.8.1", f"{prefix}1"], ["10.9.8.254", f"{prefix}53"])
        assert (lab.router, lab.resolver) == ([], [f"{lab.ipv6.removesuffix('/64')}53"])
        assert (office.router, office.resolver) == ([], [])

    async def test_a_name_that_is_taken_is_refused_and_deletion_is_a_way_only_for_one_without_vms(
        self, node: MemoryNode
    ) -> None:
        await network(node)
        refused = await node.final("network", "create-network", {"name": "lab"})
        assert refused["details"]["hint"] == "take another name, or: aetherscale network delete lab"
        await vm(node, "web", ["lab"])
        refused = await node.final("network", "create-network", {"name": "lab"})
        assert refused["details"]["hint"] == "take another name"

    async def test_a_nat_one_has_a_free_24_that_no_other_network_and_no_route_has(self, node: MemoryNode) -> None:
        first = await network(node, "a", kind="nat")
        assert IPv4Network(first.ipv4).subnet_of(POOL)
        node.networks.routes = {IPv4Network(each): "eth0" for each in POOL.subnets(new_prefix=11)}
        refused = await node.final("network", "create-network", {"name": "b", "kind": "nat"})
        assert (refused["code"], refused["message"]) == (
            409, f"every /24 of {POOL} is taken by a network or a route of the host",
        )  # fmt: skip

    async def test_two_that_ask_at_once_get_different_prefixes(self, node: MemoryNode) -> None:
        made = await asyncio.gather(*(network(node, f"n{number}", kind="nat") for number in range(40)))
        assert len({each.ipv4 for each in made}) == len({each.ipv6 for each in made}) == 40

    async def test_of_two_that_ask_for_one_prefix_one_gets_it_and_the_other_is_told_whose_it_is(
        self, node: MemoryNode
    ) -> None:
        asked = [{"name": name, "kind": "nat", "ipv4-prefix": "10.9.8.0/24"} for name in ("a", "b")]
        ends = await asyncio.gather(*(node.final("network", "create-network", each) for each in asked))
        won, lost = sorted(ends, key=lambda end: end["type"], reverse=True)
        assert won["type"] == "result"
        assert lost["message"].startswith(f"10.9.8.0/24 overlaps the network {won['network'].name!r}, which has ")
        assert lost["details"]["field"] == "ipv4-prefix"

    async def test_a_bridge_of_the_host_is_one_network_and_another_is_told_whose_it_is(self, node: MemoryNode) -> None:
        asked = [{"name": name, "kind": "bridged", "bridge": "br0"} for name in ("a", "b")]
        ends = await asyncio.gather(*(node.final("network", "create-network", each) for each in asked))
        won, lost = sorted(ends, key=lambda end: end["type"], reverse=True)
        assert won["type"] == "result"
        name = won["network"].name
        assert (lost["code"], lost["details"]["field"]) == (409, "bridge")
        assert lost["message"] == f"the network {name!r} is the bridge br0 of the host already"
        assert (await node.final("network", "delete-network", {"network": name}))["type"] == "result"
        again = await node.final("network", "create-network", {"name": "c", "kind": "bridged", "bridge": "br0"})
        assert again["type"] == "result", again

    @pytest.mark.parametrize("prefix", ["10.9.8.0/24", "10.9.8.64/26", "10.9.0.0/16"])
    async def test_a_prefix_that_overlaps_one_of_a_network_is_refused_by_name(
        self, node: MemoryNode, prefix: str
    ) -> None:
        await network(node, "a", **{"ipv4-prefix": "10.9.8.64/26"})
        refused = await node.final("network", "create-network", {"name": "b", "ipv4-prefix": prefix})
        assert (refused["code"], refused["error"]) == (409, "conflict")
        assert f"{prefix} overlaps the network 'a', which has " in refused["message"]

    async def test_a_prefix_that_overlaps_a_route_of_the_host_is_refused_with_its_device(
        self, node: MemoryNode
    ) -> None:
        node.networks.routes = {IPv4Network("10.9.0.0/16"): "tun0"}
        refused = await node.final("network", "create-network", {"name": "b", "ipv4-prefix": "10.9.8.0/24"})
        assert refused["message"] == "10.9.8.0/24 overlaps the host's route to 10.9.0.0/16 (device tun0)"

    @pytest.mark.parametrize(
        ("options", "field"),
        [
            ({"kind": "bridged"}, "bridge"),
            ({"kind": "bridged", "bridge": "aeb0123456789ab"}, "bridge"),
            ({"kind": "bridged", "bridge": 'x"; drop'}, "bridge"),
            ({"kind": "bridged", "bridge": "br0", "ipv4-prefix": "10.9.8.0/24"}, "ipv4-prefix"),
            ({"kind": "bridged", "bridge": "br0", "ipv6-prefix": "fd00::/64"}, "ipv6-prefix"),
            ({"bridge": "br0"}, "bridge"),
            ({"kind": "routed"}, "kind"),
            ({"ipv4-prefix": "10.0.0.0/8"}, "ipv4-prefix"),
            ({"ipv4-prefix": "10.9.8.1/24"}, "ipv4-prefix"),
            ({"ipv4-prefix": "0.0.0.0/0"}, "ipv4-prefix"),
            ({"ipv4-prefix": "224.0.0.0/24"}, "ipv4-prefix"),
            ({"ipv6-prefix": "fd00::/127"}, "ipv6-prefix"),
            ({"ipv6-prefix": "::ffff:10.0.0.0/104"}, "ipv6-prefix"),
            ({"ipv6-prefix": "2001:db8::/64"}, "ipv6-prefix"),
        ],
    )
    async def test_what_cannot_be_is_refused_with_its_field(
        self, node: MemoryNode, options: dict[str, Any], field: str
    ) -> None:
        refused = await node.final("network", "create-network", {"name": "b", **options})
        assert (refused["code"], refused["details"]["field"]) == (400, field), refused
        assert not [each for each in await node.events() if each.stream.startswith("network-")]

    async def test_a_node_that_may_not_says_so_before_anything_is_recorded(self, node: MemoryNode) -> None:
        node.networks.lacking = "the node has no CAP_NET_ADMIN"
        refused = await node.final("network", "create-network", {"name": "b"})
        assert (refused["code"], refused["error"]) == (501, "not-implemented")
        assert refused["message"] == "this node cannot make networks: the node has no CAP_NET_ADMIN"
        assert not [each for each in await node.events() if each.stream.startswith("network-")]

    async def test_one_that_cannot_be_made_is_rolled_back_and_its_name_and_prefix_are_free_again(
        self, node: MemoryNode
    ) -> None:
        async def refuse(step: str, what: str) -> None:
            if step == "bridge":
                raise Fault("the kernel refused to make the bridge", "load the module", retryable=False)

        node.networks.interfere = refuse
        failed = await node.final("network", "create-network", {"name": "a", "ipv4-prefix": "10.9.8.0/24"})
        assert failed["message"] == "the network could not be created: the kernel refused to make the bridge"
        assert failed["details"]["hint"] == "load the module"
        assert (node.networks.bridges, node.networks.ruled_networks) == ({}, set())
        del node.networks.interfere
        node.networks.interfere = nothing
        assert (await network(node, "a", **{"ipv4-prefix": "10.9.8.0/24"})).phase == "ready"
