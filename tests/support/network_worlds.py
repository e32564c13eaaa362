"""Worlds of the driver of networks, in memory and in a namespace of the kernel, and a process that drives one."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest

from aetherscale.actors.compute.model.commands import PortSpec
from aetherscale.actors.network.dnsmasq.resolvers import Resolvers
from aetherscale.actors.network.driver import HostNetworking
from aetherscale.actors.network.model import devices
from aetherscale.actors.network.model.addresses import mac_of
from aetherscale.actors.network.model.devices import tap_name
from aetherscale.actors.network.model.dns import Address
from aetherscale.actors.network.model.effects import (
    EnsureNetwork,
    NetworkSpec,
    RemoveNetwork,
)
from aetherscale.actors.network.model.frames import read
from aetherscale.actors.network.model.state import Network
from aetherscale.actors.network.model.views import Dropped
from aetherscale.actors.network.netlink.links import Links
from aetherscale.actors.network.nft.nftables import Nftables, NftError
from aetherscale.actors.network.ports import Firewall, HostNetworks, VmPorts
from aetherscale.actors.network.simulated.driver import SimulatedNetworking
from aetherscale.actors.network.simulated.host import SimulatedNetworks
from aetherscale.kernel.names import derive_id
from aetherscale.runtime.component import Driver
from tests.support.fake_guest import VNET_HDR
from tests.support.guest_namespaces import sh
from tests.support.network_namespaces import missing, network_namespace

NODE, BOOT = "host1", "boot-1"
# Resolvers are found by the ids of their networks, in whatever namespace: two tests at one time have different ones.
LAB, OTHER = (derive_id(str(os.getpid()), name) for name in ("lab", "other"))
WEB, DB = "2123456789abcdef", "3123456789abcdef"
SPEC = NetworkSpec("lab", "isolated", "10.9.8.0/24", "fd12:3456:789a:1::/64", None)
NAT_SPEC = NetworkSpec("lab", "nat", "10.9.8.0/24", "fd12:3456:789a:1::/64", None)
OTHER_SPEC = NetworkSpec("other", "isolated", None, "fd12:3456:789a:2::/64", None)


SPOOFED = bytes.fromhex("ffffffffffff 020000000066 88cc")
"""The header of a frame from the MAC of nobody."""


class Networking(Driver[Network, Any], HostNetworks, VmPorts, Firewall, Protocol):
    """All that the driver is."""


class World(Protocol):
    """A host, and what can be seen and done behind a driver's back."""

    def driver(self) -> Networking:
        """A new driver on it, as a process of the node has one."""
        ...

    async def bridges(self) -> set[str]: ...
    async def taps(self) -> dict[str, str]: ...
    def ruled(self) -> set[str]: ...
    def groups(self) -> set[str]:
        """The ids of the groups that the kernel has."""
        ...

    def grouped(self) -> dict[str, str]:
        """The taps whose VMs bear groups, with what tells what they bear."""
        ...

    def led(self) -> dict[str, int]:
        """The ports of the host that lead to VMs with taps, as "tcp 8080" or "udp 192.0.2.1 53"; and to which port."""
        ...

    async def have_bridge(self, name: str) -> None:
        """The host has a bridge of its own."""
        ...

    async def remove(self, device: str) -> None: ...
    async def lose_tap(self, device: str) -> None: ...
    def flush(self) -> None: ...
    def spoof(self, vm_id: str, descriptors: Sequence[int]) -> None:
        """The guest behind these sends what its port may not: LLDP, from the MAC of another."""
        ...


