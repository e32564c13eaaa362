"""The ports of VMs, by the driver of networks, in network namespaces that are gone afterwards."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import struct
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

from aetherscale.actors.compute.model.commands import PortSpec
from aetherscale.actors.network.driver import HostNetworking
from aetherscale.actors.network.model.devices import Alias, group_of
from aetherscale.actors.network.nft.nftables import Nftables
from benchmarks import networks
from benchmarks.harness import OURS, Context, Row, Samples, Target, Turn
from benchmarks.namespaces import Place, ip, own_namespace
from benchmarks.networks import NODE, Networks, Ports

PORTS: Final = 100
KNOWN: Final = 1000
ONE_BY_ONE: Final = 10
BRIDGE: Final = "aeb0123456789ab"
GROUP: Final = group_of("0123456789abcdef")
MTU: Final = 1450

_TUNSETIFF, _TUNSETPERSIST, _TUNSETOWNER = 0x400454CA, 0x400454CB, 0x400454CC
_TAP_WITH_HEADER_EXCLUSIVE: Final = 0x0002 | 0x1000 | 0x4000 | 0x8000
_RTM_NEWLINK, _RTM_DELLINK, _RTM_NEWNEIGH = 16, 17, 28
_CREATE_REPLACE: Final = 0x500


@asynccontextmanager
async def devices(context: Context) -> AsyncIterator[Mapping[str, Turn]]:
    """A network with its resolver and the rules of 1,000 VMs; beside a bridge and a thread that asks the kernel."""
    among = networks.networks(1)
    known, those = networks.ports(among, 0, KNOWN), networks.ports(among, 50_000, PORTS)
    place = Place()
    hand = place.do(partial(Hand, among, known, those))
    with own_namespace():
        async with networks.driver(context.directory / "state", among, known) as driver:
            yield {
                OURS: partial(ours_turn, driver, those),
                "by hand": lambda: asyncio.to_thread(place.do, hand.turn),
            }
    place.do(hand.close)
    place.close()


async def ours_turn(driver: HostNetworking, those: Ports) -> Samples:
    """Milliseconds for all ports, asked for at once, and to remove them, asked for at once; and for one at a time."""

    async def made(some: Ports) -> float:
        begun = time.perf_counter()
        held = await asyncio.gather(*(driver.open(vm_id, ports) for vm_id, ports in some.items()))
        took_s = time.perf_counter() - begun
        for (descriptor,) in held:
            os.close(descriptor)
        return took_s * 1000

    async def removed(some: Ports) -> float:
        begun = time.perf_counter()
        await asyncio.gather(*(driver.close_ports(vm_id, ports) for vm_id, ports in some.items()))
        return (time.perf_counter() - begun) * 1000

    found: dict[str, list[float]] = {"made ms": [await made(those)], "removed ms": [await removed(those)]}
    for one in [dict([each]) for each in list(those.items())[:ONE_BY_ONE]]:
        found.setdefault("one more ms", []).append(await made(one))
        found.setdefault("one less ms", []).append(await removed(one))
    return found


class Hand:
    """The same calls, one after the other, with nothing checked but that each succeeds. It has no resolver."""

    def __init__(self, among: Networks, known: Ports, those: Ports) -> None:
        add_bridge()
        self._nft = Nftables()
        self._nft.run(networks.text(among, known))
        self._asking = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._ports = [port for (port,) in those.values()]
        self._all = networks.texts_of_one(among, known, those)
        ones = [dict([each]) for each in list(those.items())[:ONE_BY_ONE]]
        self._ones = [networks.texts_of_one(among, known, one) for one in ones]

    def turn(self) -> Samples:
        """As `ours_turn`."""
        found: dict[str, list[float]] = {}
        self._do(found, "made ms", "removed ms", self._all, self._ports)
        for texts, port in zip(self._ones, self._ports, strict=False):
            self._do(found, "one more ms", "one less ms", texts, [port])
        return found

    def close(self) -> None:
        """Let go."""
        self._nft.close()
        self._asking.close()

    def _do(
        self, found: dict[str, list[float]], make: str, remove: str, texts: tuple[str, str], ports: list[PortSpec]
    ) -> None:
        names = [(port.tap.encode(), str(Alias(NODE, "port", port.tap[3:])).encode(), port.mac) for port in ports]
        bridge = socket.if_nametoindex(BRIDGE)
        begun = time.perf_counter()
        self._nft.run(texts[0])
        held = [tap(self._asking, bridge, *each) for each in names]
        found.setdefault(make, []).append((time.perf_counter() - begun) * 1000)
        for descriptor in held:
            os.close(descriptor)
        begun = time.perf_counter()
        ask_to_remove(self._asking, GROUP)
        self._nft.run(texts[1])
        found.setdefault(remove, []).append((time.perf_counter() - begun) * 1000)


def add_bridge() -> None:
    """A bridge by hand."""
    ip(f"link add {BRIDGE} type bridge")
    ip(f"link set {BRIDGE} up")


def tap(asking: socket.socket, bridge: int, name: bytes, alias: bytes, mac: str) -> int:
    """One tap in the bridge, up; its descriptor."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name, _TAP_WITH_HEADER_EXCLUSIVE))
    fcntl.ioctl(descriptor, _TUNSETOWNER, 0)
    index = socket.if_nametoindex(name.decode())
    no_address = attribute(26, attribute(10, attribute(8, b"\1")))
    numbers = b"".join(
        attribute(kind, struct.pack("=I", value)) for kind, value in ((4, MTU), (27, GROUP), (10, bridge))
    )
    ask(asking, _RTM_NEWLINK, 0, link(index) + numbers + attribute(20, alias) + no_address)
    settings = attribute(8, b"\0") + attribute(9, b"\0") + attribute(24, b"\1")
    ask(asking, _RTM_NEWLINK, 0, link(index) + attribute(18, attribute(4, b"bridge\0") + attribute(5, settings)))
    entry = struct.pack("=BxHiHBB", 7, 0, index, 0x40, 4, 0) + attribute(2, bytes.fromhex(mac.replace(":", "")))
    ask(asking, _RTM_NEWNEIGH, _CREATE_REPLACE, entry)
    ask(asking, _RTM_NEWLINK, 0, link(index, 1))
    fcntl.ioctl(descriptor, _TUNSETPERSIST, 1)
    return descriptor


