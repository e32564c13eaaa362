"""Networks and ports of VMs as a log has them, and what the kernel has to be told of them, made beforehand."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from ipaddress import IPv6Network
from pathlib import Path
from typing import Any, Final

from aetherscale.actors.compute.model.commands import PortSpec
from aetherscale.actors.network.dnsmasq.resolvers import Resolvers
from aetherscale.actors.network.driver import HostNetworking
from aetherscale.actors.network.known import Known
from aetherscale.actors.network.model import ruleset
from aetherscale.actors.network.model.addresses import ipv6_of, mac_of
from aetherscale.actors.network.model.devices import tap_name
from aetherscale.actors.network.model.effects import EnsureNetwork, NetworkEnsured, NetworkSpec
from aetherscale.actors.network.model.ruleset import Ruleset
from aetherscale.actors.network.model.state import Network
from aetherscale.kernel.names import derive_id

NODE: Final = "bench1"
BOOT: Final = "boot-1"

Networks = Mapping[str, NetworkSpec]
Ports = Mapping[str, Sequence[PortSpec]]


def networks(count: int) -> Networks:
    """Isolated ones, by their ids, which are of this process alone: resolvers are found by them."""
    return {
        derive_id("bench-network", str(os.getpid()), str(number)): NetworkSpec(
            f"lab{number}", "isolated", f"10.{64 + number}.0.0/16", f"fd12:3456:789a:{number:x}::/64", None
        )
        for number in range(count)
    }


def ports(among: Networks, first: int, count: int) -> dict[str, tuple[PortSpec]]:
    """A port for each of the VMs from number `first` on, which are spread over the networks."""
    every = list(among.items())
    return dict(_port(number, *every[number % len(every)]) for number in range(first, first + count))


def _port(number: int, network_id: str, network: NetworkSpec) -> tuple[str, tuple[PortSpec]]:
    assert network.ipv4 is not None
    assert network.ipv6 is not None
    vm_id = derive_id("bench-vm", str(number))
    mac = mac_of(vm_id)
    ipv4 = network.ipv4.replace("0.0/16", f"{number // 250}.{2 + number % 250}")
    ipv6 = str(ipv6_of(IPv6Network(network.ipv6), mac))
    return vm_id, (PortSpec(network_id, network.name, f"vm-{number}", tap_name(vm_id, 0), mac, ipv4, ipv6),)


def rules(among: Networks, those: Ports) -> Ruleset:
    """The rules of these networks and ports."""
    known = Known()
    known.set_networks(among)
    known.replace_ports(those)
    return known.rules()


def text(among: Networks, those: Ports) -> str:
    """All rules, as nft is told of them."""
    return ruleset.replace_all(rules(among, those))


def texts_of_one(among: Networks, those: Ports, one: Ports) -> tuple[str, str]:
    """What adds the rules of one more, and what takes them away again."""
    before, after = rules(among, those), rules(among, {**those, **one})
    return ruleset.delta(before, after), ruleset.delta(after, before)


@asynccontextmanager
async def driver(state: Path, among: Networks, those: Ports) -> AsyncIterator[HostNetworking]:
    """The driver of networks in this namespace, with these networks, made, and the rules of these ports.

    It is gone afterwards, and its resolvers with it.
    """
    state.mkdir(mode=0o700, parents=True)
    made = HostNetworking(NODE, BOOT, state)

    def report(observation: Any) -> asyncio.Future[None]:
        done = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    try:
        await made.start(report)
        for network_id, spec in among.items():
            ensured = await made.perform(EnsureNetwork("k", network_id, spec), lambda step, **fields: None)
            assert isinstance(ensured, NetworkEnsured), ensured
        await made.reconcile({each: Network(each, spec, "ready", 0, BOOT) for each, spec in among.items()})
        await made.restore(those)
        yield made
    finally:
        await made.close()
        await end_resolvers(state)


async def end_resolvers(state: Path) -> None:
    """End the resolvers of a state directory, which outlive their node."""
    left = Resolvers(state, NODE, lambda network_id, words: None)
    await left.start()
    await left.reconcile(())
    await left.close()