class Memory:
    def __init__(self) -> None:
        self._host = SimulatedNetworks()
        self._host.boot_id = BOOT
        self._host.public_bridge = ""

    def driver(self) -> Networking:
        return SimulatedNetworking(self._host)

    async def bridges(self) -> set[str]:
        return set(self._host.bridges)

    async def taps(self) -> dict[str, str]:
        return {name: bridge for name, (_, bridge) in self._host.taps.items()}

    def ruled(self) -> set[str]:
        return self._host.ruled_taps

    def groups(self) -> set[str]:
        return set(self._host.groups)

    def grouped(self) -> dict[str, str]:
        bears = {vm_id: str(rules.groups) for vm_id, rules in self._host.rules.items() if rules.groups}
        return {tap: bears[vm_id] for tap, (vm_id, _) in self._host.taps.items() if vm_id in bears}

    def led(self) -> dict[str, int]:
        have = {vm_id for vm_id, _ in self._host.taps.values()}
        every = [forward for vm_id in have & self._host.rules.keys() for forward in self._host.rules[vm_id].forwards]
        return {" ".join(f"{each.protocol} {each.address} {each.host_port}".split()): each.guest_port for each in every}

    async def have_bridge(self, name: str) -> None:
        self._host.public_bridge = name

    async def remove(self, device: str) -> None:
        self._host.lose_bridge(device)

    async def lose_tap(self, device: str) -> None:
        del self._host.taps[device]

    def flush(self) -> None:
        self._host.flush_rules()

    def spoof(self, vm_id: str, descriptors: Sequence[int]) -> None:
        frame, tap = read(0x88CC, SPOOFED, b""), tap_name(vm_id, 0)
        self._host.drop(Dropped(0, vm_id, "", LAB, tap, "mac", is_inward=False, is_to_host=False, frame=frame))


