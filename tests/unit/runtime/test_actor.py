"""The actor with its components on a log and a host in memory."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from aetherscale.actors.compute.component import BOOTS_AT_ONCE
from aetherscale.actors.compute.model import effects
from aetherscale.actors.compute.simulated.host import Behaviour
from aetherscale.eventstore.backend import Outcome
from aetherscale.eventstore.memory import MemoryBackend
from aetherscale.eventstore.store import Append, InDoubt
from aetherscale.kernel.fault import Fault
from tests.support.memory_node import PATIENCE_S, MemoryNode

WEB = {"image": "tiny", "name": "web"}


@pytest.fixture
async def node() -> AsyncIterator[MemoryNode]:
    running = MemoryNode()
    await running.start()
    await running.final("images", "build-image", {"recipe": "tiny"})
    yield running
    await running.close()


def words(chunks: Any) -> list[str]:
    return [chunk.get("status", chunk["type"]) for chunk in chunks]


class TestAnswers:
    async def test_a_create_is_told_step_by_step(self, node: MemoryNode) -> None:
        chunks = await node.ask("compute", "create-vm", WEB)
        told = [word for word in words(chunks) if word != "progress"]
        assert told == ["allocating", "starting", "running", "result"]
        assert chunks[-1]["vm"].phase == "ready"

    async def test_who_asks_for_what_is_under_way_hears_so_at_once(self, node: MemoryNode) -> None:
        node.host.behaviour = lambda vm_id: Behaviour(ready_after_s=None)
        creating = asyncio.ensure_future(node.ask("compute", "create-vm", WEB))
        await node.until("VmBooted")
        vm_id = (await node.final("compute", "vm-info", {"vm-id": "web"}))["vm-id"]
        starting = asyncio.ensure_future(
            node.ask("compute", "start-vm", {"vm-id": "web"}, deadline_us=node.now_us + 50_000)
        )
        chunks = await starting
        assert chunks[0] == {"type": "status", "status": "accepted", "vm-id": vm_id}
        assert chunks[-1]["code"] == 504
        creating.cancel()

    async def test_a_repeat_gets_the_answer_of_the_first(self, node: MemoryNode) -> None:
        first = [chunk for chunk in await node.ask("compute", "create-vm", WEB, key="k") if "step" not in chunk]
        await node.final("compute", "stop-vm", {"vm-id": "web"})
        assert await node.ask("compute", "create-vm", WEB, key="k") == first

    async def test_a_repeat_joins_what_is_under_way(self, node: MemoryNode) -> None:
        answers = await asyncio.gather(*(node.final("compute", "create-vm", WEB, key="k") for _ in range(5)))
        assert all(answer == answers[0] for answer in answers)
        assert (await node.types()).count("VmRequested") == 1

    async def test_a_repeat_after_a_crash_gets_the_answer_too(self, node: MemoryNode) -> None:
        first = await node.final("compute", "create-vm", WEB, key="k")
        await node.close()
        await node.start()
        assert await node.final("compute", "create-vm", WEB, key="k") == first

    async def test_a_repeat_of_a_command_on_a_vm_that_is_gone_gets_its_old_answer(self, node: MemoryNode) -> None:
        await node.final("compute", "create-vm", WEB)
        first = await node.final("compute", "delete-vm", {"vm-id": "web"}, key="k")
        assert await node.final("compute", "delete-vm", {"vm-id": "web"}, key="k") == first
        assert (await node.final("compute", "delete-vm", {"vm-id": "web"}))["code"] == 404

    async def test_a_repeat_of_what_changed_nothing_still_changes_nothing(self, node: MemoryNode) -> None:
        await node.final("compute", "create-vm", WEB)
        assert (await node.final("compute", "start-vm", {"vm-id": "web"}, key="k"))["type"] == "result"
        await node.final("compute", "stop-vm", {"vm-id": "web"})
        assert (await node.final("compute", "start-vm", {"vm-id": "web"}, key="k"))["vm"].phase == "ready"
        assert (await node.final("compute", "vm-info", {"vm-id": "web"}))["vm"].phase == "stopped"

    async def test_a_repeat_of_what_changed_nothing_means_whom_it_meant_then(self, node: MemoryNode) -> None:
        await node.final("compute", "create-vm", WEB)
        first = await node.final("compute", "start-vm", {"vm-id": "web"}, key="k")
        await node.final("compute", "delete-vm", {"vm-id": "web"})
        assert await node.final("compute", "start-vm", {"vm-id": "web"}, key="k") == first, "it is gone"
        await node.final("compute", "create-vm", WEB)
        assert await node.final("compute", "start-vm", {"vm-id": "web"}, key="k") == first, "another has its name"

    async def test_a_key_belongs_to_one_request_of_one_tenant(self, node: MemoryNode) -> None:
        await node.final("compute", "create-vm", WEB, key="k")
        assert (await node.final("compute", "create-vm", {**WEB, "name": "db"}, key="k"))["code"] == 409
        assert (await node.final("compute", "create-vm", WEB, key="k", tenant="other"))["code"] == 404

    async def test_a_refusal_is_decided_anew(self, node: MemoryNode) -> None:
        absent = {"image": "absent", "name": "web"}
        assert (await node.final("compute", "create-vm", absent, key="k"))["code"] == 404
        await node.final("images", "build-image", {"recipe": "tiny", "name": "absent"})
        assert (await node.final("compute", "create-vm", absent, key="k"))["type"] == "result"

    async def test_a_caller_who_waits_no_longer_is_told_that_the_work_goes_on(self, node: MemoryNode) -> None:
        node.host.behaviour = lambda vm_id: Behaviour(ready_after_s=None)
        answer = await node.final("compute", "create-vm", WEB, deadline_us=node.now_us + 50_000)
        assert (answer["code"], answer["error"]) == (504, "deadline")
        assert "goes on" in answer["message"]
        assert (await node.final("compute", "vm-info", {"vm-id": "web"}))["vm"].phase == "running"

    async def test_a_mistyped_task_is_guessed(self, node: MemoryNode) -> None:
        answer = await node.final("compute", "create-vms")
        assert answer["code"] == 404
        assert "create-vm" in answer["details"]["hint"]


class TestOrder:
    async def test_stop_and_start_at_once_end_running(self, node: MemoryNode) -> None:
        await node.final("compute", "create-vm", WEB)
        stop, start = await asyncio.gather(
            node.final("compute", "stop-vm", {"vm-id": "web"}), node.final("compute", "start-vm", {"vm-id": "web"})
        )
        assert stop["type"] == "result"
        assert start["vm"].phase == "ready"

    async def test_kill_overtakes_a_stop_that_the_guest_ignores(self, node: MemoryNode) -> None:
        node.host.behaviour = lambda vm_id: Behaviour(shutdown_s=None)
        await node.final("compute", "create-vm", WEB)
        graceful, kill = await asyncio.gather(
            node.final("compute", "stop-vm", {"vm-id": "web", "grace-s": 3600}),
            node.final("compute", "stop-vm", {"vm-id": "web", "kill": True}),
        )
        assert graceful["vm"].phase == kill["vm"].phase == "stopped"

    async def test_a_deletion_gives_the_guest_the_time_that_it_says_and_not_that_of_a_stop_before(
        self, node: MemoryNode
    ) -> None:
        node.host.behaviour = lambda vm_id: Behaviour(shutdown_s=None)
        await node.final("compute", "create-vm", WEB)
        graceful = asyncio.ensure_future(node.final("compute", "stop-vm", {"vm-id": "web", "grace-s": 3600}))
        await node.until("VmStopRequested")
        async with asyncio.timeout(PATIENCE_S):
            deleted = await node.ask("compute", "delete-vm", {"vm-id": "web", "grace-s": 0.01})
            assert (await graceful)["type"] == "result"
        assert deleted[-1]["vm"].phase == "deleted"
        assert [chunk["waited-s"] for chunk in deleted if chunk.get("status") == "forcing"] == [0.01]

    async def test_one_name_has_one_bearer(self, node: MemoryNode) -> None:
        answers = await asyncio.gather(*(node.final("compute", "create-vm", WEB) for _ in range(10)))
        assert sorted(answer["type"] for answer in answers) == ["error"] * 9 + ["result"]
        assert {answer["code"] for answer in answers if answer["type"] == "error"} == {409}

    async def test_ten_creates_at_once_are_ten_vms(self, node: MemoryNode) -> None:
        answers = await asyncio.gather(*(node.final("compute", "create-vm", {"image": "tiny"}) for _ in range(10)))
        assert len({answer["vm-id"] for answer in answers}) == 10


class TestTenants:
    async def test_nobody_sees_or_touches_the_vms_of_others(self, node: MemoryNode) -> None:
        vm_id = (await node.final("compute", "create-vm", WEB))["vm-id"]
        for reference in (vm_id, "web"):
            for task in ("vm-info", "stop-vm", "delete-vm", "vm-logs"):
                assert (await node.final("compute", task, {"vm-id": reference}, tenant="other"))["code"] == 404
        assert (await node.final("compute", "list-vms", tenant="other"))["count"] == 0


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
        vm_id = (await node.final("compute", "create-vm", WEB))["vm-id"]
        assert node.node is not None
        before = await node.types()
        late = effects.BootVm("boot-1-1", vm_id, 1, 1, 128, "channel")
        await node.node.actors["vm"]._outcome(vm_id, late, effects.EffectFailed("boot-1-1", "too late"))
        assert await node.types() == before


class TestTheLog:
    async def test_a_full_disk_refuses_what_is_new_and_lets_what_ends_things_through(self, node: MemoryNode) -> None:
        await node.final("compute", "create-vm", WEB)
        node.world.full = True
        refused = await node.final("compute", "create-vm", {**WEB, "name": "db"})
        assert (refused["code"], refused["error"], refused["retryable"]) == (507, "storage-full", True)
        assert (await node.final("compute", "list-vms"))["count"] == 1
        assert (await node.final("compute", "stop-vm", {"vm-id": "web"}))["vm"].phase == "stopped"
        assert (await node.final("compute", "delete-vm", {"vm-id": "web"}))["vm"].phase == "deleted"

    async def test_a_commit_in_doubt_is_told_in_the_words_of_the_log(
        self, node: MemoryNode, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        await node.final("compute", "create-vm", WEB)

        async def doubtful(self: MemoryBackend, appends: Sequence[Append]) -> Sequence[Outcome]:
            raise InDoubt("append: the sync failed")

        monkeypatch.setattr(MemoryBackend, "commit", doubtful)
        answer = await node.final("compute", "stop-vm", {"vm-id": "web"})
        assert (answer["code"], answer["message"], answer["retryable"]) == (503, "append: the sync failed", True)
        assert "repeat the request under its key" in answer["details"]["hint"]
        assert node.node is not None
        assert str(await node.node.broken) == "append: the sync failed"
        [process] = node.host.processes.values()
        process.die(None, 9)  # what the host says cannot be recorded, and is no mistake of ours
        await asyncio.sleep(0)
        assert [record for record in caplog.records if record.levelname == "ERROR"] == []

    async def test_causes_are_on_record(self, node: MemoryNode) -> None:
        await node.final("compute", "create-vm", WEB, key="k")
        events = {type(each.event).__name__: each for each in await node.events() if each.stream.startswith("vm-")}
        requested, disk = events["VmRequested"], events["DiskProvisioned"]
        assert (requested.command_id, requested.actor, requested.causation_id) == ("k", "user:test", None)
        assert disk.causation_id == f"host1.epoch1.{requested.seq}"
        assert (disk.actor, disk.correlation_id) == ("aether:compute", "corr")

    async def test_an_image_in_use_is_kept(self, node: MemoryNode) -> None:
        await node.final("compute", "create-vm", WEB)
        assert (await node.final("images", "delete-image", {"image": "tiny"}))["code"] == 409
        await node.final("compute", "delete-vm", {"vm-id": "web"})
        assert (await node.final("images", "delete-image", {"image": "tiny"}))["type"] == "result"
