"""The resolver of a network: until it serves, and what it takes of the host's memory."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Final

from aetherscale.actors.network.dnsmasq.resolvers import Resolvers
from aetherscale.actors.network.model.devices import Alias, bridge_name
from aetherscale.actors.network.model.dns import DnsNetwork
from aetherscale.actors.network.netlink.links import Links
from aetherscale.kernel.names import derive_id
from benchmarks import networks
from benchmarks.harness import OURS, Context, Row, Samples, Target, Turn
from benchmarks.namespaces import own_namespace
from benchmarks.served import memory_mib

TIMES: Final = 3
SERVES: Final = ": started, version "
LAB: Final = DnsNetwork("lab", "isolated", IPv4Network("10.64.1.0/24"), IPv6Network("fd00:1::/64"), 1500)
DNSMASQ: Final = (
    "dnsmasq --keep-in-foreground --log-facility=- --pid-file= --no-hosts --no-resolv --conf-file=/dev/null"
)
CAPABILITIES: Final = "--inh-caps=+net_admin,+net_raw --ambient-caps=+net_admin,+net_raw"
BY_HAND: Final = (
    *("unshare", "--user", "--map-user=65534", "--map-group=65534", "--keep-caps", "--mount", "--net", "--"),
    *(
        "sh",
        "-c",
        f"mount --no-canonicalize --bind . /tmp && ip link set lo up && exec setpriv {CAPABILITIES} {DNSMASQ}",
    ),
)
"""The chain of programs that becomes dnsmasq, without a jail, without cables, and without waiting for one another."""


@asynccontextmanager
async def resolvers(context: Context) -> AsyncIterator[Mapping[str, Turn]]:
    """A bridge without a resolver; beside the bare chain of programs."""
    state = context.directory / "state"
    state.mkdir(mode=0o700)
    network_id = derive_id("bench-network", str(os.getpid()))
    bridge = bridge_name(network_id)
    with own_namespace():
        links = Links(networks.NODE)
        await links.open()
        await links.ensure_bridge(bridge, Alias(networks.NODE, "network", network_id), LAB.mtu)
        made = Resolvers(state, networks.NODE, lambda network_id, words: None)
        await made.start()
        try:
            yield {
                OURS: partial(ours_turn, made, network_id, bridge),
                "by hand": lambda: asyncio.to_thread(by_hand_turn, context.directory),
            }
        finally:
            await made.remove(network_id)
            await made.close()
            await links.close()


async def ours_turn(made: Resolvers, network_id: str, bridge: str) -> Samples:
    """Milliseconds from nothing until it serves, in namespaces of its own and connected; MiB of the process."""
    up_ms: list[float] = []
    mib: list[float] = []
    for _ in range(TIMES):
        await made.remove(network_id)
        begun = time.perf_counter()
        await made.ensure(network_id, bridge, LAB, ())
        up_ms.append((time.perf_counter() - begun) * 1000)
        pid = made.pid_of(network_id)
        assert pid is not None
        mib.append(memory_mib(pid))
    return {"ms": up_ms, "MiB": mib}


def by_hand_turn(directory: Path) -> Samples:
    """The same by hand."""
    up_ms: list[float] = []
    mib: list[float] = []
    path = directory / "by_hand.log"
    for _ in range(TIMES):
        with path.open("wb") as log:
            begun = time.perf_counter()
            process = subprocess.Popen(BY_HAND, stderr=log, cwd=directory)
            while SERVES not in path.read_text():
                assert process.poll() is None, path.read_text()
                time.sleep(0.001)
            up_ms.append((time.perf_counter() - begun) * 1000)
        mib.append(memory_mib(process.pid))
        process.send_signal(signal.SIGKILL)
        process.wait()
    return {"ms": up_ms, "MiB": mib}


RESOLVER_ROWS: Final = (
    Row(
        "resolver",
        "the resolver of a network, from nothing until it serves, and its memory",
        resolvers,
        (
            Target("ms", "<=", 150),
            Target("ms", "<=", 3, "by hand"),
            Target("MiB", "<=", 6),
        ),
        note="In user, mount and network namespaces of its own, in a jail, with a cable into the bridge. `by hand` is "
        "the same chain of programs, without the jail and the cable.",
    ),
)
