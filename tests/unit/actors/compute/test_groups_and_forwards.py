"""Groups and forwards of VMs, decided by a whole node on a simulated host."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from aetherscale.actors.compute.model.commands import MAX_GROUPS, VmRules
from aetherscale.actors.compute.model.events import RulesApplied, VmStepFailed
from aetherscale.kernel.fault import Fault
from tests.support.memory_node import MemoryNode

WEB_RULE = "in:tcp:80"


@pytest.fixture
async def node() -> AsyncIterator[MemoryNode]:
    node = MemoryNode()
    await node.start()
    await node.final("images", "import-image", {"source": "/x.raw", "name": "i", "ready": "none"})
    for name in ("web", "ssh"):
        await group(node, name)
    for name, kind in (("lab", "nat"), ("inner", "isolated")):
        made = await node.final("network", "create-network", {"name": name, "kind": kind})
        assert made["type"] == "result", made
    yield node
    await node.close()


async def group(node: MemoryNode, name: str, *rules: str) -> str:
    made = await node.final("firewall", "create-group", {"name": name, "rules": list(rules)})
    assert made["type"] == "result", made
    return str(made["group-id"])


async def vm(node: MemoryNode, name: str = "vm", network: Any = "lab", **options: Any) -> Any:
    networks = {} if network is None else {"virtual-network": network}
    return await node.final("compute", "create-vm", {"image": "i", "name": name, **networks, **options})


async def firewall(node: MemoryNode, task: str, vm: str = "vm", **options: Any) -> Any:
    given = {name.replace("_", "-"): value for name, value in options.items()}
    return await node.final("firewall", task, {"vm-id": vm, **given})


def names(answer: Any) -> list[str]:
    assert answer["type"] == "result", answer
    return [each.group for each in answer["vm"].groups]


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
        first = await firewall(node, "add-forward", host_port=8080, guest_port=80, host_address="0.0.0.0")  # noqa: S104
        before = len(await node.events())
        again = await firewall(node, "add-forward", host_port=8080, guest_port=80)
        assert again["vm"].forwards == first["vm"].forwards
        assert len(await node.events()) == before

    @pytest.mark.parametrize(
        "address",
        ["127.0.0.1", "::1", "224.0.0.1", "ff02::1", "0.1.2.3", "fe80::1", "::ffff:1.2.3.4", "240.0.0.1",
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
