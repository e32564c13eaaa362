"""What the rules cost that each packet of a bridge passes: TCP between two guests with stacks of their own."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from pathlib import Path
from typing import Final

from aetherscale.actors.firewall.model.commands import Rule
from aetherscale.actors.network.model import flows, ruleset
from aetherscale.actors.network.model.addresses import link_local_of
from aetherscale.actors.network.model.groups import compile_group
from aetherscale.actors.network.model.ruleset import NetworkRules, PortRules
from aetherscale.actors.network.nft.nftables import Nftables
from benchmarks.harness import OURS, Context, Row, Samples, Target, Turn
from benchmarks.namespaces import Place, ip

NETWORK: Final = NetworkRules("aeb000000000001", "isolated", IPv4Network("10.64.1.0/24"))
OTHERS: Final = 1000
"""Ports besides those two that the rules know."""
SENT_S: Final = 0.5
PART: Final = bytes(1 << 18)
_TCP_PORT: Final = 5001
GROUP: Final = "a" * 16
GROUPS: Final = {GROUP: compile_group([Rule("in", "tcp", ports=(str(_TCP_PORT),)), Rule("out", "any")])}
"""A group of which a port looks at what it takes and at what it sends."""


class Lab:
    """A bridge in a namespace, and two guests in namespaces of theirs. With rules they are two of a thousand ports.

    Each of those bears `groups`.
    """

    def __init__(self, *, ruled: bool, groups: tuple[str, ...] = ()) -> None:
        self.host, self.guests = Place(), [Place(), Place()]
        self.host.do(partial(self._make, ruled=ruled, groups=groups))
        for number, guest in enumerate(self.guests):
            guest.do(partial(_up, number))

    def close(self) -> None:
        """Let the namespaces go."""
        for place in (*self.guests, self.host):
            place.close()

    def turn(self) -> Samples:
        """Gbit/s with packets as large as a stack makes them, and with packets of 1,500 bytes alone."""
        found: dict[str, list[float]] = {}
        for figure, segments in (("Gbit/s", 65535), ("Gbit/s of small packets", 1)):
            for guest in self.guests:
                guest.do(partial(ip, f"link set eth0 gso_max_segs {segments}"))
            found[figure] = [self._sent()]
        return found

    def _make(self, *, ruled: bool, groups: tuple[str, ...]) -> None:
        for setting in Path("/proc/sys/net/bridge").glob("bridge-nf-call-*"):
            setting.write_text("0")  # as on a host without br_netfilter; `doctor` tells where it is otherwise
        if ruled:
            nft = Nftables()
            ports = [_port(number, groups) for number in range(OTHERS + len(self.guests))]
            nft.run(flows.table() + ruleset.replace_all(ruleset.compile([NETWORK], ports, GROUPS)))
            nft.close()
        ip(f"link add {NETWORK.bridge} type bridge mcast_snooping 0")
        ip(f"link set {NETWORK.bridge} up")
        for number, guest in enumerate(self.guests):
            port = _port(number)
            ip(f"link add {port.tap} type veth peer name eth0 address {port.mac} netns {guest.tid}")
            ip(f"link set {port.tap} master {NETWORK.bridge} up")

    def _sent(self) -> float:
        ready, received = threading.Event(), [0, 0.0]

        def receive() -> None:
            with socket.create_server((str(_port(1).ipv4), _TCP_PORT)) as listener:
                ready.set()
                with listener.accept()[0] as heard:
                    buffer = bytearray(len(PART))
                    begun = time.perf_counter()
                    while count := heard.recv_into(buffer):
                        received[0] += count
                    received[1] = time.perf_counter() - begun

        def send() -> None:
            ready.wait()
            with socket.create_connection((str(_port(1).ipv4), _TCP_PORT)) as sending:
                end_s = time.perf_counter() + SENT_S
                while time.perf_counter() < end_s:
                    sending.sendall(PART)

        sender = threading.Thread(target=lambda: self.guests[0].do(send))
        sender.start()
        self.guests[1].do(receive)
        sender.join()
        return received[0] * 8 / received[1] / 1e9


def _port(number: int, groups: tuple[str, ...] = ()) -> PortRules:
    mac = f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}"
    ipv4 = IPv4Address("10.64.0.2") + 256 + number
    own = (IPv6Address(link_local_of(mac)),)
    return PortRules(f"aep{number:012x}", NETWORK.bridge, mac, ipv4, own, groups=groups)


def _up(number: int) -> None:
    ip(f"address add {_port(number).ipv4}/16 dev eth0")
    ip("link set eth0 up")


@asynccontextmanager
async def throughputs(context: Context) -> AsyncIterator[Mapping[str, Turn]]:
    """The same bridge with the rules of ours, which record flows, once with groups, and without any."""
    labs = [Lab(ruled=True), Lab(ruled=True, groups=(GROUP,)), Lab(ruled=False)]

    def ours() -> Samples:
        return {**labs[0].turn(), **{f"{figure}{GROUPED}": values for figure, values in labs[1].turn().items()}}

    yield {OURS: lambda: asyncio.to_thread(ours), "unfiltered": lambda: asyncio.to_thread(labs[2].turn)}
    for lab in labs:
        lab.close()


GROUPED: Final = ", with groups"
BRIDGE_ROWS: Final = (
    Row(
        "throughput",
        "TCP between two guests of a network, through the rules of 1,000 ports",
        throughputs,
        (
            Target("Gbit/s", ">=", 0.9, "unfiltered"),
            Target("Gbit/s of small packets", ">=", 0.9, "unfiltered"),
            Target(f"Gbit/s{GROUPED}", ">=", 0.9, "unfiltered", "Gbit/s"),
            Target(f"Gbit/s of small packets{GROUPED}", ">=", 0.9, "unfiltered", "Gbit/s of small packets"),
        ),
        rounds=15,
        note="Network namespaces as guests. `unfiltered` is the same bridge in a namespace without any rule. With "
        "groups each of the ports bears one, which has rules for what it takes and for what it sends.",
    ),
)
