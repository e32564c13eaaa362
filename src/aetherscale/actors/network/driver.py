"""Networks and the ports of VMs on this host, by netlink, nft and dnsmasq.

Order is what keeps it safe, and stands here alone: a network's rules, then its bridge; a port's rules, then its tap, in
the bridge, up. Removal goes the other way. Whatever lies between two steps when the node is killed, the base rules drop
what has no rules of its own.

Nothing is opened before the log has its first network: a node that never had one touches nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from aetherscale.actors.compute.model.commands import NO_RULES, PortSpec, VmRules
from aetherscale.actors.network import lacks
from aetherscale.actors.network.dnsmasq.upstreams import host_upstreams
from aetherscale.actors.network.facts import HostFacts
from aetherscale.actors.network.groups import Groups
from aetherscale.actors.network.hands import Hands, open_hands
from aetherscale.actors.network.inspection import Inspection, Lost, is_connected
from aetherscale.actors.network.known import Opening
from aetherscale.actors.network.losses import Losses
from aetherscale.actors.network.model.dns import Address
from aetherscale.actors.network.model.effects import (
    OF_HOST,
    EnsureNetwork,
    NetworkEffect,
    NetworkEnsured,
    NetworkOutcome,
    NetworkRemoved,
)
from aetherscale.actors.network.model.state import Network
from aetherscale.actors.network.netlink import taps
from aetherscale.actors.network.nft.watching import FLOWS
from aetherscale.actors.network.ports import Lend
from aetherscale.actors.network.telling import Telling
from aetherscale.actors.network.watches import Watches
from aetherscale.bus.tasks import Tasks
from aetherscale.kernel.failures import EffectFailed
from aetherscale.kernel.fault import Fault
from aetherscale.runtime.component import Progress, Report
from aetherscale.settings import PUBLIC_BRIDGE

log = logging.getLogger(__name__)


class HostNetworking(Groups, HostFacts):
    """The driver of networks, and the ports of VMs, of one node in its network namespace."""

    def __init__(
        self,
        node: str,
        boot_id: str,
        state_dir: Path,
        *,
        upstreams: Callable[[], Sequence[Address]] = host_upstreams,
        allow_unisolated: bool = False,
        public_bridge: str = PUBLIC_BRIDGE,
    ) -> None:
        super().__init__()
        self._node = node
        self._allow_unisolated = allow_unisolated
        self._public_bridge = public_bridge
        self._open_hands = partial(open_hands, node, state_dir, upstreams=upstreams, allow_unisolated=allow_unisolated)
        self._boot_id = boot_id
        self._opening: dict[str, Opening] = {}
        """The ports of VMs that wait to be opened: the first one makes the rules of all."""
        self._closing: dict[str, Sequence[PortSpec]] = {}
        """The ports of VMs that wait to be closed: the first one closes all, since each by itself takes 20 ms."""
        self._closed: set[str] = set()
        """The taps of ports that were closed, and of which the log may not say so yet."""
        self._plugged: dict[str, int] = {}
        """The taps that are there, with their indexes: those of VMs that were started since the host was."""
        self._bridges: dict[str, int] = {}
        """The indexes of bridges, by the network's id; 0 for one of the host's that is not there."""
        self._lend: Lend = lambda vm_id, tap: None
        self._had_networks = False
        self._left: frozenset[str] | None = None
        """The networks that earlier processes have made since the host was started; None before the first look."""
        self._losses = Losses()
        self._watches: Watches | None = None
        self._tasks = Tasks("networks")
        self._telling = Telling(self._known, self._tasks)

    # --- Driver --------------------------------------------------------------------------------------------------

    async def start(self, report: Report[Any]) -> None:
        """As in `Driver`."""
        self._losses.report = report

    async def reconcile(self, expected: Mapping[str, Network]) -> None:
        """As in `Driver`. The rules and the resolvers' lists are replaced by `restore`, which knows the ports."""
        self._had_networks = self._had_networks or bool(expected)
        wanted = [each for each in expected.values() if each.phase not in ("deleted", "deleting")]
        if self._left is None:
            self._left = frozenset(each.id for each in wanted if each.boot_id == self._boot_id)
        async with self._turn:
            self._known.set_networks({each.id: each.spec for each in wanted})
            if wanted:
                try:
                    await (await self._opened()).resolvers.reconcile(self._known.networks)
                except (Fault, OSError) as failure:
                    log.warning("the networks cannot be compared with the host: %s", failure)
            ready = {each.id: each for each in wanted if each.phase == "ready"}
            anew = [id_ for id_, each in ready.items() if each.boot_id != self._boot_id]
            lost = [(id_, what) for id_ in ready if id_ not in anew and (what := self._missing(id_))]
            known = ready.keys() - dict(lost) - set(anew)
            lost += [(id_, what) for id_, what in await self._looked() if id_ in known]
        await self._losses.tell_of_reboot(anew)
        await self._losses.tell(lost)

    async def close(self) -> None:
        """As in `Driver`."""
        if self._watches is not None:
            await self._watches.close()
        await self._drops.close()
        await self._tasks.close()
        if self._hands is not None:
            await self._hands.close()
            self._hands = None

    async def perform(self, effect: NetworkEffect, progress: Progress) -> NetworkOutcome:
        """As in `Driver`."""
        try:
            async with self._turn:
                if isinstance(effect, EnsureNetwork):
                    bridged = effect.spec.kind in OF_HOST
                    progress("making the rules" if bridged else "making the bridge, the rules and the resolver")
                    self._known.set_networks({effect.network_id: effect.spec})
                    await self._ensure(await self._opened(), effect.network_id)
                    return NetworkEnsured(effect.key, self._boot_id)
                await self._remove(await self._opened(), effect.network_id)
                return NetworkRemoved(effect.key)
        except Fault as fault:
            return EffectFailed.by(effect.key, fault)
        except OSError as failure:
            return EffectFailed(effect.key, f"{failure.strerror or failure}: {failure.filename}", "aetherscale doctor")

    # --- VmPorts -------------------------------------------------------------------------------------------------

    async def restore(self, ports: Mapping[str, Sequence[PortSpec]]) -> None:
        """As in `VmPorts`."""
        lost: list[Lost] = []
        async with self._turn:
            self._closed &= {port.tap for of_vm in ports.values() for port in of_vm}
            self._known.replace_ports(ports, but=self._closed)
            if not self._had_networks:
                return
            hands, rules = await self._opened(), self._known.rules()
            if not self._known.networks:
                await hands.resolvers.reconcile(())
                await hands.remove_orphans({}, ())
                await hands.firewall.remove()
                return
            if hands.firewall.applied != rules:
                await hands.firewall.replace(rules)
                await hands.remove_orphans(rules.ports, map(self._known.bridge, self._known.networks))
                self._plugged = {tap: index for tap in rules.ports if (index := taps.index_of(tap))}
                # A bridge may have been made again before the ports in it were known.
                lost = [found for tap in sorted(self._plugged) if (found := self._inspection(hands).tap(tap))]
            for network_id in self._known.networks:
                if hands.resolvers.pid_of(network_id) is not None and not self._missing_bridge(network_id):
                    await self._telling.ensure(hands, network_id)
            rules_lost, hands.firewall.found_lost = hands.firewall.found_lost, ""
            hands.firewall.leased(())
            left = [network_id for network_id in self._known.networks if network_id in (self._left or ())]
        if rules_lost and left:
            await self._losses.tell_of_rules(left, f"{rules_lost} while the node was away")
        await self._losses.tell(lost)

    async def reconnect(self) -> None:
        """As in `VmPorts`."""
        async with self._turn:
            lost = [] if self._hands is None else self._inspection(self._hands).missed()
        await self._losses.tell(lost)

    async def open(self, vm_id: str, ports: Sequence[PortSpec], rules: VmRules | None = NO_RULES) -> list[int]:
        """As in `VmPorts`."""
        if not ports:
            return []
        self._opening[vm_id] = ports, rules
        try:
            await asyncio.sleep(0)
            async with self._turn:
                hands = await self._opened()
                opening = {**self._opening, vm_id: (ports, rules)}
                self._closed -= {port.tap for of_vm, _ in opening.values() for port in of_vm}
                self._known.set_opening(opening, vm_id)
                for network_id in dict.fromkeys(port.network_id for port in ports):
                    if self._is_incomplete(hands, network_id):
                        await self._ensure(hands, network_id)
                begun = [each for each, (_, of_run) in opening.items() if of_run is not None]
                await hands.firewall.change(lambda _: self._known.rules(), self._ended(hands, begun))
                try:
                    opened = await hands.open_taps(vm_id, ports, self._known.bridge)
                finally:
                    self._plugged |= {port.tap: index for port in ports if (index := taps.index_of(port.tap))}
                # The resolvers of its other networks are to know that it is in one more.
                self._telling.begin(hands, dict.fromkeys(port.network_id for port in self._known.ports_of(vm_id)))
                return opened
        finally:
            self._opening.pop(vm_id, None)

    async def close_ports(self, vm_id: str, ports: Sequence[PortSpec]) -> None:
        """As in `VmPorts`."""
        if not ports:
            return
        self._closing[vm_id] = ports
        try:
            await asyncio.sleep(0)
            async with self._turn:
                if vm_id not in self._closing:
                    return
                every = dict(self._closing)
                try:
                    await self._close(every)
                except Fault:
                    # What the host refuses of one does not keep the others.
                    every = {vm_id: ports}
                    await self._close(every)
                for closed in every:
                    self._closing.pop(closed, None)
        finally:
            self._closing.pop(vm_id, None)

    async def _close(self, ports: Mapping[str, Sequence[PortSpec]]) -> None:
        hands = await self._opened()
        every = [port for of_vm in ports.values() for port in of_vm]
        await hands.links.remove_taps([port.tap for port in every])
        for port in every:
            self._plugged.pop(port.tap, None)
        concerned = [*every, *(port for vm_id in ports for port in self._known.ports_of(vm_id))]
        self._known.drop_ports(ports)
        self._closed |= {port.tap for port in every}
        await hands.firewall.change(lambda _: self._known.rules())
        self._telling.begin(hands, dict.fromkeys(port.network_id for port in concerned))

    def cut(self, vm_id: str) -> Sequence[str]:
        """As in `VmPorts`."""
        ports = self._known.ports_of(vm_id)
        return [port.tap for port in ports if not is_connected(port, self._known.networks, self._plugged)]

    def borrow_from(self, lend: Lend) -> None:
        """As in `VmPorts`."""
        self._lend = lend

    # --- what others do ------------------------------------------------------------------------------------------

    async def _rules_changed(self, what: str, by: str) -> None:
        async with self._turn:
            if self._hands is None or not self._known.networks or self._hands.firewall.applied is None:
                return
            try:
                if not what and not self._hands.firewall.is_in_doubt():
                    return
                await self._hands.firewall.replace(self._known.rules(), forget=what.startswith(FLOWS))
            except (Fault, OSError) as failure:
                log.error("the rules of networks were changed by %s, and cannot be replaced: %s", by, failure)
            networks = list(self._known.networks)
        await self._losses.tell_of_rules(networks, what or "rules changed", by)

    async def _device_changed(self, name: str) -> None:
        async with self._turn:
            # What was not whole yet nobody else has changed: a killed node made it, or this one cannot.
            lost = [found for found in await self._looked(name) if found[0] in self._bridges]
        await self._losses.tell(lost, of=name)

    async def _looked(self, name: str = "") -> list[Lost]:
        """What is wrong with a device, or with any. Taps are put back."""
        try:
            return [] if self._hands is None else await self._inspection(self._hands).look(name)
        except (Fault, OSError) as failure:
            log.warning("devices of networks cannot be looked at: %s", failure)
            return []

    def _inspection(self, hands: Hands) -> Inspection:
        return Inspection(self._node, hands, self._known, self._bridges, self._plugged, self._lend)

    def _resolver_ended(self, network_id: str, words: str) -> None:
        lost = [(network_id, f"its resolver, dnsmasq: {words}")]
        self._tasks.spawn(self._losses.tell(lost), "resolver ended")

    # --- on the host ---------------------------------------------------------------------------------------------

    async def _opened(self) -> Hands:
        """What changes the host, opened when it is needed first. Raises `Fault`, `OSError`."""
        if self._hands is None:
            hands = self._hands = await self._open_hands(self._resolver_ended)
            hands.firewall.logs_drops = self._drops.is_watched
            watch = partial(hands.links.watch, lambda link: self._inspection(hands).bridge_of_host(link))
            self._watches = Watches(watch, self._rules_changed, self._device_changed)
            self._watches.start()
        return self._hands

    async def _ensure(self, hands: Hands, network_id: str) -> None:
        spec = self._known.spec(network_id)
        if spec.kind == "nat" and (still := lacks.forwarding()):
            raise still
        await hands.firewall.change(lambda _: self._known.rules())
        if spec.bridge is not None:
            self._bridges[network_id] = hands.links.bridge_of_host(spec.bridge)
        else:
            self._bridges[network_id] = await hands.ensure_bridge(network_id, spec, self._bridges.get(network_id, 0))
            await self._telling.ensure(hands, network_id)
        for tap in [port.tap for port in self._known.ports_in(network_id) if port.tap in self._plugged]:
            self._inspection(hands).tap(tap)

    async def _remove(self, hands: Hands, network_id: str) -> None:
        await hands.remove_network(network_id)
        self._known.forget_network(network_id)
        self._bridges.pop(network_id, None)
        self._telling.forget(network_id)
        if self._known.networks:
            await hands.firewall.change(lambda _: self._known.rules())
        else:
            await hands.firewall.remove()

    def _missing(self, network_id: str) -> str:
        if self._missing_bridge(network_id):
            return f"the bridge {self._known.bridge(network_id)} is gone"
        if self._hands is not None and self._is_incomplete(self._hands, network_id):
            return "its resolver, dnsmasq, is gone"
        return ""

    def _is_incomplete(self, hands: Hands, network_id: str) -> bool:
        if self._missing_bridge(network_id):
            return True
        return self._known.spec(network_id).kind not in OF_HOST and hands.resolvers.pid_of(network_id) is None

    def _missing_bridge(self, network_id: str) -> bool:
        return not taps.index_of(self._known.bridge(network_id))
