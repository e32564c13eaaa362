"""Networks with a bridge and a resolver, in a network namespace of a test's own."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Interface, IPv6Network
from pathlib import Path
from typing import Literal

import pytest

from aetherscale.actors.network.dnsmasq.directory import Directory
from aetherscale.actors.network.dnsmasq.process import running
from aetherscale.actors.network.dnsmasq.resolvers import Resolvers
from aetherscale.actors.network.model.addresses import ipv6_of, router_of
from aetherscale.actors.network.model.devices import Alias, bridge_name
from aetherscale.actors.network.model.dns import DnsNetwork, DnsPort
from aetherscale.actors.network.netlink.links import Links
from aetherscale.processes import users
from tests.support.eventually import asked_until
from tests.support.guest_namespaces import Guest, guests, sh
from tests.support.network_namespaces import missing as missing_namespaces
from tests.support.network_namespaces import network_namespace

NODE = "host1"
LAB, OTHER = "0123456789abcdef", "1123456789abcdef"
IPV4, IPV6 = IPv4Network("10.64.7.0/24"), IPv6Network("fd00:7::/64")
RESOLVER4, RESOLVER6 = "10.64.7.254", "fd00:7::53"
OUTSIDE4, OUTSIDE6 = "192.0.2.1", "2001:db8::1"
"""The host has them, behind no bridge."""
WEB_MAC, DB_MAC, FOREIGN_MAC = "02:00:00:00:00:11", "02:00:00:00:00:12", "02:00:00:00:00:99"
MTU = 1450


def missing() -> str:
    """What this machine lacks for resolvers; "" for nothing."""
    if lacking := missing_namespaces():
        return lacking
    if users.way() != "switch":
        return "only root gives each network a uid of its own"
    return "" if shutil.which("dnsmasq") else "needs dnsmasq"


def network(kind: Literal["isolated", "nat"] = "isolated", name: str = "lab") -> DnsNetwork:
    return DnsNetwork(name, kind, IPV4, IPV6, MTU)


def port(vm: str, number: int, mac: str) -> DnsPort:
    return DnsPort(vm, mac, IPv4Address(int(IPV4[0]) + number), ipv6_of(IPV6, mac))


WEB, DB = port("web", 2, WEB_MAC), port("db", 3, DB_MAC)


MakeGuest = Callable[[str, str], Guest]


class World:
    """The host of the namespace: one node with its resolvers, and what it was told of their ends."""

    def __init__(self, state_dir: Path, *, allow_unisolated: bool = False) -> None:
        self.state_dir = state_dir
        self._allow_unisolated = allow_unisolated
        self.links = Links(NODE)
        self.ends: list[tuple[str, str]] = []
        self.end_told = asyncio.Event()
        self.upstreams: list[IPv4Address] = []
        self.program = "dnsmasq"
        self.resolvers = self.node()

    def node(self) -> Resolvers:
        return Resolvers(
            self.state_dir,
            NODE,
            self._on_end,
            upstreams=lambda: self.upstreams,
            dnsmasq=self.program,
            allow_unisolated=self._allow_unisolated,
        )

    def _on_end(self, network_id: str, words: str) -> None:
        self.ends.append((network_id, words))
        self.end_told.set()

    async def open(self) -> None:
        sh("ip", "link", "set", "lo", "up")
        await self.links.open()
        await self.resolvers.start()
        await self.bridge(LAB)

    async def close(self) -> None:
        for network_id in (LAB, OTHER):
            await self.resolvers.remove(network_id)
        await self.resolvers.close()
        await self.links.close()

    async def bridge(self, network_id: str) -> str:
        await self.links.ensure_bridge(bridge_name(network_id), Alias(NODE, "network", network_id), MTU)
        return bridge_name(network_id)

    def processes(self) -> list[int]:
        """Every process of these resolvers, the children of dnsmasq too."""
        root = self.state_dir / "networks"
        return sorted(pid for network_id in (LAB, OTHER) for pid in running(Directory(root, network_id)))

    async def restart(self) -> None:
        """Another node takes over."""
        await self.resolvers.close()
        self.resolvers = self.node()
        await self.resolvers.start()

    async def route(self) -> None:
        """The host is the router of the network, and has addresses outside."""
        bridge = bridge_name(LAB)
        await self.links.set_address(bridge, IPv4Interface(f"{router_of(IPV4)}/{IPV4.prefixlen}"))
        await self.links.set_address(bridge, IPv6Interface(f"{router_of(IPV6)}/64"))
        sh("ip", "address", "add", f"{OUTSIDE4}/32", "dev", "lo")
        sh("ip", "address", "add", f"{OUTSIDE6}/128", "dev", "lo", "nodad")
        for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            Path("/proc/sys/net", name).write_text("1")

    async def ensure(self, network: DnsNetwork, *ports: DnsPort, network_id: str = LAB) -> int:
        """The pid of its resolver."""
        await self.resolvers.ensure(network_id, bridge_name(network_id), network, ports)
        pid = self.resolvers.pid_of(network_id)
        assert pid is not None
        return pid


def cables() -> list[str]:
    """Of any resolver in this namespace."""
    names = [line.split()[0].partition("@")[0] for line in sh("ip", "-brief", "link").splitlines()]
    return sorted(name for name in names if name.startswith(("aes", "aer")))


def lines(guest: Guest, *command: str) -> list[str]:
    """What `ip` says in a guest."""
    return [line.strip() for line in guest.sh("ip", *command).splitlines()]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    with network_namespace():
        made = World(tmp_path)
        await made.open()
        yield made
        await made.close()
        assert made.processes() == []
        assert cables() == []


@pytest.fixture
def guest(world: World) -> Iterator[MakeGuest]:
    with guests() as make:
        yield make


def web_in(guest: MakeGuest) -> Guest:
    made = guest(bridge_name(LAB), WEB_MAC)
    made.up()
    return made


async def with_addresses(made: Guest) -> Guest:
    """A guest that has taken what is decided for it."""
    made.sh("ip", "address", "add", f"{WEB.ipv4}/24", "dev", "eth0")
    made.advertisement()
    await until(lambda: str(WEB.ipv6) in made.sh("ip", "-6", "address", "show", "dev", "eth0", "-tentative"))
    return made


async def until(holds: Callable[[], bool]) -> None:
    async def asked() -> bool:
        return holds()

    await asked_until(asked)
