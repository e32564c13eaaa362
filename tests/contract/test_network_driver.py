"""One suite for the driver of networks and the ports of VMs: on netlink and nft in a namespace, and in memory."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from aetherscale.actors.compute.model.commands import PortSpec
from aetherscale.actors.network.model.addresses import mac_of
from aetherscale.actors.network.model.commands import NetworkLost
from aetherscale.actors.network.model.devices import bridge_name, tap_name
from aetherscale.actors.network.model.effects import (
    NetworkEnsured,
    NetworkRemoved,
    NetworkSpec,
)
from aetherscale.actors.network.model.state import Network
from aetherscale.kernel.errors import Reason, Refused
from aetherscale.kernel.fault import Fault
from tests.support.network_worlds import (
    BOOT,
    DB,
    LAB,
    OTHER,
    OTHER_SPEC,
    SPEC,
    WEB,
    Guest,
    Process,
    World,
    opened,
    port,
    process,
    state,
    world,
)

__all__ = ["process", "world"]


async def test_a_host_without_networks_is_not_touched(world: World, process: Process) -> None:
    assert (await world.bridges(), await world.taps(), world.ruled()) == (set(), {}, set())
    assert await process.driver.open(WEB, ()) == []
    await process.driver.close_ports(WEB, ())
    process.driver.require()


async def test_a_network_is_made_once_and_again_and_removed_once_and_again(world: World, process: Process) -> None:
    for _ in range(2):
        assert await process.ensure() == NetworkEnsured("k", BOOT)
        assert await world.bridges() == {bridge_name(LAB)}
    for _ in range(2):
        assert await process.remove() == NetworkRemoved("k")
        assert await world.bridges() == set()


async def test_the_public_bridge_is_a_network_once_the_host_has_it(world: World, process: Process) -> None:
    with pytest.raises(Refused, match="the host has no bridge br0") as refused:
        process.driver.public_bridge()
    assert refused.value.reason is Reason.CONFLICT
    await world.have_bridge("br0")
    assert process.driver.public_bridge() == "br0"
    street, mine = NetworkSpec("public", "public", None, None, "br0"), replace(port(WEB), ipv4=None)
    for _ in range(2):
        assert await process.ensure(LAB, street) == NetworkEnsured("k", BOOT)
        await opened(process, WEB, mine)
    assert (set(await world.taps()), world.ruled()) == ({mine.tap}, {mine.tap})
    assert process.driver.leased(WEB) == {}
    await process.driver.close_ports(WEB, [mine])
    assert (await world.taps(), world.ruled()) == ({}, set())
    assert await process.remove(LAB, street) == NetworkRemoved("k")
    assert process.driver.public_bridge() == "br0", "it is the host's"


async def test_a_port_has_rules_and_a_tap_in_its_bridge_and_neither_is_left_of_it(
    world: World, process: Process
) -> None:
    await process.ensure()
    await process.ensure(OTHER, OTHER_SPEC)
    await opened(process, WEB, port(WEB), port(WEB, 1, OTHER))
    await opened(process, DB, port(DB))
    assert await world.taps() == {
        tap_name(WEB, 0): bridge_name(LAB),
        tap_name(WEB, 1): bridge_name(OTHER),
        tap_name(DB, 0): bridge_name(LAB),
    }
    assert world.ruled() == {tap_name(WEB, 0), tap_name(WEB, 1), tap_name(DB, 0)}
    for _ in range(2):
        await process.driver.close_ports(WEB, [port(WEB), port(WEB, 1, OTHER)])
        assert set(await world.taps()) == world.ruled() == {tap_name(DB, 0)}


async def test_a_port_can_be_opened_again_after_its_guest_has_ended(world: World, process: Process) -> None:
    await process.ensure()
    for _ in range(3):
        await opened(process, WEB, port(WEB))
        assert await world.taps() == {tap_name(WEB, 0): bridge_name(LAB)}


async def test_what_was_closed_stays_closed_where_the_log_does_not_say_so_yet(world: World, process: Process) -> None:
    """Between the end of a removal and its record the ports of all VMs may be restored, on the timer."""
    await process.ensure()
    await opened(process, WEB, port(WEB))
    await process.driver.close_ports(WEB, [port(WEB)])
    await process.driver.restore({WEB: [port(WEB)]})
    assert (await world.taps(), world.ruled()) == ({}, set())
    # Once it is recorded another VM may have the address.
    heir = PortSpec(LAB, "lab", "db", tap_name(DB, 0), mac_of(DB), port(WEB).ipv4, None)
    await opened(process, DB, heir)
    assert world.ruled() == {heir.tap}
    await process.driver.restore({DB: [heir]})
    await process.driver.close_ports(DB, [heir])
    await opened(process, WEB, port(WEB))
    await process.driver.restore({WEB: [port(WEB)]})
    assert world.ruled() == {tap_name(WEB, 0)}


async def test_a_port_makes_the_network_that_it_needs(world: World) -> None:
    """After a reboot of the host a VM may be started before its network is."""
    process = Process(world.driver())
    await process.start({LAB: state(boot_id="boot-0")}, {WEB: [port(WEB)]})
    assert [each.network_id for each in process.reports] == [LAB]
    await opened(process, WEB, port(WEB))
    assert await world.bridges() == {bridge_name(LAB)}
    assert set(await world.taps()) == world.ruled() == {tap_name(WEB, 0)}
    await process.driver.close()


async def test_the_next_process_keeps_what_is_expected_and_removes_the_rest(world: World, process: Process) -> None:
    await process.ensure()
    await process.ensure(OTHER, OTHER_SPEC)
    await opened(process, WEB, port(WEB))
    await opened(process, DB, port(DB), port(DB, 1, OTHER))
    await process.driver.close()
    following = Process(world.driver())
    await following.start({LAB: state()}, {WEB: [port(WEB)]})
    assert following.reports == []
    assert await world.bridges() == {bridge_name(LAB)}
    assert set(await world.taps()) == world.ruled() == {tap_name(WEB, 0)}
    await following.driver.close()


async def test_nothing_is_left_where_the_log_has_no_network_any_more(world: World, process: Process) -> None:
    await process.ensure()
    await opened(process, WEB, port(WEB))
    await process.driver.close()
    following = Process(world.driver())
    gone = Network(LAB, SPEC, "deleted", 0)
    await following.start({LAB: gone}, {})
    assert (await world.bridges(), await world.taps(), world.ruled()) == (set(), {}, set())
    await following.driver.close()


async def test_a_bridge_that_is_gone_is_reported_and_made_again(world: World, process: Process) -> None:
    await process.ensure()
    await world.remove(bridge_name(LAB))
    await process.driver.reconcile({LAB: state()})
    # The kernel tells of it as well, in the same words.
    assert set(process.reports) == {NetworkLost(LAB, f"the bridge {bridge_name(LAB)} is gone")}
    assert await process.ensure() == NetworkEnsured("k", BOOT)
    assert await world.bridges() == {bridge_name(LAB)}
    process.reports.clear()
    await process.driver.reconcile({LAB: state()})
    assert process.reports == []


async def test_the_taps_of_running_guests_are_put_into_a_bridge_that_is_made_again(
    world: World, process: Process
) -> None:
    await process.ensure()
    await opened(process, WEB, port(WEB))
    await world.remove(bridge_name(LAB))
    assert await process.ensure() == NetworkEnsured("k", BOOT)
    assert await world.taps() == {tap_name(WEB, 0): bridge_name(LAB)}


async def test_so_they_are_where_the_bridge_is_made_before_a_new_process_knows_the_ports(
    world: World, process: Process
) -> None:
    """At a start a loss is reported, and the network may be ensured, before `restore`."""
    await process.ensure()
    await opened(process, WEB, port(WEB))
    await process.driver.close()
    await world.remove(bridge_name(LAB))
    following = Process(world.driver())
    await following.driver.start(following._report)
    await following.driver.reconcile({LAB: state()})
    assert await following.ensure() == NetworkEnsured("k", BOOT)
    await following.driver.restore({WEB: [port(WEB)]})
    assert await world.taps() == {tap_name(WEB, 0): bridge_name(LAB)}
    await following.driver.close()


async def test_a_port_whose_tap_is_gone_is_cut_until_it_is_opened_again(world: World, process: Process) -> None:
    await process.ensure()
    await opened(process, WEB, port(WEB), port(WEB, 1))
    assert list(process.driver.cut(WEB)) == []
    await world.lose_tap(tap_name(WEB, 1))
    assert list(process.driver.cut(WEB)) == [tap_name(WEB, 1)]
    await process.driver.reconcile({LAB: state()})
    assert await process.ensure() == NetworkEnsured("k", BOOT)
    assert list(process.driver.cut(WEB)) == [tap_name(WEB, 1)], "its process has what is no more"
    await opened(process, WEB, port(WEB), port(WEB, 1))
    assert list(process.driver.cut(WEB)) == []
    await process.driver.close_ports(WEB, [port(WEB), port(WEB, 1)])
    assert list(process.driver.cut(WEB)) == []


async def test_the_ports_of_a_network_whose_bridge_is_gone_are_cut_until_it_is_there_again(
    world: World, process: Process
) -> None:
    await process.ensure()
    await opened(process, WEB, port(WEB))
    await world.remove(bridge_name(LAB))
    assert list(process.driver.cut(WEB)) == [tap_name(WEB, 0)]
    assert await process.ensure() == NetworkEnsured("k", BOOT)
    assert list(process.driver.cut(WEB)) == []


async def test_a_tap_that_was_removed_while_no_node_ran_is_made_anew_for_the_process_that_is_found(
    world: World, process: Process
) -> None:
    await process.ensure()
    guest = Guest(WEB, await process.driver.open(WEB, [port(WEB), port(WEB, 1)]))
    await opened(process, DB, port(DB))
    await process.driver.close()
    await world.lose_tap(tap_name(WEB, 1))
    await world.lose_tap(tap_name(DB, 0))
    following = Process(world.driver())
    following.driver.borrow_from(lambda vm_id, tap: None)
    await following.start({LAB: state()}, {WEB: [port(WEB), port(WEB, 1)], DB: [port(DB)]})
    assert list(following.driver.cut(WEB)) == [tap_name(WEB, 1)], "no process has been found yet"
    following.driver.borrow_from(guest.lend)
    await following.driver.reconnect()
    assert following.reports == [NetworkLost(LAB, f"the tap {tap_name(WEB, 1)} of VM web was removed")]
    assert (list(following.driver.cut(WEB)), list(following.driver.cut(DB))) == ([], [tap_name(DB, 0)])
    assert await world.taps() == dict.fromkeys((tap_name(WEB, 0), tap_name(WEB, 1)), bridge_name(LAB))
    for _ in range(2):
        await following.driver.reconcile({LAB: state()})
        await following.driver.reconnect()
    assert len(following.reports) == 1
    guest.end()
    await following.driver.close()


async def test_rules_that_were_removed_while_no_node_ran_are_told_of_the_networks_that_had_some(
    world: World, process: Process
) -> None:
    await process.ensure()
    await opened(process, WEB, port(WEB))
    await process.driver.close()
    world.flush()
    following = Process(world.driver())
    networks = {LAB: state(), OTHER: state(OTHER, OTHER_SPEC, boot_id="")}
    await following.start(networks, {WEB: [port(WEB)]})
    told = [each for each in following.reports if each.network_id == LAB]
    assert told == [NetworkLost(LAB, "tables removed while the node was away")]
    assert world.ruled() == {tap_name(WEB, 0)}
    await following.driver.reconcile(networks)
    await following.driver.restore({WEB: [port(WEB)]})
    assert [each for each in following.reports if each.network_id == LAB] == told
    await following.driver.close()


async def test_rules_that_never_were_or_that_a_reboot_took_are_not_told_as_removed(world: World) -> None:
    first = Process(world.driver())
    await first.start({}, {})
    await first.ensure()
    await first.driver.reconcile({LAB: state()})
    await first.driver.restore({})
    assert first.reports == []
    await first.driver.close()
    world.flush()
    following = Process(world.driver())
    await following.start({LAB: state(boot_id="boot-0")}, {})
    assert following.reports == [NetworkLost(LAB, "the host was started anew")]
    await following.driver.close()


async def test_another_boot_of_the_host_is_reported_for_each_network(world: World) -> None:
    process = Process(world.driver())
    await process.start({LAB: state(boot_id="boot-0"), OTHER: state(OTHER, OTHER_SPEC, boot_id="boot-0")}, {})
    assert [(each.network_id, each.what) for each in process.reports] == [
        (LAB, "the host was started anew"),
        (OTHER, "the host was started anew"),
    ]
    await process.driver.close()


async def test_a_port_in_a_network_that_is_not_known_is_a_fault(world: World, process: Process) -> None:
    with pytest.raises(Fault, match="is not known to this node"):
        await process.driver.open(WEB, [port(WEB)])


async def test_several_at_once_are_all_there(world: World, process: Process) -> None:
    await process.ensure()
    vms = [f"{number:016x}" for number in range(20)]
    ports = {
        vm_id: PortSpec(LAB, "lab", f"vm-{number}", tap_name(vm_id, 0), mac_of(vm_id), f"10.9.8.{10 + number}", None)
        for number, vm_id in enumerate(vms)
    }
    await asyncio.gather(*(opened(process, vm_id, each) for vm_id, each in ports.items()))
    assert set(await world.taps()) == world.ruled() == {each.tap for each in ports.values()}
    await asyncio.gather(*(process.driver.close_ports(vm_id, [each]) for vm_id, each in ports.items()))
    assert (await world.taps(), world.ruled()) == ({}, set())
