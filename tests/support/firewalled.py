"""A network namespace with bridges, taps and the firewall's rules: nothing of the host is seen or touched."""

from __future__ import annotations

import ctypes
import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from pathlib import Path

import pytest
from msgspec.structs import replace
from pyroute2 import IPRoute  # type: ignore[import-untyped]

from aetherscale.actors.firewall.model.commands import Rule
from aetherscale.actors.network import firewall
from aetherscale.actors.network.flows import Flows
from aetherscale.actors.network.model.addresses import ipv6_of
from aetherscale.actors.network.model.chains import NOTE
from aetherscale.actors.network.model.effects import OF_HOST, NetworkKind
from aetherscale.actors.network.model.groups import GroupRules, compile_group
from aetherscale.actors.network.model.ruleset import NetworkRules, PortRules, Ruleset, compile, delta, replace_all
from aetherscale.actors.network.nft.counters import DropCounters
from aetherscale.actors.network.nft.nftables import Nftables
from aetherscale.actors.network.nft.structure import Structure
from tests.support.fake_guest import PATIENCE_S, FakeGuest, link_local, open_tap
from tests.support.network_namespaces import SYSCTLS

CLONE_NEWNET = 0x40000000
LOWER_UP = 0x10000
"""IFF_LOWER_UP: a device has its carrier."""
OUTSIDE_MAC = "02:99:00:00:00:09"
EMPTY = compile((), ())
NAMESPACE = Path("/proc/thread-self/ns/net")
MACHINE = NAMESPACE.stat().st_ino


def missing() -> str | None:
    """What this machine lacks for fake guests; None where it lacks nothing."""
    if os.geteuid() != 0:
        return "needs root to make network namespaces"
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "needs /dev/net/tun"
    if not os.access(SYSCTLS, os.W_OK):
        return f"needs to write {SYSCTLS}, which a container may not"
    try:
        Nftables().close()
    except OSError as error:
        return f"needs libnftables: {error}"
    return None


