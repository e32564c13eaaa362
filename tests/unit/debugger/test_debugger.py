"""The log as the debugger: replay, diff, why and the catalogue, on logs that a whole node in memory has written."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from aetherscale.actors.compute.simulated.host import Behaviour
from aetherscale.components import kinds
from aetherscale.debugger.diff import diff
from aetherscale.debugger.events import catalogue, event_json, type_named
from aetherscale.debugger.past import PastLog
from aetherscale.debugger.why import Why, explain
from aetherscale.eventstore.codec import Codec
from aetherscale.eventstore.reader import LogReader
from aetherscale.kernel.errors import Reason, Refused
from aetherscale.kernel.fault import Fault
from aetherscale.kernel.messages import event_id
from aetherscale.kernel.registry import event_types
from aetherscale.kernel.times import to_rfc3339
from tests.support.memory_fixtures import WEB, node
from tests.support.memory_node import PATIENCE_S, MemoryNode

__all__ = ["node"]


def debugging(node: MemoryNode) -> PastLog:
    """What the debugger sees of the node's log."""
    assert node.store is not None
    return PastLog(LogReader(node.store.access, Codec(event_types(kinds())).decoding), kinds(), is_proved=True)


async def why(node: MemoryNode, name: str, *, kind: str = "vm", at: str | None = None, whole: bool = False) -> Why:
    log = debugging(node)
    past = await log.state_at(await log.position(at))
    wanted = next(each for each in kinds() if each.name == kind)
    return await explain(log, past, wanted, past.find(kind, "default", name), whole=whole)


def told(found: Why) -> list[list[str]]:
    return [[sentence.text for sentence in chapter.sentences] for chapter in found.chapters]


async def until_phase(node: MemoryNode, phase: str) -> None:
    """Wait until the VM `web` is in a phase: looked at with whatever gets into the log."""
    assert node.log is not None
    async with asyncio.timeout(PATIENCE_S), aclosing(node.log.subscribe(0)) as pages:
        async for _ in pages:
            [view] = [chunk["vm"] for chunk in await node.ask("compute", "list-vms") if chunk["type"] == "item"]
            if view.phase == phase:
                return


class TestReplay:
    async def test_the_present_is_what_the_node_lists(self, node: MemoryNode) -> None:
        for name in ("web", "db", "app"):
            await node.final("compute", "create-vm", {"image": "tiny", "name": name, "labels": {"of": name}})
        await node.final("compute", "stop-vm", {"vm-id": "db"})
        await node.final("compute", "delete-vm", {"vm-id": "app"})
        for deleted in (False, True):
            listed = [c["vm"] for c in await node.ask("compute", "list-vms", {"all": deleted}) if c["type"] == "item"]
            log = debugging(node)
            past = await log.state_at(await log.head())
            assert past.views("vm", "default", deleted=deleted) == listed
            assert len(listed) == (3 if deleted else 2)

    async def test_every_moment_of_the_past_is_what_the_node_listed_then(self, node: MemoryNode) -> None:
        moments: list[tuple[int, list[Any]]] = []
        for task in ("create-vm", "stop-vm", "start-vm", "restart-vm", "delete-vm"):
            await node.final("compute", task, WEB if task == "create-vm" else {"vm-id": "web"})
            listed = [c["vm"] for c in await node.ask("compute", "list-vms") if c["type"] == "item"]
            moments.append((len(await node.events()), listed))
        log = debugging(node)
        for position, listed in moments:
            assert (await log.state_at(position)).views("vm", "default") == listed

    async def test_the_objects_of_another_tenant_are_not_shown(self, node: MemoryNode) -> None:
        await node.final("compute", "create-vm", WEB)
        log = debugging(node)
        past = await log.state_at(await log.head())
        assert past.views("vm", "other") == []
        with pytest.raises(Refused, match="knows no vm 'web'"):
            past.find("vm", "other", "web")

    async def test_the_beginning_of_an_id_means_the_object_that_alone_has_it(self, node: MemoryNode) -> None:
        made = await node.final("compute", "create-vm", WEB)
        log = debugging(node)
        past = await log.state_at(await log.head())
        whole = made["vm-id"]
        assert past.find("vm", "default", whole[:4]).id == past.find("vm", "default", whole[:15]).id == whole
        for reference in (whole[:3], whole[:1]):
            with pytest.raises(Refused, match="expected a name, or at least 4 characters of an id") as refused:
                past.find("vm", "default", reference)
            assert refused.value.reason == Reason.BAD_REQUEST
        for reference in ("0" * 15, whole[:8] + "x"):
            with pytest.raises(Refused, match="the log knows no vm"):
                past.find("vm", "default", reference)
        with pytest.raises(Refused, match="the log knows no vm"):
            past.find("vm", "other", whole[:8])
        registry = past.registries["vm"]
        aggregate = registry.aggregates[whole]
        like = replace(aggregate, id=whole[:10] + "abcdef")
        registry.aggregates[like.id] = like
        with pytest.raises(Refused) as refused:
            past.find("vm", "default", whole[:10])
        assert refused.value.reason == Reason.BAD_REQUEST
        ids = sorted([whole, like.id])
        assert refused.value.message == f"{whole[:10]!r} is the beginning of 2 ids: web ({ids[0]}), web ({ids[1]})"
        assert past.find("vm", "default", whole).id == whole

    async def test_a_moment_is_a_number_or_a_time(self, node: MemoryNode) -> None:
        await node.final("compute", "create-vm", WEB)
        events = await node.events()
        log = debugging(node)
        assert await log.position(None) == len(events)
        assert await log.position("0") == 0
        assert await log.position("3") == 3
        assert await log.position(to_rfc3339(events[3].time_us)) >= 4
        assert await log.position(to_rfc3339(events[3].time_us - 1)) <= 3
        assert await log.position("2001-01-01") == 0
        for wrong in (str(len(events) + 1), "someday", "-1", "", "9" * 400, "1e3", "٣"):
            with pytest.raises(Refused) as refused:
                await log.position(wrong)
            assert refused.value.reason == Reason.BAD_REQUEST


