"""The actor on a log and a host in memory: answers, their order, tenants, and faults of the log."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import pytest

from aetherscale.actors.compute.simulated.host import Behaviour
from aetherscale.eventstore.backend import Outcome
from aetherscale.eventstore.memory import MemoryBackend
from aetherscale.eventstore.store import Append, InDoubt, Reading
from tests.support.memory_fixtures import WEB, node, words
from tests.support.memory_node import PATIENCE_S, MemoryNode

__all__ = ["node"]


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

    async def test_a_first_command_costs_no_trip_to_the_log_but_its_append(
        self, node: MemoryNode, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[object] = []
        ask = MemoryBackend.ask

        async def noting(self: MemoryBackend, question: Callable[[Reading], object]) -> object:
            asked.append(question)
            return await ask(self, question)

        monkeypatch.setattr(MemoryBackend, "ask", noting)
        await node.final("compute", "create-vm", WEB, key="first")
        assert not asked
        await node.final("compute", "create-vm", WEB, key="first")
        assert asked

    async def test_a_repeat_that_would_be_refused_by_now_gets_the_answer_of_the_first(self, node: MemoryNode) -> None:
        first = await node.final("compute", "create-vm", WEB, key="k")
        await node.final("compute", "delete-vm", {"vm-id": "web"})
        await node.final("images", "delete-image", {"image": WEB["image"]})
        assert (await node.final("compute", "create-vm", WEB))["code"] == 404
        assert await node.final("compute", "create-vm", WEB, key="k") == first

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
