"""What a port in a network adds to a VM: its start and its end, by the driver and by a whole node (TCG)."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from benchmarks import by_hand, networks
from benchmarks.harness import OURS, Context, Row, Samples, Target, Turn
from benchmarks.images import bare_image
from benchmarks.namespaces import Place, own_namespace
from benchmarks.rows_ports import BRIDGE, GROUP, add_bridge, ask_to_remove, tap
from benchmarks.rows_qemu import COMMANDS, TURNS, bare_node, create, delete, driven, driver_turn
from benchmarks.served import wire
from benchmarks.wire import Wire

CARD: Final = "virtio-net-pci,netdev=n,romfile="


@asynccontextmanager
async def boots(context: Context) -> AsyncIterator[Mapping[str, Turn]]:
    """VMs with a port, VMs with user-mode networking, and QEMU by hand with a tap in a bridge without rules."""
    image = bare_image(context.directory)
    among = networks.networks(1)
    numbers = itertools.count(1)
    place = Place()
    place.do(add_bridge)
    with own_namespace():
        async with (
            networks.driver(context.directory / "networks", among, {}) as ports,
            driven(context.directory / "state", image, ports) as driver,
        ):
            yield {
                OURS: partial(driver_turn, driver, numbers, lambda: networks.ports(among, next(numbers), 1)),
                "without": partial(driver_turn, driver, numbers),
                "by hand": lambda: asyncio.to_thread(place.do, partial(by_hand_turn, context.directory, image)),
            }
    place.close()


def by_hand_turn(directory: Path, image: Path) -> Samples:
    """QEMU with a tap that was made for it, and its end; the tap is removed outside of what is measured."""
    up: list[float] = []
    down: list[float] = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as asking:
        for number in range(TURNS):
            begun = time.perf_counter()
            bridge = socket.if_nametoindex(BRIDGE)
            descriptor = tap(asking, bridge, f"aep{number:012x}".encode(), b"by hand", f"52:54:00:00:00:{number:02x}")
            os.set_inheritable(descriptor, True)
            pid = by_hand.boot(directory / "hand.sock", image, "-netdev", f"tap,id=n,fd={descriptor}", "-device", CARD)
            os.close(descriptor)
            up.append((time.perf_counter() - begun) * 1000)
            down.append(by_hand.end(pid))
            ask_to_remove(asking, GROUP)
    return {"create ms": up, "kill ms": down}


@asynccontextmanager
async def node_creates(context: Context) -> AsyncIterator[Mapping[str, Turn]]:
    """A real node with a network, in a namespace of its own."""
    state = context.directory / "state"
    with own_namespace():
        async with bare_node(state):
            plain = wire(state)
            wish = msgspec.json.encode({"name": "lab", "ipv4-prefix": "10.9.8.0/24"})
            await asyncio.to_thread(plain.ask, f"{COMMANDS}.network.create-network", wish)
            yield {
                OURS: lambda: asyncio.to_thread(node_turn, plain, virtual_network="lab"),
                "without": lambda: asyncio.to_thread(node_turn, plain),
            }
            plain.close()
        await networks.end_resolvers(state)


def node_turn(plain: Wire, **more: str) -> Samples:
    """Milliseconds from the command until the VM runs, and from the command to delete it until nothing is left."""
    up: list[float] = []
    down: list[float] = []
    for _ in range(TURNS):
        begun = time.perf_counter()
        vm_id = create(plain, **more)
        up.append((time.perf_counter() - begun) * 1000)
        begun = time.perf_counter()
        delete(plain, vm_id)
        down.append((time.perf_counter() - begun) * 1000)
    return {"create ms": up, "delete ms": down}


VM_PORT_ROWS: Final = (
    Row(
        "port-boot",
        "a VM with a port, from nothing to running (TCG), and its end",
        boots,
        (
            Target("create ms", "<=", 10, "without", more=True),
            Target("create ms", "<=", 1.4, "by hand"),
            Target("kill ms", "<=", 10),
            Target("kill ms", "<=", 2, "without", more=True),
        ),
        note="The driver alone. `without` is a VM of ours with user-mode networking, `by hand` QEMU with a tap in a "
        "bridge without rules, and with nothing else that the driver does.",
    ),
    Row(
        "port-create",
        "`vm create` with a port over NATS, until it runs (TCG), and its deletion",
        node_creates,
        (Target("create ms", "<=", 10, "without", more=True),),
        note="A whole node, with one client.",
    ),
)