class TestDiff:
    async def test_it_names_what_is_new_and_each_field_that_changed(self, node: MemoryNode) -> None:
        await node.final("compute", "create-vm", WEB)
        before = len(await node.events())
        await node.final("compute", "stop-vm", {"vm-id": "web"})
        await node.final("compute", "create-vm", {"image": "tiny", "name": "db"})
        log = debugging(node)
        found = diff(await log.state_at(before), await log.state_at(await log.head()), "default")
        assert [(change.name, change.change) for change in found.changes] == [("db", "added"), ("web", "changed")]
        changed = {field.field: (field.before, field.after) for field in found.changes[1].fields}
        assert changed["phase"] == ("ready", "stopped")
        assert changed["observed"] == ("running", "exited")
        assert "name" not in changed
        assert "image" not in changed

    async def test_a_deletion_is_a_change_of_phase_and_nothing_is_no_change(self, node: MemoryNode) -> None:
        await node.final("compute", "create-vm", WEB)
        before = len(await node.events())
        await node.final("compute", "delete-vm", {"vm-id": "web"})
        log = debugging(node)
        now = await log.state_at(await log.head())
        found = diff(await log.state_at(before), now, "default")
        assert diff(now, now, "default").changes == []
        (change,) = found.changes
        assert next(f.after for f in change.fields if f.field == "phase") == "deleted"


