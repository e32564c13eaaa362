"""The resolvers of a node's networks. Every method ends in the same world when it is called again, or was cut short."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from ipaddress import IPv6Interface
from pathlib import Path
from typing import Final
from weakref import WeakValueDictionary

from aetherscale import statedir
from aetherscale.actors.network.dnsmasq import process as processes
from aetherscale.actors.network.dnsmasq.directory import DEVICES, SEEN_AT, Directory
from aetherscale.actors.network.dnsmasq.process import DNSMASQ, Process
from aetherscale.actors.network.dnsmasq.upstreams import host_upstreams
from aetherscale.actors.network.model import devices, dns
from aetherscale.actors.network.model.addresses import link_local_of, mac_of
from aetherscale.actors.network.model.dns import NOTHING_ELSEWHERE, Address, DnsNetwork, DnsPort, Elsewhere
from aetherscale.actors.network.netlink.cables import Cables
from aetherscale.kernel.names import ID_PATTERN
from aetherscale.processes import identity, launch

log = logging.getLogger(__name__)

_ID: Final = re.compile(ID_PATTERN)

OnEnd = Callable[[str, str], None]
"""Told of the end of a resolver that was not made to end: the network's id, and how it ended."""


class Resolvers:
    """One dnsmasq for each network, under `<state_dir>/networks`. Methods raise `Fault`, and `OSError` of files."""

    def __init__(
        self,
        state_dir: Path,
        node: str,
        on_end: OnEnd,
        *,
        upstreams: Callable[[], Sequence[Address]] = host_upstreams,
        dnsmasq: str = DNSMASQ,
        allow_unisolated: bool = False,
    ) -> None:
        self._root = state_dir / "networks"
        self._on_end = on_end
        self._upstreams = upstreams
        self._dnsmasq = dnsmasq
        self._allow_unisolated = allow_unisolated
        self._cables = Cables(node)
        self._processes: dict[str, Process] = {}
        self._networks: dict[str, DnsNetwork] = {}
        self._stale: set[str] = set()
        """Those whose process may not have read what its files of ports say."""
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def start(self) -> None:
        """Begin, in the network namespace that this runs in."""
        statedir.make(self._root)
        await self._cables.open()

    async def close(self) -> None:
        """Stop observing. Resolvers run on."""
        for process in self._processes.values():
            process.detach()
        self._processes.clear()
        await self._cables.close()

    async def reconcile(self, expected: Collection[str]) -> None:
        """Observe the resolvers of these networks that an earlier node has left, and remove those of all others.

        It starts none. After it `ensure` is to be called for each network.
        """
        known = {path.name for path in _below(self._root)}
        known |= {link.alias.id for link in await self._cables.ours() if link.alias is not None}
        for network_id in sorted(known):
            if network_id not in expected:
                await self.remove(network_id)
            else:
                async with self._turn(network_id):
                    await self._alive(network_id)

    async def ensure(
        self,
        network_id: str,
        bridge: str,
        network: DnsNetwork,
        ports: Iterable[DnsPort],
        elsewhere: Elsewhere = NOTHING_ELSEWHERE,
    ) -> None:
        """Ensure that the network's resolver serves, in the bridge, and knows these ports and no others.

        The bridge is there, and has the network's MTU; where the network has an advertised router, it gets the
        link-local address of that, which follows from the MAC that a bridge of ours has.
        """
        async with self._turn(network_id):
            directory = Directory(self._root, network_id)
            router_mac, service_mac = mac_of(bridge), mac_of(f"resolver {network_id}")
            texts = {
                directory.configuration_name: dns.configuration(network, SEEN_AT),
                DEVICES: dns.devices(network, service_mac, router_mac),
            }
            directory.make()
            for name, text in texts.items():
                directory.write(name, text)
            if network.leads_outside:
                directory.write(dns.UPSTREAMS, dns.upstreams(self._upstreams()))
            self._write_ports(directory, network, ports, elsewhere)
            if network.has_advertiser:
                await self._cables.add_router(bridge, IPv6Interface(f"{link_local_of(router_mac)}/64"))
            self._networks[network_id] = network
            present = processes.fingerprint(*texts.values())
            process = await self._alive(network_id)
            is_right = process is not None and process.record.fingerprint == present
            if process is not None and is_right and not self._wrong_cables(network_id, bridge, network):
                self._read_again(network_id)
                return
            launch.require_isolation(network_id, DNSMASQ, allow_unisolated=self._allow_unisolated)
            await self._end(network_id)
            await self._start(directory, bridge, network, present, (service_mac, router_mac))

    async def update(self, network_id: str, ports: Iterable[DnsPort], elsewhere: Elsewhere = NOTHING_ELSEWHERE) -> None:
        """Have the resolver of a network know these ports and no others, where it was ensured before.

        Where it was not, the call that ensures it will say which ports there are.
        """
        async with self._turn(network_id):
            network = self._networks.get(network_id)
            if network is not None:
                self._write_ports(Directory(self._root, network_id), network, ports, elsewhere)
                self._read_again(network_id)

    async def remove(self, network_id: str) -> None:
        """Ensure that nothing is left of a network's resolver: no process, no cable, no file."""
        assert _ID.fullmatch(network_id), network_id
        async with self._turn(network_id):
            self._networks.pop(network_id, None)
            self._stale.discard(network_id)
            await self._alive(network_id)
            await self._end(network_id)
            Directory(self._root, network_id).remove()

    def pid_of(self, network_id: str) -> int | None:
        """The process of a network's resolver; None where none is known to run."""
        process = self._processes.get(network_id)
        return None if process is None else process.record.pid

    def wrong_cables(self, network_id: str, bridge: str, network: DnsNetwork) -> dict[str, list[str]]:
        """What is wrong with the cables of a resolver that runs, in the words of `ip link`, by their names.

        The kernel takes those of one that has ended.
        """
        process = self._processes.get(network_id)
        if process is None or identity.has_ended(process.record.pid):
            return {}
        return self._wrong_cables(network_id, bridge, network)

    async def _start(
        self, directory: Directory, bridge: str, network: DnsNetwork, present: str, macs: tuple[str, str]
    ) -> None:
        network_id = directory.network_id
        starting = await processes.start(directory, self._dnsmasq, present, partial(self._ended, network_id))
        process = starting.process
        try:
            pid = process.record.pid
            far = (dns.SERVICE, macs[0])
            await self._cables.connect(devices.service_name(network_id), network_id, bridge, far, pid)
            if network.has_advertiser:
                far = (dns.ADVERTISER, macs[1])
                name = devices.advertiser_name(network_id)
                await self._cables.connect(name, network_id, bridge, far, pid, mute=True)
            await starting.release()
        except BaseException:
            await asyncio.shield(process.end())
            await self._disconnect(network_id)
            raise
        finally:
            starting.close()
        self._processes[network_id] = process
        self._stale.discard(network_id)

    async def _alive(self, network_id: str) -> Process | None:
        """The network's process, known or found again."""
        process = self._processes.get(network_id)
        if process is None or process.gone.is_set():
            self._processes.pop(network_id, None)
            process = await processes.find(Directory(self._root, network_id), partial(self._ended, network_id))
            if process is not None:
                self._processes[network_id] = process
                self._stale.add(network_id)
        return process

    async def _end(self, network_id: str) -> None:
        """End every process of the network, and take its cables."""
        process = self._processes.get(network_id)
        if process is not None:
            await process.end()
            self._processes.pop(network_id, None)
        await processes.end_others(Directory(self._root, network_id))
        await self._disconnect(network_id)

    async def _disconnect(self, network_id: str) -> None:
        # The kernel removes them a moment after the last process of their namespace; nobody has to wait for that.
        for name in (devices.service_name(network_id), devices.advertiser_name(network_id)):
            await self._cables.remove(name, network_id)

    def _wrong_cables(self, network_id: str, bridge: str, network: DnsNetwork) -> dict[str, list[str]]:
        mute = {devices.service_name(network_id): False}
        if network.has_advertiser:
            mute[devices.advertiser_name(network_id)] = True
        found = {
            name: self._cables.wrong_with(name, network_id, bridge, mute=is_mute) for name, is_mute in mute.items()
        }
        return {name: wrong for name, wrong in found.items() if wrong}

    def _ended(self, network_id: str, words: str) -> None:
        if self._processes.pop(network_id, None) is not None:
            log.warning("the resolver of network %s: %s", network_id, words)
            self._on_end(network_id, words)

    def _write_ports(
        self, directory: Directory, network: DnsNetwork, ports: Iterable[DnsPort], elsewhere: Elsewhere
    ) -> None:
        every = list(ports)
        texts = {
            dns.LEASES: dns.leases(every, directory.read(dns.LEASES)),
            dns.NAMES: dns.names(network, every),
            dns.ELSEWHERE: dns.elsewhere(network, elsewhere),
        }
        for name, text in texts.items():
            if directory.write(name, text):
                self._stale.add(directory.network_id)

    def _read_again(self, network_id: str) -> None:
        process = self._processes.get(network_id)
        if process is not None and network_id in self._stale:
            process.read_again()
            self._stale.discard(network_id)

    def _turn(self, network_id: str) -> asyncio.Lock:
        """Held while something is done to a resolver; there for as long as it is held or waited for."""
        return self._turns.setdefault(network_id, asyncio.Lock())


def _below(root: Path) -> list[Path]:
    return [path for path in root.iterdir() if _ID.fullmatch(path.name)]