class Kernel:
    def __init__(self, state_dir: Path) -> None:
        self._nft = Nftables()
        self._state_dir = state_dir
        self.upstreams: list[Address] = []

    def driver(self) -> Networking:
        return HostNetworking(NODE, BOOT, self._state_dir, upstreams=lambda: self.upstreams, allow_unisolated=True)

    async def bridges(self) -> set[str]:
        return {link.name for link in await self._links() if link.kind == "bridge"}

    async def taps(self) -> dict[str, str]:
        links = await self._links()
        names = {link.index: link.name for link in links}
        return {link.name: names.get(link.master, "") for link in links if link.kind == "tun" and link.is_up}

    def ruled(self) -> set[str]:
        try:
            listed = self._nft.run("list set bridge aetherscale ports\n")
        except NftError:
            return set()
        return {word.strip('",') for word in listed.split() if word.startswith('"aep')}

    def groups(self) -> set[str]:
        try:
            return set(re.findall(r"chain g_([0-9a-f]{16})_in", self._nft.run("list table bridge aetherscale\n")))
        except NftError:
            return set()

    def grouped(self) -> dict[str, str]:
        try:
            listed = self._nft.run("list map bridge aetherscale ingress\n")
        except NftError:
            return {}
        return dict(re.findall(r'"(aep[0-9a-f]{12})" : jump (\w+)', listed))

    def led(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for name in ("forwards4", "forwards6", "forwards_at4", "forwards_at6"):
            try:
                listed = self._nft.run(f"list map inet aetherscale {name}\n")
            except NftError:
                continue
            for at, protocol, host_port, guest_port in re.findall(
                r"(?:([0-9a-f.:]+) \. )?(tcp|udp|6|17) \. (\d+) : [0-9a-f.:]+ \. (\d+)", listed
            ):
                # A host without /etc/protocols has no names for them.
                named = {"6": "tcp", "17": "udp"}.get(protocol, protocol)
                found[" ".join(part for part in (named, at, host_port) if part)] = int(guest_port)
        return found

    def route(self) -> None:
        """Let the host route for guests."""
        for setting in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            Path("/proc/sys/net", setting).write_text("1")

    async def have_bridge(self, name: str) -> None:
        sh("ip", "link", "add", name, "type", "bridge")
        sh("ip", "link", "set", name, "up")

    async def remove(self, device: str) -> None:
        links = Links(NODE)
        await links.open()
        (link,) = (each for each in await links.ours() if each.name == device)
        assert link.alias is not None
        await links.remove_bridge(device, link.alias)
        await links.close()

    async def lose_tap(self, device: str) -> None:
        links = Links(NODE)
        await links.open()
        await links.remove_taps([device])
        await links.close()

    def flush(self) -> None:
        self._nft.run("flush ruleset\n")

    def spoof(self, vm_id: str, descriptors: Sequence[int]) -> None:
        os.write(descriptors[0], VNET_HDR + SPOOFED + bytes(50))

    async def _links(self) -> list[devices.Link]:
        links = Links(NODE)
        await links.open()
        found = await links.ours()
        await links.close()
        return found

    def close(self) -> None:
        self._nft.close()


@asynccontextmanager
async def kernel(state_dir: Path) -> AsyncIterator[Kernel]:
    if why := missing():
        pytest.skip(why)
    state_dir.mkdir(mode=0o700)
    with network_namespace():
        host = Kernel(state_dir)
        yield host
        host.close()
        # A resolver outlives its node, and so would outlive the test.
        left = Resolvers(state_dir, NODE, lambda network_id, words: None)
        await left.start()
        await left.reconcile(())
        await left.close()


@pytest.fixture(params=["memory", "kernel"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    if request.param == "memory":
        yield Memory()
        return
    async with kernel(tmp_path / "state") as host:
        yield host


class Process:
    """A driver, and what it has reported."""

    def __init__(self, driver: Networking) -> None:
        self.driver = driver
        self.reports: list[Any] = []

    async def start(self, networks: Mapping[str, Network], ports: Mapping[str, Sequence[PortSpec]]) -> None:
        await self.driver.start(self._report)
        await self.driver.reconcile(networks)
        await self.driver.restore(ports)
        await self.driver.reconnect()

    async def ensure(self, network_id: str = LAB, spec: NetworkSpec = SPEC) -> Any:
        return await self.driver.perform(EnsureNetwork("k", network_id, spec), lambda step, **fields: None)

    async def remove(self, network_id: str = LAB, spec: NetworkSpec = SPEC) -> Any:
        return await self.driver.perform(RemoveNetwork("k", network_id, spec), lambda step, **fields: None)

    def _report(self, observation: Any) -> asyncio.Future[None]:
        self.reports.append(observation)
        done = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done


@pytest.fixture
async def process(world: World) -> AsyncIterator[Process]:
    process = Process(world.driver())
    await process.start({}, {})
    yield process
    await process.driver.close()


def port(vm_id: str, index: int = 0, network_id: str = LAB) -> PortSpec:
    mac = mac_of(f"{vm_id}-{index}")
    last = 2 + index if vm_id == WEB else 20 + index
    return PortSpec(
        network_id, "lab", "web" if vm_id == WEB else "db", tap_name(vm_id, index), mac, f"10.9.8.{last}", None
    )


def state(network_id: str = LAB, spec: NetworkSpec = SPEC, boot_id: str = BOOT) -> Network:
    return Network(network_id, spec, "ready", 0, boot_id)


class Guest:
    """What a QEMU has for its ports, of which it lends copies; in memory it is nothing, and a copy leads nowhere."""

    def __init__(self, vm_id: str, descriptors: Sequence[int]) -> None:
        self._vm_id, self._descriptors = vm_id, descriptors

    def lend(self, vm_id: str, tap: str) -> int | None:
        if vm_id != self._vm_id:
            return None
        taps = [tap_name(vm_id, number) for number in range(len(self._descriptors))]
        return os.dup(self._descriptors[taps.index(tap)]) if taps else os.open(os.devnull, os.O_RDONLY)

    def end(self) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)


async def opened(process: Process, vm_id: str, *ports: PortSpec) -> None:
    for descriptor in await process.driver.open(vm_id, ports):
        assert not os.get_inheritable(descriptor)
        os.close(descriptor)
