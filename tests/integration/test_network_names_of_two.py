"""Names for VMs in two networks, by the driver, its real resolvers and real stacks.

The law, whichever order a guest has its servers in, and whether it asks one after the other (glibc) or all at once
(musl): of all that it has, each says what is right or refuses, and one says it. To go on after a refusal is what both
do; neither does after "no such name".
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address
from itertools import product
from pathlib import Path
from typing import Literal

import pytest

from aetherscale.actors.compute.model.commands import PortSpec
from aetherscale.actors.network.dnsmasq.directory import Directory
from aetherscale.actors.network.dnsmasq.process import running
from aetherscale.actors.network.driver import HostNetworking
from aetherscale.actors.network.model.addresses import mac_of, resolver_of
from aetherscale.actors.network.model.devices import bridge_name, tap_name
from aetherscale.actors.network.model.effects import NetworkEnsured, NetworkSpec
from tests.integration.test_network_resolvers_ruled import FAR4, FOUND, UPLINK_MAC, serving
from tests.support.guest_namespaces import AAAA, NO_ERROR, NO_SUCH_NAME, PTR, REFUSED, A, Guest, guests, sh
from tests.support.network_namespaces import missing
from tests.support.network_worlds import BOOT, LAB, NODE, OTHER, Process, kernel, opened, state
from tests.support.resolver_world import until

pytestmark = [pytest.mark.integration, pytest.mark.skipif(bool(missing()), reason=missing())]

Kind = Literal["isolated", "nat"]
ISOLATED: Kind = "isolated"
NAT: Kind = "nat"
KINDS = list(product((ISOLATED, NAT), repeat=2))
NAMES = {LAB: "lab", OTHER: "other"}
IPV4 = {LAB: IPv4Network("10.9.8.0/24"), OTHER: IPv4Network("10.9.9.16/28")}
IPV6 = {LAB: IPv6Network("fd12:3456:789a:1::/64"), OTHER: IPv6Network("fd12:3456:789a:2::/64")}
BOTH, X, Y = (f"{number}123456789abcdef" for number in (4, 5, 6))
HOST_NUMBERS = {BOTH: 4, X: 5, Y: 6}
VM_NAMES = {BOTH: "both", X: "x", Y: "y"}
NOWHERE = (NO_SUCH_NAME, list[str]())


def port(vm_id: str, network_id: str, index: int = 0) -> PortSpec:
    number, name = HOST_NUMBERS[vm_id], NAMES[network_id]
    addresses = str(IPV4[network_id][number]), str(IPV6[network_id][number])
    return PortSpec(network_id, name, VM_NAMES[vm_id], tap_name(vm_id, index), mac_of(f"{vm_id}-{index}"), *addresses)


def spec(network_id: str, kind: Kind) -> NetworkSpec:
    return NetworkSpec(NAMES[network_id], kind, str(IPV4[network_id]), str(IPV6[network_id]), None)


def resolvers(*network_ids: str) -> list[str]:
    return [str(resolver_of(prefix[each])) for each in network_ids for prefix in (IPV4, IPV6)]


@dataclass(frozen=True)
class Host:
    """A node with two networks, and a far server that answers every question."""

    process: Process
    state_dir: Path
    far: Guest

    def pids(self) -> list[list[int]]:
        return [running(Directory(self.state_dir / "networks", each)) for each in (LAB, OTHER)]


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    async with kernel(tmp_path / "state"):
        sh("ip", "link", "set", "lo", "up")
        for setting in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            Path("/proc/sys/net", setting).write_text("1")
        sh("ip", "link", "add", "uplink", "type", "bridge")
        sh("ip", "link", "set", "uplink", "up")
        sh("ip", "address", "add", "192.0.2.100/24", "dev", "uplink")
        driver = node(tmp_path / "state")
        made = Process(driver)
        await made.start({}, {})
        with guests() as make:
            far = make("uplink", UPLINK_MAC, "far")
            far.up()
            far.sh("ip", "address", "add", f"{FAR4}/24", "dev", "eth0")
            with serving(far, FAR4, 53, []):
                yield Host(made, tmp_path / "state", far)
        await driver.close()


def node(state_dir: Path) -> HostNetworking:
    return HostNetworking(NODE, BOOT, state_dir, upstreams=lambda: [IPv4Address(FAR4)], allow_unisolated=True)


@contextmanager
def guest(vm_id: str, *network_ids: str) -> Iterator[Guest]:
    """A stack with the addresses of a VM, beside whose taps it is."""
    with guests() as make:
        made: Guest | None = None
        for number, network_id in enumerate(network_ids):
            device, mac = f"eth{number}", f"02:98:00:00:{HOST_NUMBERS[vm_id]:02}:{number:02}"
            cable = f"c{HOST_NUMBERS[vm_id]}-{number}"
            if made is None:
                made = make(bridge_name(network_id), mac, cable)
                made.up()
            else:
                made.plug(device, bridge_name(network_id), cable, mac)
                made.sh("ip", "link", "set", device, "up")
            has = port(vm_id, network_id)
            made.sh("ip", "address", "add", f"{has.ipv4}/{IPV4[network_id].prefixlen}", "dev", device)
            made.sh("ip", "address", "add", f"{has.ipv6}/64", "dev", device, "nodad")
        assert made is not None
        yield made


async def all_open(host: Host, kinds: tuple[Kind, Kind]) -> None:
    for network_id, kind in zip((LAB, OTHER), kinds, strict=True):
        assert await host.process.ensure(network_id, spec(network_id, kind)) == NetworkEnsured("k", BOOT)
    await opened(host.process, X, port(X, LAB))
    await opened(host.process, Y, port(Y, OTHER))
    await opened(host.process, BOTH, port(BOTH, LAB), port(BOTH, OTHER, 1))


def pointer(address: str | None) -> str:
    assert address is not None
    return ip_address(address).reverse_pointer


def known(vm_id: str, network_id: str) -> dict[tuple[str, int], tuple[int, list[str]]]:
    """The questions about a VM in a network, and what is right."""
    name, has = f"{VM_NAMES[vm_id]}.{NAMES[network_id]}.internal", port(vm_id, network_id)
    return {
        (name, A): (NO_ERROR, [str(has.ipv4)]),
        (name, AAAA): (NO_ERROR, [str(has.ipv6)]),
        (pointer(has.ipv4), PTR): (NO_ERROR, [name]),
        (pointer(has.ipv6), PTR): (NO_ERROR, [name]),
    }


@pytest.mark.parametrize("kinds", KINDS, ids="+".join)
async def test_each_resolver_of_a_vm_in_two_networks_is_right_or_refuses(host: Host, kinds: tuple[Kind, Kind]) -> None:
    await all_open(host, kinds)
    outside = (NO_ERROR, [FOUND]) if "nat" in kinds else NOWHERE
    right = {
        **known(X, LAB),
        **known(Y, OTHER),
        **known(BOTH, LAB),
        **known(BOTH, OTHER),
        ("example.com", A): outside,
        ("z.lab.internal", A): NOWHERE,
        ("z.other.internal", AAAA): NOWHERE,
        ("x.nowhere.internal", A): NOWHERE,
        (pointer(str(IPV4[OTHER][3])), PTR): NOWHERE,
        (pointer(str(IPV6[LAB][3])), PTR): NOWHERE,
        ("z", A): NOWHERE,
    }
    with guest(BOTH, LAB, OTHER) as both:
        await until(lambda: both.ask(resolvers(LAB)[0], "both.other.internal", A)[0] == REFUSED)
        await until(lambda: both.ask(resolvers(OTHER)[0], "both.lab.internal", A)[0] == REFUSED)
        for (name, kind), answer in right.items():
            said = [both.ask(server, name, kind) for server in resolvers(LAB, OTHER)]
            assert [each for each in said if each != (REFUSED, [])], (name, said)
            assert all(each in (answer, (REFUSED, [])) for each in said), (name, said)
        for order in ((LAB, OTHER), (OTHER, LAB)):
            assert _looked_up(both, order, "y.other.internal") == {port(Y, OTHER).ipv4, port(Y, OTHER).ipv6}
            assert _looked_up(both, order, "x.lab.internal") == {port(X, LAB).ipv4, port(X, LAB).ipv6}
            assert _reversed(both, order, port(Y, OTHER).ipv4) == "y.other.internal"
            assert _reversed(both, order, port(X, LAB).ipv6) == "x.lab.internal"
            assert _looked_up(both, order, "example.com") == ({FOUND} if "nat" in kinds else set())


def _looked_up(made: Guest, order: tuple[str, str], name: str) -> set[str | None]:
    """What the C library of this machine finds."""
    return {line.split()[0] for line in _getent(made, order, "ahosts", name).splitlines()}


def _reversed(made: Guest, order: tuple[str, str], address: str | None) -> str:
    return _getent(made, order, "hosts", str(address)).split()[-1]


def _getent(made: Guest, order: tuple[str, str], database: str, key: str) -> str:
    asking = "".join(f"nameserver {server}\\n" for server in resolvers(*order))
    script = (
        "mount -t tmpfs none /etc && echo 'hosts: dns' >/etc/nsswitch.conf"
        f" && printf '{asking}' >/etc/resolv.conf && getent {database} {key} || true"
    )
    return made.sh("unshare", "--mount", "sh", "-c", script)


async def test_a_vm_in_one_network_is_told_nothing_of_another(host: Host) -> None:
    await all_open(host, ("isolated", "nat"))
    with guest(X, LAB) as alone:
        # By then the resolver of its network knows of the other one.
        await until(lambda: alone.ask(resolvers(LAB)[0], "y.other.internal", A)[0] == REFUSED)
        for server, (name, kind) in product(
            resolvers(LAB), [*known(Y, OTHER), *known(BOTH, OTHER), ("example.com", A)]
        ):
            assert alone.ask(server, name, kind) == (REFUSED, []), name
        for name in ("y.lab.internal", "y.nowhere.internal", "y"):
            assert alone.ask(resolvers(LAB)[0], name, A) == NOWHERE, name


async def test_what_is_refused_follows_the_ports_of_vms_without_another_process(host: Host) -> None:
    """Also with the next node, whose start makes up for what the one before has not told."""
    for network_id, kind in ((LAB, ISOLATED), (OTHER, NAT)):
        await host.process.ensure(network_id, spec(network_id, kind))
    await opened(host.process, X, port(X, LAB))
    server, outside = resolvers(LAB)[0], ("example.com", A)
    pids = host.pids()
    with guest(X, LAB) as alone:
        questions = [*known(Y, OTHER), outside]
        await until(lambda: alone.ask(server, "x.lab.internal", A)[0] == NO_ERROR)
        assert [alone.ask(server, *each) for each in questions] == [NOWHERE] * len(questions)
        await opened(host.process, BOTH, port(BOTH, LAB), port(BOTH, OTHER, 1))
        await until(lambda: alone.ask(server, *outside)[0] == REFUSED)
        assert [alone.ask(server, *each) for each in questions] == [(REFUSED, [])] * len(questions)
        await host.process.driver.close_ports(BOTH, [port(BOTH, LAB), port(BOTH, OTHER, 1)])
        await until(lambda: alone.ask(server, *outside) == NOWHERE)
        assert [alone.ask(server, *each) for each in questions] == [NOWHERE] * len(questions)
        await host.process.driver.close()
        after = Process(node(host.state_dir))
        both = {X: [port(X, LAB)], BOTH: [port(BOTH, LAB), port(BOTH, OTHER, 1)]}
        await after.start({LAB: state(LAB, spec(LAB, "isolated")), OTHER: state(OTHER, spec(OTHER, "nat"))}, both)
        await until(lambda: alone.ask(server, *outside)[0] == REFUSED)
        await after.driver.close()
    assert host.pids() == pids
    assert host.process.reports == []


async def test_beside_a_bridge_of_the_host_names_outside_are_left_to_who_knows_them(host: Host) -> None:
    await host.process.ensure(LAB, spec(LAB, "isolated"))
    bridged = NetworkSpec("other", "bridged", None, None, "uplink")
    await host.process.ensure(OTHER, bridged)
    on_bridge = PortSpec(OTHER, "other", "both", tap_name(BOTH, 1), mac_of(f"{BOTH}-1"), None, None)
    await opened(host.process, BOTH, port(BOTH, LAB), on_bridge)
    with guest(X, LAB) as alone:
        await until(lambda: alone.ask(resolvers(LAB)[0], "example.com", A)[0] == REFUSED)
        assert alone.ask(resolvers(LAB)[0], "x.other.internal", A) == NOWHERE
