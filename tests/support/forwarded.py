"""A host that leads its ports to guests: stacks of their own are the guests and the world, each a network namespace."""

from __future__ import annotations

import itertools
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address
from typing import Literal

from msgspec.structs import replace

from aetherscale.actors.network.model.ruleset import ForwardRules, NetworkRules
from tests.support.fake_guest import PATIENCE_S, FakeGuest
from tests.support.firewalled import Firewalled, firewalled
from tests.support.guest_namespaces import Guest, guests

Protocol = Literal["tcp", "udp"]
Origin = Literal["world", "host", "neighbor", "itself", "other network"]
ORIGINS: tuple[Origin, ...] = ("world", "host", "neighbor", "itself", "other network")
UPLINK = {4: "192.0.2.1", 6: "2001:db8::1"}
WORLD = {4: "192.0.2.9", 6: "2001:db8::9"}
_NUMBERS = itertools.count(40_000)


def forward(
    protocol: Protocol, host_port: int, guest_port: int, address: str = "", *, begins: bool = True
) -> ForwardRules:
    return ForwardRules(protocol, ip_address(address) if address else None, host_port, guest_port, begins)


class Flow:
    """What was begun from somewhere and has come to a guest: both of its ends."""

    def __init__(self, client: socket.socket, server: socket.socket, protocol: Protocol, first: bytes) -> None:
        self.client, self._protocol = client, protocol
        if protocol == "tcp":
            self.server, address = server.accept()
            self.server.settimeout(server.gettimeout())
            client.settimeout(server.gettimeout())
            client.send(first)
            assert self.server.recv(2048) == first
        else:
            self.server = server
            data, address = server.recvfrom(2048)
            assert data == first
        self.source, self._back = address[0], address
        self.answers(b"an answer")
        assert client.recv(2048) == b"an answer"

    def answers(self, data: bytes) -> None:
        if self._protocol == "tcp":
            self.server.send(data)
        else:
            self.server.sendto(data, self._back)

    def goes_on(self) -> None:
        self.client.send(b"more")
        assert self.server.recv(2048) == b"more"
        self.answers(b"another answer")
        assert self.client.recv(2048) == b"another answer"

    def close(self) -> None:
        self.client.close()
        if self._protocol == "tcp":
            self.server.close()