def ask_to_remove(asking: socket.socket, group: int) -> None:
    """Remove all links of a group."""
    ask(asking, _RTM_DELLINK, 0, link(0) + attribute(27, struct.pack("=I", group)))


def link(index: int, flags: int = 0) -> bytes:
    """ifinfomsg."""
    return struct.pack("=BxHiII", 0, 0, index, flags, flags)


def attribute(kind: int, value: bytes) -> bytes:
    """rtattr."""
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def ask(asking: socket.socket, kind: int, flags: int, body: bytes) -> None:
    """Send a request, and read that it was carried out."""
    asking.send(struct.pack("=IHHII", 16 + len(body), kind, 5 | flags, 1, 0) + body)
    (status,) = struct.unpack_from("=i", asking.recv(65536), 16)
    assert status == 0, os.strerror(-status)


PORT_ROWS: Final = (
    Row(
        "ports",
        "100 ports beside those of 1,000 VMs: rules, persistent taps in a bridge, up; and all of them removed; and one",
        devices,
        (
            Target("made ms", "<=", 300),
            Target("removed ms", "<=", 200),
            Target("made ms", "<=", 2, "by hand"),
            Target("removed ms", "<=", 2, "by hand"),
        ),
        rounds=9,
        note="The driver of networks, with a resolver that is told of each. `by hand` is the same calls of nft, ioctl "
        "and netlink, one by one, the text made beforehand, and no resolver.",
    ),
)
