"""Groups that VMs bear, and when they hold, decided by a whole node on a simulated host."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from aetherscale.actors.compute.model.commands import MAX_GROUPS, VmRules
from aetherscale.actors.compute.model.events import RulesApplied, VmStepFailed
from aetherscale.kernel.fault import Fault
from tests.support.memory_node import MemoryNode
from tests.support.ruled_node import firewall, group, names, node, vm

__all__ = ["node"]

WEB_RULE = "in:tcp:80"


class TestGroups:
    async def test_a_new_vm_bears_what_it_is_given_before_it_runs(self, node: MemoryNode) -> None:
        made = await vm(node, groups=["web", "ssh"])
        assert names(made) == ["web", "ssh"]
        assert (made["vm"].rules_revision, made["vm"].rules_applied) == (0, 0)
        assert node.networks.rules == {made["vm-id"]: VmRules(tuple(sorted(g.group_id for g in made["vm"].groups)))}

    async def test_the_reply_comes_when_the_kernel_has_it(self, node: MemoryNode) -> None:
        vm_id = (await vm(node))["vm-id"]
        at_the_step: list[tuple[Any, bool]] = []

        async def look(step: str, what: str) -> None:
            at_the_step.append(((step, what), vm_id in node.networks.rules))

        node.networks.interfere = look
        chunks = await node.ask("firewall", "attach-group", {"vm-id": "vm", "group": "web"})
        assert [chunk.get("status") for chunk in chunks] == ["applying-rules", None]
        assert at_the_step == [(("bear", vm_id), False)]
        assert vm_id in node.networks.rules
        assert chunks[-1]["vm"].rules_applied == chunks[-1]["vm"].rules_revision == 1
        assert names(await firewall(node, "attach-group", group="ssh")) == ["web", "ssh"]
        assert names(await firewall(node, "detach-group", group="web")) == ["ssh"]
        await firewall(node, "detach-group", group="ssh")
        assert node.networks.rules == {}

    async def test_what_is_taken_back_before_the_kernel_has_it_is_told_as_that(self, node: MemoryNode) -> None:
        await vm(node)
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def wait(step: str, what: str) -> None:
            begun.set()
            await go_on.wait()

        node.networks.interfere = wait
        coming = asyncio.ensure_future(firewall(node, "attach-group", group="web"))
        await begun.wait()
        leaving = asyncio.ensure_future(firewall(node, "detach-group", group="web"))
        refused = await coming
        assert refused["code"] == 409
        assert "another request took this back before the kernel had it for the VM 'vm'" in refused["message"]
        go_on.set()
        assert names(await leaving) == []

    async def test_what_is_so_already_is_done_and_no_event(self, node: MemoryNode) -> None:
        await vm(node, groups=["web"])
        assert names(await firewall(node, "attach-group", group="web")) == ["web"]
        assert names(await firewall(node, "detach-group", group="ssh")) == ["web"]
        assert "GroupsSet" not in await node.types()

    @pytest.mark.parametrize("task", ["attach-group", "detach-group"])
    async def test_one_that_is_not_there_is_refused_with_what_makes_it(self, node: MemoryNode, task: str) -> None:
        await vm(node)
        refused = await firewall(node, task, group="db")
        assert (refused["code"], refused["message"], refused["details"]["field"]) == (
            404, "no such group: 'db'", "group"
        )  # fmt: skip
        assert ("group create db" in refused["details"]["hint"]) == (task == "attach-group")
        assert refused["details"]["hint"].endswith("aetherscale firewall group list")
        by_id = await firewall(node, task, group="1" * 16)
        assert "create" not in by_id["details"]["hint"]

    async def test_nor_is_a_vm_made_that_would_bear_it(self, node: MemoryNode) -> None:
        refused = await vm(node, groups=["web", "db"])
        assert (refused["code"], refused["message"], refused["details"]["field"]) == (
            404, "no such group: 'db'", "groups"
        )  # fmt: skip

    async def test_one_is_given_once(self, node: MemoryNode) -> None:
        web = (await node.final("firewall", "group-info", {"group": "web"}))["group-id"]
        refused = await vm(node, groups=["web", web])
        assert (refused["code"], refused["message"]) == (400, "the group 'web' is given twice")

    async def test_no_more_than_there_may_be(self, node: MemoryNode) -> None:
        refused = await vm(node, groups=[f"g{number}" for number in range(MAX_GROUPS + 1)])
        assert refused["code"] == 400

    async def test_only_with_a_network(self, node: MemoryNode) -> None:
        refused = await vm(node, network=None, groups=["web"])
        assert (refused["code"], refused["message"]) == (
            400, "a VM without a network has no port that a group could let anything to"
        )  # fmt: skip
        await vm(node, network=None)
        refused = await firewall(node, "attach-group", group="web")
        assert refused["code"] == 409

    async def test_one_that_is_borne_is_not_deleted_until_no_vm_bears_it(self, node: MemoryNode) -> None:
        await vm(node, groups=["web"])
        refused = await node.final("firewall", "delete-group", {"group": "web"})
        assert (refused["code"], refused["message"]) == (409, "the group 'web' is in use by 1 VM(s): vm")
        await firewall(node, "detach-group", group="web")
        assert (await node.final("firewall", "delete-group", {"group": "web"}))["type"] == "result"

    async def test_nor_until_the_vm_is_deleted(self, node: MemoryNode) -> None:
        await vm(node, groups=["web"])
        await firewall(node, "attach-group", group="ssh")
        await node.final("compute", "delete-vm", {"vm-id": "vm", "kill": True})
        assert node.networks.rules == {}
        for name in ("web", "ssh"):
            assert (await node.final("firewall", "delete-group", {"group": name}))["type"] == "result"

    async def test_of_a_deletion_and_an_attachment_that_race_one_is_refused(self, node: MemoryNode) -> None:
        await vm(node)
        for number in range(20):
            await group(node, f"g{number}")
            asked = [
                firewall(node, "attach-group", group=f"g{number}"),
                node.final("firewall", "delete-group", {"group": f"g{number}"}),
            ]
            attached, deleted = await asyncio.gather(*(asked if number % 2 else reversed(asked)))
            if not number % 2:
                attached, deleted = deleted, attached
            assert sorted([attached["type"], deleted["type"]]) == ["error", "result"], (attached, deleted)
            await firewall(node, "detach-group", group=f"g{number}")

    async def test_one_whose_deletion_has_failed_is_not_there(self, node: MemoryNode) -> None:
        await vm(node)

        async def refuse(step: str, what: str) -> None:
            if step == "ungroup":
                raise Fault("nft said no", "mend it", retryable=False)

        node.networks.interfere = refuse
        assert (await node.final("firewall", "delete-group", {"group": "web"}))["code"] == 500
        refused = await firewall(node, "attach-group", group="web")
        assert (refused["code"], refused["message"]) == (404, "no such group: 'web'")

    async def test_one_whose_rules_the_host_refuses_is_borne_with_those_that_it_had(self, node: MemoryNode) -> None:
        await vm(node)

        async def refuse(step: str, what: str) -> None:
            if step == "group":
                raise Fault("nft said no", "mend it", retryable=False)

        node.networks.interfere = refuse
        refused = await node.final("firewall", "set-rules", {"group": "web", "rules": [WEB_RULE]})
        assert refused["code"] == 500
        assert names(await firewall(node, "attach-group", group="web")) == ["web"]

    async def test_those_of_another_tenant_are_not_there(self, node: MemoryNode) -> None:
        await node.final("firewall", "create-group", {"name": "theirs"}, tenant="blue")
        await vm(node)
        assert (await firewall(node, "attach-group", group="theirs"))["code"] == 404


class TestAfterTheNodeOrTheHost:
    async def test_a_node_that_comes_back_has_the_kernel_know_all(self, node: MemoryNode) -> None:
        made = await vm(node, groups=["web"])
        await firewall(node, "add-forward", host_port=8080, guest_port=80)
        had = dict(node.networks.rules)
        await node.close()
        node.networks.rules.clear()
        await node.start()
        assert node.networks.rules == had
        assert had[made["vm-id"]].forwards[0].host_port == 8080

    async def test_a_stopped_vm_keeps_and_changes_them(self, node: MemoryNode) -> None:
        vm_id = (await vm(node))["vm-id"]
        await node.final("compute", "stop-vm", {"vm-id": "vm", "kill": True})
        attached = await firewall(node, "attach-group", group="web")
        assert names(attached) == ["web"]
        assert node.networks.rules[vm_id].groups == (attached["vm"].groups[0].group_id,)
        await node.final("compute", "start-vm", {"vm-id": "vm"})
        assert node.networks.rules[vm_id].groups == (attached["vm"].groups[0].group_id,)


class TestWhatIsRefusedByTheHost:
    async def test_the_vm_runs_on_and_it_comes_right(self, node: MemoryNode) -> None:
        await vm(node)
        refusals = [Fault("nft said no", "mend it")] * 2

        async def refuse(step: str, what: str) -> None:
            if step == "bear" and refusals:
                raise refusals.pop()

        node.networks.interfere = refuse
        chunks = await node.ask("firewall", "attach-group", {"vm-id": "vm", "group": "web"})
        assert [chunk.get("status") for chunk in chunks] == ["applying-rules", "retrying", "retrying", None]
        assert chunks[-1]["vm"].failure is None
        assert chunks[-1]["vm"].observed == "running"
        failures = [each.event for each in await node.events() if isinstance(each.event, VmStepFailed)]
        assert [(each.step, each.attempt, each.reason) for each in failures] == [
            ("applying-rules", 1, "nft said no"), ("applying-rules", 2, "nft said no"),
        ]  # fmt: skip

    async def test_a_caller_is_told_that_those_of_before_hold(self, node: MemoryNode) -> None:
        vm_id = (await vm(node, groups=["ssh"]))["vm-id"]
        before = node.networks.rules[vm_id]
        is_refused = True

        async def refuse(step: str, what: str) -> None:
            if step in ("bear", "replace") and is_refused:
                raise Fault("nft said no", "mend it", retryable=False)

        node.networks.interfere = refuse
        refused = await firewall(node, "attach-group", group="web")
        assert refused["code"] == 500
        assert "could not be applied, so those of before hold; it is tried again: nft said no" in refused["message"]
        assert node.networks.rules[vm_id] == before
        shown = (await node.final("compute", "vm-info", {"vm-id": "vm"}))["vm"]
        assert (shown.observed, shown.failure.phase, shown.failure.reason) == (
            "running",
            "applying-rules",
            "nft said no",
        )
        is_refused = False
        assert names(await firewall(node, "detach-group", group="ssh")) == ["web"]
        assert isinstance((await node.events())[-1].event, RulesApplied)


class TestUnderWhichName:
    async def test_they_are_asked_for_under_that_of_the_firewall(self, node: MemoryNode) -> None:
        await vm(node)
        refused = await node.final("compute", "attach-group", {"vm-id": "vm", "group": "web"})
        assert (refused["code"], refused["message"]) == (404, "compute has no task 'attach-group'")
        refused = await node.final("firewall", "atach-group", {"vm-id": "vm", "group": "web"})
        assert (refused["code"], refused["details"]["hint"]) == (404, "did you mean attach-group?")
        refused = await node.final("firewall", "attach-group", {"group": "web"})
        assert refused["message"] == "firewall.attach-group: the field 'vm-id' is missing"
        refused = await node.final("firewall", "start-vm", {"vm-id": "vm"})
        assert refused["message"] == "firewall has no task 'start-vm'"

    async def test_the_vm_itself_takes_them_too(self, node: MemoryNode) -> None:
        vm_id = (await vm(node))["vm-id"]
        attached = await node.final("compute", "attach-group", {"group": "web"}, object_id=vm_id)
        assert names(attached) == ["web"]

    async def test_a_group_does_not(self, node: MemoryNode) -> None:
        web = (await node.final("firewall", "group-info", {"group": "web"}))["group-id"]
        refused = await node.final("firewall", "attach-group", {"group": "web"}, object_id=web)
        assert (refused["code"], refused["message"]) == (404, "firewall has no task 'attach-group'")

    async def test_a_repeat_is_the_same_request(self, node: MemoryNode) -> None:
        await vm(node)
        options = {"vm-id": "vm", "host-port": 80, "guest-port": 80}
        first = await node.final("firewall", "add-forward", options, key="k")
        before = len(await node.events())
        assert await node.final("firewall", "add-forward", options, key="k") == first
        await firewall(node, "remove-forward", host_port=80)
        assert (await node.final("firewall", "add-forward", options, key="k"))["type"] == "result"
        assert len(await node.events()) > before
        shown = (await node.final("compute", "vm-info", {"vm-id": "vm"}))["vm"]
        assert shown.forwards == [], "it is not added again"
