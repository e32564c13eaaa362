"""The actor and its host, in memory: faults of the host, deaths, reboots, and VMs that are adopted."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from aetherscale.actors.compute.component import BOOTS_AT_ONCE
from aetherscale.actors.compute.model import effects
from aetherscale.actors.compute.simulated.host import Behaviour
from aetherscale.kernel.failures import EffectFailed
from aetherscale.kernel.fault import Fault
from tests.support.memory_fixtures import WEB, node, words
from tests.support.memory_node import PATIENCE_S, MemoryNode

__all__ = ["node"]


class TestTheHost:
    async def test_a_create_that_fails_for_good_leaves_nothing(self, node: MemoryNode) -> None:
        node.host.behaviour = lambda vm_id: Behaviour(start_failure="qemu: no such cpu")

        async def refuse(effect: Any) -> None:
            if isinstance(effect, effects.BootVm):
                raise Fault("there is not enough memory", "stop another VM", retryable=False)

        node.host.interfere = refuse
        answer = await node.final("compute", "create-vm", WEB)
        assert (answer["type"], answer["details"]["phase"]) == ("error", "booting")
        assert answer["details"]["hint"] == "stop another VM"
        assert (await node.final("compute", "list-vms"))["count"] == 0

        async def allow(effect: Any) -> None:
            return

        node.host.interfere = allow
        node.host.behaviour = lambda vm_id: Behaviour()
        assert (await node.final("compute", "create-vm", WEB))["vm"].phase == "ready"

    async def test_a_fault_makes_the_node_look_at_its_host_at_once(self, node: MemoryNode) -> None:
        node.host.disks["1eedfeedfeedfeed"] = 1

        async def refuse(effect: Any) -> None:
            if isinstance(effect, effects.BootVm):
                raise Fault("there is not enough memory", retryable=False)

        node.host.interfere = refuse
        await node.final("compute", "create-vm", WEB)
        await node.until("VmCollected")
        assert node.host.disks.keys() == set()

    @pytest.mark.our_mistake
    async def test_a_driver_that_breaks_is_a_failure_of_the_step(
        self, node: MemoryNode, caplog: pytest.LogCaptureFixture
    ) -> None:
        broken = 0

        async def break_once(effect: Any) -> None:
            nonlocal broken
            broken += 1
            if broken == 1:
                raise ZeroDivisionError

        node.host.interfere = break_once
        node.now_us -= 3_600_000_000
        with caplog.at_level(logging.ERROR):
            chunks = await node.ask("compute", "create-vm", WEB)
        assert "retrying" in words(chunks)
        assert chunks[-1]["type"] == "result"
        assert "ZeroDivisionError" in caplog.text

    async def test_what_was_owed_when_the_node_died_is_done_by_the_next_one(self, node: MemoryNode) -> None:
        reached = asyncio.Event()

        async def hang(effect: Any) -> None:
            reached.set()
            await asyncio.Event().wait()

        async def allow(effect: Any) -> None:
            return

        node.host.interfere = hang
        caller = asyncio.ensure_future(node.ask("compute", "create-vm", WEB, key="k"))
        await reached.wait()
        caller.cancel()
        await node.close()
        node.host.interfere = allow
        await node.start()
        assert (await node.final("compute", "create-vm", WEB, key="k"))["vm"].phase == "ready"

    async def test_running_vms_are_adopted_and_lost_ones_are_noticed(self, node: MemoryNode) -> None:
        web = (await node.final("compute", "create-vm", {**WEB, "restart": "never"}))["vm-id"]
        db = (await node.final("compute", "create-vm", {**WEB, "name": "db", "restart": "never"}))["vm-id"]
        await node.close()
        process = node.host.live(db)
        assert process is not None
        process.die(None, 9)
        await node.start()
        assert (await node.final("compute", "vm-info", {"vm-id": web}))["vm"].phase == "ready"
        lost = (await node.final("compute", "vm-info", {"vm-id": db}))["vm"]
        assert (lost.phase, lost.exit.reason) == ("failed", "unknown")

    async def test_after_a_reboot_of_the_host_vms_with_autostart_come_back(self, node: MemoryNode) -> None:
        await node.final("compute", "create-vm", WEB)
        await node.final("compute", "create-vm", {**WEB, "name": "db", "autostart": False})
        await node.close()
        node.host.reboot()
        await node.start()
        assert (await node.final("compute", "start-vm", {"vm-id": "web"}))["vm"].phase == "ready"
        assert (await node.final("compute", "vm-info", {"vm-id": "db"}))["vm"].phase == "stopped"
        assert (await node.types()).count("VmStartRequested") == 0

    async def test_after_a_reboot_vms_come_back_in_order_and_a_few_at_a_time(self, node: MemoryNode) -> None:
        names = [f"vm-{number}" for number in range(3 * BOOTS_AT_ONCE)]
        made = [(await node.final("compute", "create-vm", {**WEB, "name": name}))["vm-id"] for name in names]
        await node.close()
        node.host.reboot()
        begun: list[str] = []
        under_way = most = 0
        enough, go_on = asyncio.Event(), asyncio.Event()

        async def slow(effect: effects.ComputeEffect) -> None:
            nonlocal under_way, most
            begun.append(effect.vm_id)
            under_way += 1
            most = max(most, under_way)
            if under_way == BOOTS_AT_ONCE:
                enough.set()
            await go_on.wait()
            under_way -= 1

        node.host.interfere = slow
        await node.start()
        async with asyncio.timeout(PATIENCE_S):
            await enough.wait()
        await asyncio.sleep(0)
        assert begun == made[:BOOTS_AT_ONCE]
        go_on.set()
        for vm_id in made:
            assert (await node.final("compute", "start-vm", {"vm-id": vm_id}))["vm"].phase == "ready"
        assert begun == made
        assert most == BOOTS_AT_ONCE

    async def test_what_died_unseen_is_noticed_by_the_next_look_and_only_once(self, node: MemoryNode) -> None:
        vm_id = (await node.final("compute", "create-vm", {**WEB, "restart": "never"}))["vm-id"]
        process = node.host.live(vm_id)
        assert process is not None
        assert node.node is not None
        process.observe = None
        process.die(None, 9)
        await node.final("compute", "create-vm", {**WEB, "name": "db"})
        await asyncio.gather(node.node.reconcile(), node.node.reconcile())
        assert (await node.final("compute", "vm-info", {"vm-id": vm_id}))["vm"].phase == "failed"
        assert (await node.types()).count("VmExited") == 1
        assert (await node.types()).count("VmAdopted") == 0

    async def test_an_answer_that_is_no_longer_awaited_changes_nothing(self, node: MemoryNode) -> None:
        node.host.behaviour = lambda vm_id: Behaviour(shutdown_s=None)
        vm_id = (await node.final("compute", "create-vm", WEB))["vm-id"]
        stopping = asyncio.ensure_future(node.final("compute", "stop-vm", {"vm-id": "web", "grace-s": 3600}))
        await node.until("VmStopRequested")
        assert node.node is not None
        before = await node.types()
        late = effects.BootVm("boot-1-1", vm_id, 1, 1, 128, "channel")
        await node.node.actors["vm"]._outcome(vm_id, late, EffectFailed("boot-1-1", "too late"))
        assert await node.types() == before
        assert (await node.final("compute", "stop-vm", {"vm-id": "web", "kill": True}))["type"] == "result"
        assert (await stopping)["type"] == "result"
