"""Forwards by the driver: through its restarts, kept and cut, and where they contradict each other."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import closing

import pytest

from aetherscale.actors.compute.model.commands import NO_RULES, Forward, VmRules
from aetherscale.actors.network.model.addresses import mac_of
from aetherscale.actors.network.model.devices import bridge_name
from aetherscale.actors.network.nft.nftables import Nftables
from aetherscale.kernel.fault import Fault
from aetherscale.kernel.names import derive_id
from tests.support import firewalled
from tests.support.fake_guest import FakeGuest
from tests.support.firewalled import heard, rule
from tests.support.guest_namespaces import sh
from tests.support.network_worlds import (
    DB,
    LAB,
    NAT_SPEC,
    OTHER,
    SPEC,
    WEB,
    Kernel,
    Process,
    World,
    port,
    process,
    state,
    world,
)

__all__ = ["process", "world"]

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(firewalled.missing() is not None, reason=str(firewalled.missing())),
    pytest.mark.parametrize("world", ["kernel"], indirect=True),
]
OPEN, THIRD = "c" * 16, derive_id(str(os.getpid()), "third")
FORWARD, OTHER_ONE = Forward("a" * 16, "udp", "", 8080, 80), Forward("b" * 16, "udp", "", 8081, 80)
LEADS, LEADS_NO_MORE = VmRules((OPEN,), (FORWARD,)), VmRules((OPEN,))
HOST, BRIDGE = "10.9.8.1", bridge_name(LAB)


@pytest.fixture
async def routed(world: World, process: Process) -> Process:
    assert isinstance(world, Kernel)
    world.route()
    sh("ip", "link", "set", "lo", "up")
    await process.ensure(LAB, NAT_SPEC)
    await process.driver.apply_group(OPEN, [rule("in:udp:80")])
    return process


@pytest.fixture
def asker() -> Iterator[socket.socket]:
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as made:
        yield made


async def guest(process: Process, rules: VmRules = LEADS) -> FakeGuest:
    """The guest of a VM, with the descriptor that QEMU would have."""
    spec = port(WEB)
    (descriptor,) = await process.driver.open(WEB, [spec], rules)
    assert spec.ipv4 is not None
    sh("ip", "neighbor", "replace", spec.ipv4, "lladdr", spec.mac, "dev", BRIDGE, "nud", "permanent")
    os.set_blocking(descriptor, False)
    return FakeGuest(spec.tap, spec.mac, spec.ipv4, "fd12:3456:789a:1::2", descriptor)


def goes_on(asker: socket.socket, guest: FakeGuest, host_port: int = 8080) -> None:
    asker.setblocking(False)
    asker.connect((HOST, host_port))
    asker.send(b"a question")
    (frame,) = [each for each in guest.until(b"a question") if b"a question" in each]
    # The source port of what the host sends is as it was, or not, as conntrack has it.
    source = int.from_bytes(frame[34:36], "big")
    guest.send(guest.udp(HOST, b"an answer", mac=mac_of(BRIDGE), ports=(80, source)))
    assert heard(asker) == b"an answer"


def is_cut(asker: socket.socket, guest: FakeGuest) -> bool:
    guest.received()
    try:
        asker.send(b"a question")
    except PermissionError:
        return True
    return not guest.has_seen(b"a question")


async def restarted(process: Process, world: World, rules: VmRules) -> Process:
    await process.driver.close()
    following = Process(world.driver())
    following.driver.restore_groups({OPEN: [rule("in:udp:80")]})
    following.driver.restore_rules({WEB: rules})
    await following.start({LAB: state(LAB, NAT_SPEC)}, {WEB: [port(WEB)]})
    return following


async def test_flows_go_on_while_the_node_restarts(routed: Process, world: World, asker: socket.socket) -> None:
    web = await guest(routed)
    goes_on(asker, web)
    following = await restarted(routed, world, LEADS)
    goes_on(asker, web)
    await following.driver.close()
    last = await restarted(following, world, LEADS_NO_MORE)
    assert is_cut(asker, web)
    await last.driver.close()
    web.close()


async def test_a_forward_that_is_gone_takes_its_flows_with_it_unless_they_are_kept(
    routed: Process, world: World, asker: socket.socket
) -> None:
    web = await guest(routed)
    goes_on(asker, web)
    await routed.driver.apply_rules(WEB, LEADS_NO_MORE, keep_established=True)
    assert world.led() == {}
    goes_on(asker, web)
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as late:
        late.connect((HOST, 8080))
        assert is_cut(late, web)
    # A later change that keeps none lets those go that were kept; one that keeps goes on keeping.
    await routed.driver.apply_rules(WEB, VmRules((OPEN,), (OTHER_ONE,)), keep_established=True)
    goes_on(asker, web)
    await routed.driver.apply_rules(WEB, VmRules((OPEN,), (OTHER_ONE,)))
    assert is_cut(asker, web)
    goes_on(asker, web, 8081)
    await routed.driver.apply_rules(WEB, LEADS)
    assert is_cut(asker, web)
    web.close()


@pytest.mark.parametrize("was_kept", [False, True])
async def test_what_ends_with_the_last_group_does_not_come_back_with_another(
    routed: Process, asker: socket.socket, was_kept: bool
) -> None:
    """A port without groups takes nothing from the host, whatever is kept."""
    closed = "d" * 16
    web = await guest(routed, LEADS_NO_MORE)
    await routed.driver.apply_group(closed, [rule("in:udp:9")])
    asker.connect((web.ipv4, 80))
    assert not is_cut(asker, web)
    if was_kept:
        await routed.driver.apply_group(OPEN, [rule("in:udp:81")], keep_established=True)
        assert not is_cut(asker, web)
    await routed.driver.apply_rules(WEB, NO_RULES, keep_established=True)
    assert is_cut(asker, web)
    await routed.driver.apply_rules(WEB, VmRules((closed,)), keep_established=True)
    assert is_cut(asker, web)
    web.close()


async def test_a_port_of_the_host_that_leads_to_another_vm_is_refused_and_all_is_as_it_was(
    routed: Process, world: World
) -> None:
    taken = VmRules((), (Forward("d" * 16, "udp", "", 8080, 81),))
    web = await guest(routed)
    for descriptor in await routed.driver.open(DB, [port(DB)]):
        os.close(descriptor)
    before = world.led()
    with pytest.raises(Fault, match="the port 8080 of udp at all"):
        await routed.driver.apply_rules(DB, taken)
    with pytest.raises(Fault, match="the port 8080 of udp at all"):
        await routed.driver.open(DB, [port(DB)], taken)
    assert world.led() == before
    await routed.driver.apply_rules(WEB, VmRules((OPEN,), (FORWARD, OTHER_ONE)))
    assert world.led() == before | {"udp 8081": 80}
    await routed.driver.apply_rules(WEB, LEADS)
    await routed.driver.apply_rules(DB, VmRules((), (OTHER_ONE,)))
    assert world.led() == before | {"udp 8081": 80}
    await routed.driver.apply_rules(WEB, NO_RULES)
    await routed.driver.apply_rules(DB, taken)
    assert world.led() == {"udp 8080": 81}
    web.close()


@pytest.mark.parametrize(
    "wrong", [{"address": "eth0"}, {"address": "fe80::1%eth0"}, {"host_port": 0}, {"protocol": "x"}]
)
async def test_what_means_nothing_is_a_fault_and_at_a_start_leads_nowhere(
    routed: Process, world: World, wrong: dict[str, object]
) -> None:
    web = await guest(routed)
    fields = {"id": "d" * 16, "protocol": "udp", "address": "", "host_port": 8082, "guest_port": 80} | wrong
    nonsense = VmRules((), (Forward(**fields),))  # type: ignore[arg-type]
    with pytest.raises(Fault, match="contradict"):
        await routed.driver.apply_rules(WEB, nonsense)
    assert world.led() == {"udp 8080": 80}
    await routed.driver.close()
    following = Process(world.driver())
    following.driver.restore_rules({WEB: LEADS, DB: nonsense})
    await following.start({LAB: state(LAB, NAT_SPEC)}, {WEB: [port(WEB)], DB: [port(DB)]})
    assert world.led() == {"udp 8080": 80}
    await following.driver.close()
    web.close()


async def test_a_forward_leads_to_the_first_port_in_a_network_that_the_host_routes(
    routed: Process, world: World
) -> None:
    nft = Nftables()
    for network_id, name, four in ((OTHER, "inner", "10.9.9.0/24"), (THIRD, "third", "10.9.7.0/24")):
        kind = "isolated" if name == "inner" else "nat"
        spec = type(SPEC)(name, kind, four, f"fd12:3456:789a:{name != 'inner':d}9::/64", None)  # type: ignore[arg-type]
        await routed.ensure(network_id, spec)
    ports = [port(WEB, 0, OTHER), port(WEB, 1, LAB), port(WEB, 2, THIRD)]
    for descriptor in await routed.driver.open(WEB, ports, LEADS):
        os.close(descriptor)
    assert led_to(nft) == ports[1].ipv4
    await routed.driver.close_ports(WEB, ports)
    for descriptor in await routed.driver.open(WEB, ports[::2], LEADS):
        os.close(descriptor)
    assert led_to(nft) == ports[2].ipv4
    await routed.driver.close_ports(WEB, ports[::2])
    for descriptor in await routed.driver.open(WEB, ports[:1], LEADS):
        os.close(descriptor)
    assert world.led() == {}
    nft.close()


def led_to(nft: Nftables) -> str:
    return nft.run("list map inet aetherscale forwards4\n").rpartition(" : ")[2].split()[0]