class TestWhy:
    async def test_a_ready_vm_is_so_because_somebody_asked_for_it(self, node: MemoryNode) -> None:
        await node.final("compute", "create-vm", WEB, key="the-key")
        found = await why(node, "web")
        (chapter,) = found.chapters
        assert (chapter.actor, chapter.command_id, chapter.role) == ("user:test", "the-key", "request")
        texts = [sentence.text for sentence in chapter.sentences]
        assert texts[0].startswith("asked to create the VM 'web': image 'tiny', 1 CPU(s), 512 MiB")
        assert texts[1].startswith("its disk was created")
        assert texts[2].startswith("QEMU was started: run 1")
        assert texts[3] == "the guest reported that it was ready, over its ready channel"
        assert found.summary == "its guest has reported that it is ready"
        assert found.left_out == 0

    async def test_the_image_is_mentioned_with_whoever_asked_for_it(self, node: MemoryNode) -> None:
        await node.final("compute", "create-vm", WEB)
        (mention,) = (await why(node, "web")).mentions
        assert (mention.kind, mention.name) == ("image", "tiny")
        assert "user:test asked to build the image 'tiny'" in mention.text

    async def test_a_network_is_mentioned_with_what_was_lost_since_the_vm_is_there(self, node: MemoryNode) -> None:
        await node.final("network", "create-network", {"name": "lab"})
        assert node.node is not None
        node.networks.bridges.clear()
        await node.node.reconcile()
        await node.until("NetworkDown")
        (port,) = (await node.final("compute", "create-vm", {**WEB, "virtual-network": "lab"}))["vm"].ports
        lab, _ = (await why(node, "web")).mentions
        assert (lab.kind, lab.name) == ("network", "lab")
        assert "user:test asked to create the network 'lab'" in lab.text
        assert "lost on the host" not in lab.text
        del node.networks.taps[port.tap]
        await node.node.reconcile()
        lab, _ = (await why(node, "web")).mentions
        assert f"Z a part of it was lost on the host: the tap {port.tap} of VM web was removed" in lab.text

    async def test_what_it_uses_now_is_mentioned_and_of_a_deleted_one_what_it_was_requested_with(
        self, node: MemoryNode
    ) -> None:
        async def mentioned() -> list[str]:
            return [mention.name for mention in (await why(node, "web")).mentions]

        for name in ("lab", "dmz"):
            await node.final("network", "create-network", {"name": name})
        await node.final("firewall", "create-group", {"name": "http"})
        await node.final("compute", "create-vm", {**WEB, "virtual-network": "lab"})
        await node.final("compute", "attach-vm", {"vm-id": "web", "network": "dmz"})
        assert (await node.final("compute", "detach-vm", {"vm-id": "web", "network": "lab"}))["type"] == "result"
        assert (await node.final("firewall", "attach-group", {"vm-id": "web", "group": "http"}))["type"] == "result"
        assert sorted(await mentioned()) == ["dmz", "http", "tiny"]
        await node.final("compute", "delete-vm", {"vm-id": "web", "kill": True})
        assert sorted(await mentioned()) == ["lab", "tiny"]

    async def test_only_the_last_request_and_the_origin_are_told(self, node: MemoryNode) -> None:
        await node.final("compute", "create-vm", WEB, key="first")
        for _ in range(3):
            await node.final("compute", "stop-vm", {"vm-id": "web"})
            await node.final("compute", "start-vm", {"vm-id": "web"})
        await node.final("compute", "stop-vm", {"vm-id": "web", "kill": True}, key="last")
        found = await why(node, "web")
        assert [chapter.command_id for chapter in found.chapters] == ["first", "last"]
        assert told(found)[1] == ["asked to stop it at once, without asking the guest", "its process ended"]
        assert not found.chapters[0].complete
        events = [each for each in await node.events() if each.stream == f"vm-{found.id}"]
        assert found.left_out == len(events) - 3
        assert sum(map(len, told(await why(node, "web", whole=True)))) == len(events)

    async def test_a_request_that_was_still_under_way_is_told_too(self, node: MemoryNode) -> None:
        await node.final("compute", "create-vm", WEB)
        await asyncio.gather(
            node.final("compute", "stop-vm", {"vm-id": "web"}, key="stop"),
            node.final("compute", "start-vm", {"vm-id": "web"}, key="start"),
        )
        found = await why(node, "web")
        assert [chapter.command_id for chapter in found.chapters][1:] == ["stop", "start"]
        assert told(found)[2][0] == "asked to start it, after the stop that was under way"
        assert found.summary == "its guest has reported that it is ready"

    async def test_a_crash_is_told_with_what_the_restart_policy_did(self, node: MemoryNode) -> None:
        await node.final("compute", "create-vm", {**WEB, "restart": "never"})
        process = node.host.live((await why(node, "web")).id)
        assert process is not None
        process.die(None, 9)
        await until_phase(node, "failed")
        found = await why(node, "web")
        assert found.chapters[-1].role == "turn"
        assert found.chapters[-1].actor == "aether:compute"
        assert told(found)[-1] == [
            "run 1 ended: QEMU was ended by signal 9; restart policy 'never' does not start it again"
        ]
        assert found.summary == "running: QEMU was ended by signal 9"

    async def test_a_guest_that_shut_itself_down_is_no_request(self, node: MemoryNode) -> None:
        node.host.behaviour = lambda vm_id: Behaviour(power_off_after_s=0.05)
        await node.final("compute", "create-vm", WEB)
        await until_phase(node, "stopped")
        found = await why(node, "web")
        assert told(found)[-1] == ["the guest shut itself down in run 1", "QEMU, which had kept it paused, ended"]
        assert found.summary == "the guest shut itself down; restart policy 'on-failure' does not start it again"

    async def test_a_vm_that_never_ran_is_told_with_the_step_that_failed(self, node: MemoryNode) -> None:
        async def fail(effect: Any) -> None:
            if type(effect).__name__ == "BootVm":
                raise Fault("QEMU is not installed", "apt install qemu-system-x86", retryable=False)

        node.host.interfere = fail
        assert (await node.final("compute", "create-vm", WEB))["code"] == 500
        found = await why(node, "web")
        assert "booting it failed, attempt 1, not to be tried again: QEMU is not installed" in told(found)[0]
        assert found.summary == "it never ran: booting: QEMU is not installed"

    async def test_a_deleted_vm_is_found_by_its_last_bearer(self, node: MemoryNode) -> None:
        ids = []
        for _ in range(2):
            ids.append((await node.final("compute", "create-vm", WEB))["vm-id"])
            await node.final("compute", "delete-vm", {"vm-id": "web"})
        assert (await why(node, "web")).id == ids[1]
        assert (await why(node, ids[0])).view.phase == "deleted"
        with pytest.raises(Refused) as refused:
            await why(node, "wbe")
        assert refused.value.details["known"] == ["web"]

    async def test_the_past_is_explained_as_of_then(self, node: MemoryNode) -> None:
        await node.final("compute", "create-vm", WEB)
        position = len(await node.events())
        await node.final("compute", "delete-vm", {"vm-id": "web"})
        found = await why(node, "web", at=str(position))
        assert found.view.phase == "ready"
        assert len(found.chapters) == 1

    async def test_a_cause_in_another_stream_is_followed(self, node: MemoryNode) -> None:
        image = (await node.events())[0]
        assert type(image.event).__name__ == "ImageBuildRequested"
        cause = event_id(image.node, image.epoch, image.seq)
        await create_because_of(node, cause)
        first, second = (await why(node, "web")).chapters
        assert (first.kind, first.sentences[0].text) == (
            "image",
            "asked to build the image 'tiny' from the recipe 'tiny'",
        )
        assert second.cause == cause

    @pytest.mark.parametrize("cause", ["ticket-17", "host1.epoch1.999", "other.epoch1.1", "host1.epoch1.x", "."])
    async def test_a_cause_that_is_no_event_of_this_log_is_named_and_not_followed(
        self, node: MemoryNode, cause: str
    ) -> None:
        await create_because_of(node, cause)
        (chapter,) = (await why(node, "web")).chapters
        assert chapter.cause == cause

    async def test_an_image_is_explained_too(self, node: MemoryNode) -> None:
        await node.final("images", "delete-image", {"image": "tiny"})
        found = await why(node, "tiny", kind="image")
        assert told(found)[-1][0] == "asked to delete it"
        assert found.summary == "nothing of it is left on the host"


