"""Networks and ports when the node or its host is started again, or others have been at work."""

from __future__ import annotations

import asyncio
from typing import Any

from aetherscale.actors.network.model.events import NetworkDown
from aetherscale.kernel.fault import Fault
from tests.support.imaged_node import node
from tests.support.memory_node import MemoryNode
from tests.support.networked_node import network, nothing, until_phase, vm

__all__ = ["node"]


async def downs(node: MemoryNode) -> list[str]:
    return [each.event.what for each in await node.events() if isinstance(each.event, NetworkDown)]


class TestAcrossRestarts:
    async def test_rules_come_before_what_is_pending_and_orphans_go(self, node: MemoryNode) -> None:
        await network(node)
        (port,) = (await vm(node, "web", "lab"))["vm"].ports
        await node.close()
        node.networks.ruled_taps = {"aepforeign00001"}
        node.networks.taps["aepgone00000001"] = ("9" * 16, next(iter(node.networks.bridges)))
        await node.start()
        assert node.networks.ruled_taps == {port.tap}
        assert set(node.networks.taps) == {port.tap}

    async def test_what_was_lost_while_the_node_was_away_is_told_and_there_before_it_serves(
        self, node: MemoryNode
    ) -> None:
        """No timer is waited for: the tap is made anew once its process was found."""
        await network(node)
        (port,) = (await vm(node, "web", "lab"))["vm"].ports
        await node.close()
        del node.networks.taps[port.tap]
        node.networks.flush_rules()
        await node.start()
        assert (set(node.networks.taps), node.networks.ruled_taps) == ({port.tap}, {port.tap})
        await until_phase(node, "network", {"network": "lab"}, "ready")
        assert await downs(node) == [
            "tables removed while the node was away",
            f"the tap {port.tap} of VM web was removed",
        ]

    async def test_a_reboot_is_not_told_as_if_rules_were_removed(self, node: MemoryNode) -> None:
        await network(node)
        await node.close()
        node.host.reboot()
        node.networks.reboot(node.host.boot_id)
        for _ in range(2):
            await node.start()
            await node.until("NetworkDown")
            await until_phase(node, "network", {"network": "lab"}, "ready")
            await node.close()
        await node.start()
        assert await downs(node) == ["the host was started anew"]

    async def test_after_a_reboot_networks_and_ports_come_back_from_the_log_alone(self, node: MemoryNode) -> None:
        lab = await network(node)
        (port,) = (await vm(node, "web", "lab"))["vm"].ports
        await node.close()
        node.host.reboot()
        node.networks.reboot(node.host.boot_id)
        await node.start()
        await node.until("NetworkDown")
        await until_phase(node, "vm", {"vm-id": "web"}, "running")
        assert list(node.networks.bridges.values()) == [lab.id]
        assert (set(node.networks.taps), node.networks.ruled_taps) == ({port.tap}, {port.tap})
        assert "VmStepFailed" not in await node.types(), "a boot that waits for its network costs no attempt"

    async def test_a_node_starts_where_the_rules_are_refused_and_sets_them_with_the_next_look(
        self, node: MemoryNode
    ) -> None:
        await network(node)
        (port,) = (await vm(node, "web", "lab"))["vm"].ports
        await node.close()
        node.networks.ruled_taps.clear()

        async def refuse(step: str, what: str) -> None:
            if step == "replace":
                raise Fault("the kernel refused the rules of networks")

        node.networks.interfere = refuse
        await node.start()
        assert node.node is not None
        assert (await node.final("compute", "vm-info", {"vm-id": "web"}))["vm"].observed == "running"
        assert node.networks.ruled_taps == set()
        node.networks.interfere = nothing
        await node.node.reconcile()
        assert node.networks.ruled_taps == {port.tap}

    async def test_the_taps_of_running_guests_are_put_into_a_bridge_that_is_made_again(self, node: MemoryNode) -> None:
        await network(node)
        (port,) = (await vm(node, "web", "lab"))["vm"].ports
        (bridge,) = node.networks.bridges
        node.networks.lose_bridge(bridge)
        assert node.networks.taps[port.tap][1] == ""
        assert node.node is not None
        await node.node.reconcile()
        await until_phase(node, "network", {"network": "lab"}, "ready")
        assert node.networks.taps[port.tap][1] == bridge

    async def test_what_is_left_of_a_deleted_vm_has_no_ports(self, node: MemoryNode) -> None:
        await network(node)
        made = (await vm(node, "web", "lab"))["vm"]
        await node.final("compute", "delete-vm", {"vm-id": "web", "kill": True})
        hindered = asyncio.Event()

        async def wait(effect: Any) -> None:
            await hindered.wait()

        node.host.disks[made.id] = 1
        node.host.interfere = wait
        assert node.node is not None
        await node.node.reconcile()
        await node.until("VmStrayFound")
        await node.node.reconcile()
        assert node.networks.ruled_taps == set()
        hindered.set()

    async def test_a_bridge_that_somebody_removed_is_made_again_and_that_is_told(self, node: MemoryNode) -> None:
        lab = await network(node)
        node.networks.bridges.clear()
        assert node.node is not None
        await node.node.reconcile()
        await until_phase(node, "network", {"network": "lab"}, "ready")
        assert list(node.networks.bridges.values()) == [lab.id]
        assert [what.endswith("is gone") for what in await downs(node)] == [True]