class Forwarded:
    """The host, with the uplink 192.0.2.1; the networks 1 and 2 that it routes; `web` is the guest that is led to."""

    def __init__(self, host: Firewalled, open_: ExitStack) -> None:
        self.host, self._open = host, open_
        self._make = open_.enter_context(guests())
        self.stacks: dict[str, Guest] = {}
        self.known: dict[str, FakeGuest] = {}
        host.links.link("add", ifname="uplink", kind="bridge", br_mcast_snooping=0)
        host.links.link("set", index=host.index("uplink"), state="up", address="02:99:00:00:00:01")
        for version, address in UPLINK.items():
            host.own("uplink", address, 24 if version == 4 else 64)
        self._add("world", "uplink", "02:99:00:00:00:09", "cable", WORLD)
        host.flows.ensure()
        self.lab, self.other = host.network(1, "nat"), host.network(2, "nat")
        for name, network, number in (
            ("itself", self.lab, 2),
            ("neighbor", self.lab, 3),
            ("other network", self.other, 2),
        ):
            self._guest(name, network, number)
        self.web = self.known["itself"]

    def _guest(self, name: str, network: NetworkRules, number: int) -> None:
        guest = self.known[name] = self.host.guest(network, number, made=False)
        self._add(name, network.bridge, guest.mac, guest.tap, {4: guest.ipv4, 6: guest.ipv6})
        self.host.acquaint(network.bridge, guest)

    def _add(self, name: str, bridge: str, mac: str, cable: str, addresses: dict[int, str]) -> None:
        stack = self.stacks[name] = self._make(bridge, mac, cable)
        router, own = self.host.mac(bridge), self.host.links.get_addr(index=self.host.index(bridge))
        stack.up()
        for version, address in addresses.items():
            family = socket.AF_INET if version == 4 else socket.AF_INET6
            (by,) = (
                each.get_attr("IFA_ADDRESS")
                for each in own
                if each["family"] == family and not each.get_attr("IFA_ADDRESS").startswith("fe80")
            )
            length = 24 if version == 4 else 64
            stack.sh("ip", "address", "add", f"{address}/{length}", "dev", "eth0", *(["nodad"] * (version == 6)))
            stack.sh("ip", f"-{version}", "route", "replace", "default", "via", by)
            # What does not arrive is not lost for want of an answer to ARP, nor late for it.
            stack.sh("ip", "neighbor", "replace", by, "lladdr", router, "dev", "eth0", "nud", "permanent")
            self.host.neighbor(bridge, address, mac)

    # --- the rules ---

    def lead(self, *forwards: ForwardRules, to: Origin = "itself", apply: bool = True) -> None:
        """Let these be the forwards to a guest, by a delta, or by that of the next change."""
        tap = self.known[to].tap
        self.host.ports[tap] = replace(self.host.ports[tap], forwards=forwards)
        if apply:
            self.host.apply()

    def bear(self, *groups: str, to: Origin = "itself") -> None:
        self.host.bear(self.known[to], *groups)

    # --- the sockets ---

    def stack(self, origin: Origin, version: int, protocol: Protocol) -> socket.socket:
        """A socket in the stack of this one."""
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
        made = (
            socket.socket(family, kind)
            if origin == "host"
            else self.stacks[origin].do(lambda: socket.socket(family, kind))
        )
        self._open.callback(made.close)
        made.settimeout(PATIENCE_S)
        return made

    def listens(
        self, version: int, protocol: Protocol, port: int, *, at: Origin = "itself", address: str = ""
    ) -> socket.socket:
        made = self.stack(at, version, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((address, port))
        if protocol == "tcp":
            made.listen()
        return made

    def begins(
        self, origin: Origin, version: int, protocol: Protocol, to: str, port: int, data: bytes
    ) -> socket.socket:
        """Begin to speak; what it comes to is seen at the other end."""
        made = self.stack(origin, version, protocol)
        if protocol == "tcp":
            made.setblocking(False)
            made.connect_ex((to, port))
        else:
            made.connect((to, port))
            says(made, data)
        return made

    def flow(self, client: socket.socket, server: socket.socket, protocol: Protocol, first: bytes) -> Flow:
        """What was begun, and has to come to who listens."""
        made = Flow(client, server, protocol, first)
        self._open.callback(made.close)
        return made

    def settle(self, origin: Origin) -> None:
        """What it has sent is at its end, or nowhere: the host has answered what was sent later."""
        if origin == "host":
            return
        number = next(_NUMBERS)

        def ask() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
                sock.settimeout(PATIENCE_S)
                head = struct.pack("!BBHHH", 8, 0, 0, number, 1)
                block = sum(struct.unpack("!4H", head))
                sock.sendto(head[:2] + struct.pack("!H", ~block & 0xFFFF) + head[4:], (UPLINK[4], 0))
                while struct.unpack("!BBHHH", sock.recv(2048)[20:28])[::3] != (0, number):
                    pass

        self.stacks[origin].do(ask)


def says(sock: socket.socket, data: bytes) -> None:
    """Send, also where the host does not let it: a socket of the host is told so at once."""
    try:
        sock.send(data)
    except PermissionError:
        return


def hears(sock: socket.socket) -> bytes | None:
    """What a socket has by now; None for nothing."""
    sock.setblocking(False)
    try:
        return sock.recv(2048)
    except BlockingIOError:
        return None
    finally:
        sock.settimeout(PATIENCE_S)


@contextmanager
def forwarded() -> Iterator[Forwarded]:
    with firewalled() as host, ExitStack() as open_:
        yield Forwarded(host, open_)