class TestEvents:
    def test_the_catalogue_has_every_type_of_a_log_with_its_meaning(self) -> None:
        found = catalogue(kinds())
        assert {each.type for each in found} == {each.__name__ for each in event_types(kinds())}
        assert all(each.about for each in found)
        booted = next(each for each in found if each.type == "VmBooted")
        assert (booted.kind, booted.token, booted.schema) == ("vm", "vm-booted", 2)
        names = [field.name for field in booted.fields]
        assert names == ["run", "pid", "start-ticks", "boot-id", "accelerator", "process-user"]

    def test_a_type_is_named_as_in_the_log_or_as_in_the_subject(self) -> None:
        assert type_named(kinds(), "VmBooted") == type_named(kinds(), "vm-booted") == "VmBooted"
        with pytest.raises(Refused, match="no event type 'VmBoted'"):
            type_named(kinds(), "VmBoted")

    async def test_an_event_as_json_has_the_fields_of_the_contract(self, node: MemoryNode) -> None:
        shown = event_json((await node.events())[0])
        assert list(shown) == [
            *("seq", "stream", "version", "type", "schema", "time", "node", "actor"),
            *("command-id", "correlation-id", "causation-id", "data"),
        ]


async def create_because_of(node: MemoryNode, cause: str) -> None:
    """A create whose caller names a cause."""
    from aetherscale.kernel.calls import Call

    assert node.node is not None
    call = Call("default", "compute", "create-vm", msgspec.json.encode(WEB), "user:test", "c", True, "corr", cause)
    async for _ in node.node.serve["compute"](call):
        pass
