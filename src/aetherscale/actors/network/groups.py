"""The groups of the driver of networks: remembered at a start, and changed in the kernel.

What nft refuses is as it was, in the kernel and in what is known: the next change begins from there.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import lru_cache, partial
from ipaddress import IPv4Address, IPv6Address, ip_address

from aetherscale.actors.compute.model.commands import VmRules
from aetherscale.actors.firewall.model.commands import Rule
from aetherscale.actors.network import needs
from aetherscale.actors.network.drops import Drops, Watched
from aetherscale.actors.network.established import Allowed
from aetherscale.actors.network.flows import Concerned
from aetherscale.actors.network.hands import Hands
from aetherscale.actors.network.known import REMEDY, Known
from aetherscale.actors.network.model.addresses import link_local_of
from aetherscale.actors.network.model.groups import NO_RULES, GroupRules, compile_group
from aetherscale.actors.network.model.rules import forward_rules
from aetherscale.actors.network.model.views import Obstacle
from aetherscale.kernel.fault import Fault

log = logging.getLogger(__name__)


class Groups(ABC):
    """The part of the driver that is `Firewall`."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        """Held while the host is changed or compared: what the fields below say is so whenever it is free."""
        self._known = Known()
        self._hands: Hands | None = None
        self._drops = Drops(self._known, self._log_drops)
        self._asked: dict[str, tuple[VmRules, bool]] = {}
        """The rules of VMs that wait to be applied, and whether flows are kept: the first one applies those of all."""

    @abstractmethod
    async def _opened(self) -> Hands:
        """What changes the host. Raises `Fault`, `OSError`."""

    def restore_groups(self, groups: Mapping[str, Sequence[Rule]]) -> None:
        """As in `Firewall`. Rules that mean nothing here allow nothing, and do not keep the others."""
        compiled: dict[str, GroupRules] = {}
        for group_id, rules in groups.items():
            try:
                compiled[group_id] = compile_group(rules)
            except ValueError as wrong:
                log.error("the group %s allows nothing: %s", group_id, wrong)
                compiled[group_id] = NO_RULES
        self._known.set_groups(compiled)

    def restore_rules(self, rules: Mapping[str, VmRules]) -> None:
        """As in `Firewall`. Forwards that mean nothing lead nowhere, and do not keep those of other VMs."""
        known = dict(rules)
        for vm_id, of_vm in rules.items():
            try:
                forward_rules(of_vm.forwards)
            except ValueError as wrong:
                log.error("the forwards to %s lead nowhere: %s", vm_id, wrong)
                known[vm_id] = VmRules(of_vm.groups)
        self._known.replace_rules(known)

    async def apply_group(self, group_id: str, rules: Sequence[Rule], *, keep_established: bool = False) -> None:
        """As in `Firewall`."""
        try:
            compiled = compile_group(rules)
        except ValueError as wrong:
            raise Fault(f"the rules of the group mean nothing: {wrong}", retryable=False) from None
        async with self._turn:
            before = self._known.groups
            await self._apply(
                partial(self._known.set_groups, {**before, group_id: compiled}),
                partial(self._known.set_groups, before),
                self._known.bearers(group_id),
                keep_established=keep_established,
            )

    async def remove_group(self, group_id: str) -> None:
        """As in `Firewall`."""
        async with self._turn:
            before = self._known.groups
            without = {one: rules for one, rules in before.items() if one != group_id}
            await self._apply(
                partial(self._known.set_groups, without),
                partial(self._known.set_groups, before),
                (),
                keep_established=False,
            )

    async def apply_rules(self, vm_id: str, rules: VmRules, *, keep_established: bool = False) -> None:
        """As in `Firewall`. What is asked for at one moment is one transaction, where nft takes it."""
        self._asked[vm_id] = rules, keep_established
        try:
            await asyncio.sleep(0)
            async with self._turn:
                if vm_id not in self._asked and self._known.rules_of(vm_id) == rules:
                    return
                alike = {each: of_vm for each, (of_vm, keep) in self._asked.items() if keep == keep_established}
                try:
                    await self._apply_rules({**alike, vm_id: rules}, keep_established=keep_established)
                except Fault:
                    # What the host refuses of one does not keep the others.
                    alike = {vm_id: rules}
                    await self._apply_rules(alike, keep_established=keep_established)
                for applied in (*alike, vm_id):
                    self._asked.pop(applied, None)
        finally:
            self._asked.pop(vm_id, None)

    async def obstacles(self) -> Sequence[Obstacle]:
        """As in `HostNetworks`."""
        return await asyncio.to_thread(needs.obstacles)

    async def watch_drops(self) -> Watched:
        """As in `Firewall`."""
        return await self._drops.watch()

    async def _log_drops(self, logs: bool) -> None:
        async with self._turn:
            if self._hands is not None:
                await self._hands.firewall.log_drops(logs=logs)

    async def _apply_rules(self, rules: Mapping[str, VmRules], *, keep_established: bool) -> None:
        before = self._known.remember(rules)
        await self._apply(
            partial(self._known.set_rules, rules, keep=keep_established),
            partial(self._known.recall, before),
            rules,
            keep_established=keep_established,
        )

    async def _apply(
        self, change: Callable[[], None], undo: Callable[[], None], vm_ids: Iterable[str], *, keep_established: bool
    ) -> None:
        """Change what is known, then the kernel. Where that is refused, what is known is as before."""
        concerned = lru_cache(1)(partial(self._concerned, vm_ids))
        before = Allowed(self._known) if keep_established else None
        try:
            change()
            if not self._known.networks:
                return
            hands, beside = await self._opened(), ""
            if before is not None:
                await hands.firewall.keep(concerned(), before.allows, Allowed(self._known).ends)
            else:
                beside = hands.firewall.let_go(concerned)
            await hands.firewall.change(lambda _: self._known.rules(), beside)
        except ValueError as contradiction:
            undo()
            raise Fault(f"the rules of VMs contradict each other: {contradiction}", REMEDY) from None
        except OSError as failure:
            undo()
            raise Fault(f"the rules of networks cannot be changed: {failure.strerror or failure}") from failure
        except BaseException:
            undo()
            raise

    def _ended(self, hands: Hands, vm_ids: Collection[str]) -> str:
        """A text of nft by which what was kept for earlier runs of VMs goes on no longer. Raises `Fault`."""
        try:
            return hands.firewall.let_go(lru_cache(1)(partial(self._concerned, vm_ids))) if vm_ids else ""
        except OSError as failure:
            raise Fault(f"the rules of networks cannot be changed: {failure.strerror or failure}") from failure

    def _concerned(self, vm_ids: Iterable[str]) -> Concerned:
        """Whose flows are meant."""
        ports = [port for vm_id in vm_ids for port in self._known.ports_of(vm_id)]
        own: set[IPv4Address | IPv6Address] = {link_local_of(port.mac) for port in ports}
        own |= {ip_address(text) for port in ports for text in (port.ipv4, port.ipv6) if text}
        return Concerned(frozenset(port.tap for port in ports), frozenset(own))
