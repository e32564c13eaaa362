"""Ports of VMs that come and go, decided by a whole node on a simulated host."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from aetherscale.actors.compute.model.events import PortUnplugged, VmStepFailed
from aetherscale.actors.compute.model.state import HOT_SLOTS
from aetherscale.actors.compute.simulated.host import SimulatedProcess
from aetherscale.kernel.fault import Fault
from tests.support.memory_node import MemoryNode

NETWORKS = ("lab", "dmz", *(f"n{number}" for number in range(HOT_SLOTS)))


@pytest.fixture
async def node() -> AsyncIterator[MemoryNode]:
    node = MemoryNode()
    await node.start()
    await node.final("images", "import-image", {"source": "/x.raw", "name": "i", "ready": "none"})
    for name in NETWORKS:
        made = await node.final("network", "create-network", {"name": name, "ipv4-prefix": None})
        assert made["type"] == "result", made
    yield node
    await node.close()


async def vm(node: MemoryNode, name: str = "vm", network: Any = "lab", **options: Any) -> Any:
    networks = {} if network is None else {"virtual-network": network}
    made = await node.final("compute", "create-vm", {"image": "i", "name": name, **networks, **options})
    assert made["type"] == "result", made
    return made["vm"]


async def attach(node: MemoryNode, network: str = "dmz", vm: str = "vm", options: Any = ()) -> Any:
    return await node.final("compute", "attach-vm", {"vm-id": vm, "network": network, **dict(options)})


async def detach(node: MemoryNode, network: str = "dmz", vm: str = "vm") -> Any:
    return await node.final("compute", "detach-vm", {"vm-id": vm, "network": network})


def cards(answer: Any) -> dict[str, str]:
    assert answer["type"] == "result", answer
    return {port.network: port.card for port in answer["vm"].ports}


def has(node: MemoryNode) -> set[str]:
    """The taps of the cards that the one process of the host has."""
    [process] = [each for each in node.host.processes.values() if not each.gone.is_set()]
    return set(process.cards)


def patience_ends_with(monkeypatch: pytest.MonkeyPatch, told: asyncio.Event) -> None:
    """Let a guest have its time until then, instead of so many seconds."""
    plain = SimulatedProcess.unplug

    async def unplug(process: SimulatedProcess, tap: str, _: float) -> bool:
        await told.wait()
        return await plain(process, tap, 0)

    monkeypatch.setattr(SimulatedProcess, "unplug", unplug)


class TestWhileItRuns:
    async def test_it_is_given_a_card_and_loses_it_again(self, node: MemoryNode) -> None:
        await vm(node)
        attached = await attach(node)
        assert cards(attached) == {"lab": "plugged", "dmz": "plugged"}
        taps = {port.tap for port in attached["vm"].ports}
        assert has(node) == set(node.networks.taps) == node.networks.ruled_taps == taps
        assert cards(await detach(node)) == {"lab": "plugged"}
        assert has(node) == set(node.networks.taps) == node.networks.ruled_taps == {attached["vm"].ports[0].tap}

    async def test_the_rules_come_first_and_go_last(self, node: MemoryNode) -> None:
        await vm(node)
        steps: list[str] = []

        async def look(step: str, what: str) -> None:
            steps.append(step)

        node.networks.interfere = look
        tap = (await attach(node))["vm"].ports[1].tap
        assert steps[-2:] == ["rule", "tap"]
        await detach(node)
        assert steps[-2:] == ["remove", "unrule"]
        assert tap not in node.networks.taps

    async def test_a_port_that_comes_again_is_another_one_and_may_have_the_address_again(
        self, node: MemoryNode
    ) -> None:
        await vm(node)
        one = (await attach(node))["vm"].ports[1]
        await detach(node)
        other = (await attach(node))["vm"].ports[1]
        assert (one.tap, one.mac) != (other.tap, other.mac)

    async def test_what_is_so_already_is_no_event(self, node: MemoryNode) -> None:
        await vm(node)
        assert cards(await attach(node, "lab")) == {"lab": "plugged"}
        assert cards(await detach(node, "dmz")) == {"lab": "plugged"}
        # Its guest may be heard meanwhile.
        assert [each for each in await node.types() if each in ("PortAdded", "PortRemoved")] == []

    async def test_there_are_as_many_slots_as_there_are_and_a_restart_makes_room(self, node: MemoryNode) -> None:
        await vm(node)
        for number in range(HOT_SLOTS):
            assert cards(await attach(node, f"n{number}"))[f"n{number}"] == "plugged"
        refused = await attach(node)
        assert refused["code"] == 409
        assert "has no slot for another" in refused["message"]
        assert "a restart makes room" in str(refused)
        await node.final("compute", "restart-vm", {"vm-id": "vm"})
        assert cards(await attach(node))["dmz"] == "plugged"

    async def test_a_guest_that_keeps_its_card_has_it_without_a_cable(
        self, node: MemoryNode, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        patience_ends_with(monkeypatch, at_once := asyncio.Event())
        at_once.set()
        made = await vm(node)
        tap = (await attach(node))["vm"].ports[1].tap
        node.host.processes[made.id].pause("user")
        await asyncio.sleep(0)
        assert cards(await detach(node)) == {"lab": "plugged"}
        assert tap not in has(node) | set(node.networks.taps)
        [event] = [each.event for each in await node.events() if isinstance(each.event, PortUnplugged)]
        assert event.card_left

    async def test_rules_take_their_turn_in_the_midst_of_the_guests_time(
        self, node: MemoryNode, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        patience_ends_with(monkeypatch, told := asyncio.Event())
        made = await vm(node)
        await node.final("firewall", "create-group", {"name": "web", "rules": []})
        await attach(node)
        node.host.processes[made.id].pause("user")
        await asyncio.sleep(0)
        leaving = asyncio.ensure_future(detach(node))
        while not any(type(each.event).__name__ == "PortRemoved" for each in await node.events()):  # noqa: ASYNC110
            await asyncio.sleep(0)
        bears = await node.final("firewall", "attach-group", {"vm-id": "vm", "group": "web"})
        assert cards(bears)["dmz"] == "unplugging"
        told.set()
        assert cards(await leaving) == {"lab": "plugged"}

    async def test_one_that_is_detached_before_its_guest_has_the_card_is_told_as_that(self, node: MemoryNode) -> None:
        made = await vm(node)
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def wait(step: str, what: str) -> None:
            if step == "rule":
                begun.set()
                await go_on.wait()

        node.networks.interfere = wait
        asked = {"network": "dmz", "vm-id": "vm"}
        coming = asyncio.ensure_future(node.final("compute", "attach-vm", asked, key="attach"))
        await begun.wait()
        leaving = asyncio.ensure_future(detach(node))
        refused = await coming
        told = {"vm-id": made.id, "hint": "aetherscale why vm vm"}
        assert (refused["code"], refused["details"]) == (409, told)
        assert "was detached from the network 'dmz' before its guest had the card" in refused["message"]
        go_on.set()
        assert cards(await leaving) == {"lab": "plugged"}
        again = await node.final("compute", "attach-vm", asked, key="attach")
        assert again == refused, "a repeat has the answer of the first"


class TestAtRest:
    async def test_it_has_the_port_with_its_next_boot(self, node: MemoryNode) -> None:
        await vm(node)
        await node.final("compute", "stop-vm", {"vm-id": "vm", "kill": True})
        attached = await attach(node)
        assert cards(attached) == {"lab": "unplugged", "dmz": "unplugged"}
        started = await node.final("compute", "start-vm", {"vm-id": "vm"})
        assert cards(started) == {"lab": "plugged", "dmz": "plugged"}
        assert has(node) == {port.tap for port in attached["vm"].ports}

    async def test_it_loses_it_and_what_the_host_has_of_it(self, node: MemoryNode) -> None:
        await vm(node, network=["lab", "dmz"])
        await node.final("compute", "stop-vm", {"vm-id": "vm", "kill": True})
        left = await detach(node, "lab")
        assert cards(left) == {"dmz": "unplugged"}
        assert set(node.networks.taps) == {left["vm"].ports[0].tap}


class TestTheNetwork:
    async def test_is_not_deleted_until_nothing_is_left_of_the_port(self, node: MemoryNode) -> None:
        await vm(node)
        await attach(node)
        assert (await node.final("network", "delete-network", {"network": "dmz"}))["code"] == 409
        await detach(node)
        assert (await node.final("network", "delete-network", {"network": "dmz"}))["type"] == "result"

    async def test_one_that_forwards_need_is_kept_until_they_are_gone(self, node: MemoryNode) -> None:
        for name in ("nat1", "nat2"):
            await node.final("network", "create-network", {"name": name, "kind": "nat"})
        await vm(node, network=["nat1", "lab", "nat2"])
        forward = {"vm-id": "vm", "host-port": 8080, "guest-port": 80}
        assert (await node.final("firewall", "add-forward", forward))["type"] == "result"
        assert cards(await detach(node, "nat1")) == {"lab": "plugged", "nat2": "plugged"}
        refused = await detach(node, "nat2")
        assert (refused["code"], refused["details"]["field"]) == (409, "network")
        assert "lead nowhere: 8080/tcp" in refused["message"]
        assert "aetherscale firewall forward list vm" in refused["message"] + str(refused)
        assert (await detach(node, "lab"))["type"] == "result"
        refused = await detach(node, "nat2")
        assert "no other port" not in refused["message"]
        await attach(node)
        removed = await node.final("firewall", "remove-forward", {"vm-id": "vm", "host-port": 8080})
        assert removed["type"] == "result", removed
        assert cards(await detach(node, "nat2")) == {"dmz": "plugged"}

    async def test_one_that_is_not_there_is_refused_with_what_makes_it(self, node: MemoryNode) -> None:
        await vm(node)
        refused = await attach(node, "nowhere")
        assert (refused["code"], refused["details"]["field"]) == (404, "network")
        assert (await detach(node, "nowhere"))["code"] == 404

    async def test_another_vm_has_the_address_only_once_it_is_free(self, node: MemoryNode) -> None:
        made = await node.final("network", "create-network", {"name": "small", "ipv4-prefix": "10.9.8.0/29"})
        assert made["type"] == "result", made
        await vm(node)
        await vm(node, "other")
        mine = (await attach(node, "small"))["vm"].ports[1].addresses[0].ip
        theirs = (await attach(node, "small", "other"))["vm"].ports[1].addresses[0].ip
        assert (mine, theirs) == ("10.9.8.2", "10.9.8.3")
        await detach(node, "small")
        await vm(node, "third")
        assert (await attach(node, "small", "third"))["vm"].ports[1].addresses[0].ip == mine

    async def test_its_own_addresses_are_nobodys_to_allow(self, node: MemoryNode) -> None:
        await vm(node)
        made = await node.final("network", "create-network", {"name": "small", "ipv4-prefix": "10.9.8.0/29"})
        assert made["type"] == "result", made
        refused = await attach(node, "small", options={"allow-addresses": ["10.9.8.1"]})
        assert (refused["code"], refused["details"]["field"]) == (400, "allow-addresses")
        allowed = await attach(node, "small", options={"allow-addresses": ["10.0.0.0/24"]})
        assert allowed["vm"].ports[1].allowed == ["10.0.0.0/24"]


class TestWhatIsRefusedByTheHost:
    async def test_the_vm_runs_on_without_the_port(self, node: MemoryNode) -> None:
        made = await vm(node)

        async def refuse(step: str, what: str) -> None:
            if step == "tap":
                raise Fault("the kernel said no", "mend it")

        node.networks.interfere = refuse
        refused = await attach(node)
        assert refused["code"] == 500
        assert "could not be attached to the network 'dmz': " in refused["message"]
        steps = [each.event.step for each in await node.events() if isinstance(each.event, VmStepFailed)]
        assert steps == ["plugging"] * 3
        while len((await node.final("compute", "vm-info", {"vm-id": "vm"}))["vm"].ports) > 1:  # noqa: ASYNC110
            await asyncio.sleep(0)
        shown = (await node.final("compute", "vm-info", {"vm-id": "vm"}))["vm"]
        assert (shown.observed, shown.failure) == ("running", None)
        assert set(node.networks.taps) == node.networks.ruled_taps == {made.ports[0].tap}

    async def test_a_node_that_comes_back_goes_on_where_it_was(self, node: MemoryNode) -> None:
        made = await vm(node)
        reached = asyncio.Event()

        async def hang(step: str, what: str) -> None:
            if step == "tap":
                reached.set()
                await asyncio.Event().wait()

        node.networks.interfere = hang
        asking = asyncio.ensure_future(attach(node))
        await reached.wait()
        await node.close()
        asking.cancel()

        async def go_on(step: str, what: str) -> None:
            return

        node.networks.interfere = go_on
        await node.start()
        again = await attach(node)
        assert cards(again) == {"lab": "plugged", "dmz": "plugged"}
        assert again["vm"].id == made.id
        assert has(node) == set(node.networks.taps) == node.networks.ruled_taps