@contextmanager
def own_namespace() -> Iterator[None]:
    """The calling thread is in a network namespace of its own, which ends with the last descriptor from it."""
    libc = ctypes.CDLL(None, use_errno=True)
    outer = os.open(NAMESPACE, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.unshare(CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "unshare of the network namespace")
        try:
            yield
        finally:
            if libc.setns(outer, CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "return to the network namespace")
    finally:
        os.close(outer)


class Firewalled:
    """The host of the namespace: its networks, its guests, and the rules that it has applied."""

    def __init__(self) -> None:
        assert NAMESPACE.stat().st_ino != MACHINE, "the rules and sysctls of the machine itself are not to be touched"
        self.links = IPRoute()
        self.nft = Nftables()
        self.structure = Structure()
        self.counters = DropCounters()
        self.flows = Flows(self.nft)
        self.applied = EMPTY
        self.networks: dict[str, NetworkRules] = {}
        self.ports: dict[str, PortRules] = {}
        self.groups: dict[str, GroupRules] = {}
        self.guests: list[FakeGuest] = []
        self.sockets: list[socket.socket] = []
        self.nft.run(replace_all(EMPTY))
        self.set("ipv4/ip_forward", "1")
        self.set("ipv6/conf/all/forwarding", "1")
        self.call_iptables("0")
        self.links.link("set", index=self.index("lo"), state="up")

    def close(self) -> None:
        for guest in self.guests:
            guest.close()
        for sock in self.sockets:
            sock.close()
        self.structure.close()
        self.counters.close()
        self.flows.close()
        self.nft.close()
        self.links.close()

    def set(self, name: str, value: str) -> None:
        """Set a sysctl of the namespace."""
        Path("/proc/sys/net", name).write_text(value)

    def call_iptables(self, value: str) -> None:
        """Whether bridged packets pass the hooks of IPv4 and IPv6 as well, as Docker has it."""
        for family in ("iptables", "ip6tables", "arptables"):
            if Path(f"/proc/sys/net/bridge/bridge-nf-call-{family}").exists():
                self.set(f"bridge/bridge-nf-call-{family}", value)

    def index(self, device: str) -> int:
        return int(self.links.link_lookup(ifname=device)[0])

    def mac(self, device: str) -> str:
        return str(self.links.link("get", index=self.index(device))[0].get_attr("IFLA_ADDRESS"))

    def network(self, number: int, kind: NetworkKind = "isolated") -> NetworkRules:
        """A network with its bridge: 10.64.<number>.0/24 and fd00:<number>::/64; the host is .1 and ::1 in most."""
        bridge = f"br{number}" if kind in OF_HOST else f"aeb{number:012x}"
        ipv4, ipv6 = IPv4Network(f"10.64.{number}.0/24"), IPv6Network(f"fd00:{number:x}::/64")
        rules = self.networks[bridge] = NetworkRules(bridge, kind, ipv4, ipv6)
        self.links.link("add", ifname=bridge, kind="bridge", br_mcast_snooping=0)
        # Guests are told of neighbors alone that a test has.
        self.set(f"ipv6/conf/{bridge}/accept_dad", "0")
        self.links.link("set", index=self.index(bridge), state="up", address=f"02:bb:00:00:00:{number:02x}")
        if kind == "isolated":
            self.set(f"ipv6/conf/{bridge}/disable_ipv6", "1")
        else:
            self.own(bridge, str(ipv4[1]), 24)
            self.own(bridge, str(ipv6[1]), 64)
        return rules

    def own(self, device: str, address: str, length: int) -> None:
        """The host has this address."""
        self.links.addr("add", index=self.index(device), address=address, prefixlen=length, flags=2)

    def neighbor(self, device: str, address: str, mac: str) -> None:
        """The host knows a MAC without having to ask."""
        self.links.neigh("replace", dst=address, lladdr=mac, ifindex=self.index(device), state=0x80)

    def guest(
        self,
        network: NetworkRules,
        number: int,
        *,
        rules: bool = True,
        made: bool = True,
        allowed: tuple[str, ...] = (),
        groups: tuple[str, ...] = (),
        tap: str | None = None,
        plugged: bool = True,
        leasing: bool = False,
    ) -> FakeGuest:
        """A guest of a network: .<number> and ::<number>; its rules first, and its tap then, as a node does it.

        `made`: it gets a tap; `plugged`: that is in the bridge. With `leasing` its addresses are not decided: it forms
        that of IPv6 from its MAC.
        """
        assert network.ipv4 is not None
        assert network.ipv6 is not None
        place = int(network.ipv4.network_address) >> 8 & 0xFF
        mac = f"52:54:00:00:{place:02x}:{number:02x}"
        name = tap or f"aep{place << 8 | number:012x}"
        guest = FakeGuest(name, mac, str(network.ipv4[number]), str(network.ipv6[number]), -1)
        if rules:
            own: tuple[IPv6Address, ...] = (IPv6Address(link_local(mac)), IPv6Address(guest.ipv6))
            networks = tuple(ip_network(text) for text in allowed)
            ipv4: IPv4Address | None = IPv4Address(guest.ipv4)
            if leasing:
                guest.ipv6 = str(ipv6_of(network.ipv6, mac))
                ipv4, own = None, own[:1]
            self.ports[name] = PortRules(name, network.bridge, mac, ipv4, own, networks, groups)
            self.apply()
        if not made:
            return guest
        guest.descriptor = open_tap(name)
        self.guests.append(guest)
        if plugged:
            self.plug(name, network.bridge)
        return guest

    def group(self, group_id: str, *rules: str) -> str:
        """Let a group have these rules; its id. The first call makes the table of flows."""
        if not self.groups:
            self.flows.ensure()
        self.groups[group_id] = compile_group([rule(text) for text in rules])
        self.apply()
        return group_id

    def bear(self, guest: FakeGuest, *groups: str) -> None:
        """Let a guest bear these groups, and no others."""
        self.ports[guest.tap] = replace(self.ports[guest.tap], groups=tuple(sorted(groups)))
        self.apply()

    def plug(self, device: str, bridge: str) -> None:
        self.links.link("set", index=self.index(device), master=self.index(bridge), state="up")

    def listening(self, address: str, port: int) -> socket.socket:
        """A UDP socket of the host, which does not block."""
        made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
        self.sockets.append(made)
        made.setblocking(False)
        made.bind((address, port))
        return made

    def machine(self, bridge: str, number: int) -> FakeGuest:
        """A machine of the network that is no guest of ours: a cable in the bridge."""
        return self.guest(self.networks[bridge], number, rules=False, tap=f"cable{number}")

    def outside(self) -> FakeGuest:
        """The world behind the host's uplink, 192.0.2.9 and 2001:db8::9; the host's neighbor by decree."""
        world = FakeGuest("uplink", OUTSIDE_MAC, "192.0.2.9", "2001:db8::9", open_tap("uplink"))
        self.guests.append(world)
        self.links.link("set", index=self.index("uplink"), state="up", address="02:99:00:00:00:01")
        for address, length in (("192.0.2.1", 24), ("2001:db8::1", 64)):
            self.own("uplink", address, length)
        for address in (world.ipv4, world.ipv6):
            self.neighbor("uplink", address, world.mac)
        return world

    def acquaint(self, bridge: str, *guests: FakeGuest) -> None:
        """The host knows the MACs of these: what does not arrive is not lost for want of an answer to ARP.

        Nor because the bridge has its carrier only just: the kernel lets it send a moment later, and drops what is sent
        meanwhile.
        """
        index, deadline_s = self.index(bridge), time.monotonic() + PATIENCE_S
        while (link := self.links.link("get", index=index)[0])["flags"] & LOWER_UP and link["state"] == "up":
            if link.get_attr("IFLA_OPERSTATE") == "UP":
                break
            assert time.monotonic() < deadline_s, f"{bridge} has a carrier, and is not up"
            time.sleep(0.001)
        for guest in guests:
            self.neighbor(bridge, guest.ipv4, guest.mac)
            self.neighbor(bridge, guest.ipv6, guest.mac)

    def ruleset(self) -> Ruleset:
        return compile(self.networks.values(), self.ports.values(), dict(self.groups))

    def apply(self) -> None:
        """Bring the kernel from what it has to what is wanted, by a delta."""
        after = self.ruleset()
        self.nft.run(delta(self.applied, after) or "list tables")
        self.applied = after

    def replace(self) -> None:
        """Make all rules anew."""
        self.applied = self.ruleset()
        firewall.replace(self.nft, self.structure, self.applied)


@contextmanager
def firewalled() -> Iterator[Firewalled]:
    with own_namespace():
        host = Firewalled()
        try:
            yield host
        finally:
            host.close()


@pytest.fixture
def host() -> Iterator[Firewalled]:
    with firewalled() as made:
        yield made


def comes(one: FakeGuest, frame: bytes, other: FakeGuest) -> bool:
    """Whether what one sends reaches the other: the kernel forwards it while it is written."""
    other.received()
    one.send(frame)
    return any(got[14:] == frame[14:] for got in other.received())


def rule(text: str) -> Rule:
    """A rule, of its written form: `in:tcp:80,443`, `out:any:to=fd00::/8`, `in:icmp:echo-request:from=group/<id>`."""
    direction, protocol, *rest = text.split(":", 2)
    what, about = "", ""
    if rest:
        what, _, about = rest[0].rpartition(":from=" if direction == "in" else ":to=")
        if rest[0].startswith(("from=", "to=")):
            what, about = "", rest[0].partition("=")[2]
        elif not about or not what:
            what, about = rest[0], ""
    values = tuple(what.split(",")) if what else ()
    group_id = about.removeprefix("group/") if about.startswith("group/") else None
    return Rule(
        direction,  # type: ignore[arg-type]
        protocol,  # type: ignore[arg-type]
        ports=values if protocol != "icmp" else (),
        types=values if protocol == "icmp" else (),
        cidr=about if about and group_id is None else None,
        group_id=group_id,
    )


def listed(nft: Nftables) -> list[str]:
    """All that the kernel has of rules but counts, flows and the note, with the elements of a set in order."""
    said = re.sub(r"counter packets \d+ bytes \d+", "counter", nft.run("list ruleset"))
    said = re.sub(r"(flags dynamic,timeout\n(?:\t*timeout 1m\n)?)\t*elements = \{[^}]*\}\n", r"\1", said)
    said = re.sub(rf"(set (?:drops|{NOTE}) {{[^}}]*?)elements = {{[^}}]*}}\n", r"\1\n", said)

    def ordered(elements: re.Match[str]) -> str:
        return "elements = " + str(sorted(part.strip() for part in elements[1].split(",")))

    return [line.strip() for line in re.sub(r"elements = \{([^}]*)\}", ordered, said).splitlines() if line.strip()]


def nft(*words: str) -> str:
    """What the program nft says."""
    return subprocess.run(["nft", *words], capture_output=True, text=True, check=True).stdout


def heard(sock: socket.socket) -> bytes | None:
    """What a socket of the host has received; None for nothing."""
    try:
        return sock.recv(2048)
    except BlockingIOError:
        return None


def by_itself(frame: bytes) -> bool:
    """Whether the host sent it unasked: the kernel greets its neighbors of IPv6 when it likes."""
    return frame[:2] == b"\x33\x33" and frame[6:9] == b"\x02\xbb\x00"
