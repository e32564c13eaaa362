"""One process's hand on the networks of the simulated host."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import Context
from typing import Any

from aetherscale.actors.compute.model.commands import NO_RULES, PortSpec, VmRules
from aetherscale.actors.firewall.model.commands import Rule
from aetherscale.actors.network.model.decide import NetworkMessage
from aetherscale.actors.network.model.effects import NetworkEffect, NetworkKind, NetworkOutcome
from aetherscale.actors.network.model.state import Network
from aetherscale.actors.network.ports import HostRoutes, Lend
from aetherscale.actors.network.simulated.driver import SimulatedNetworking
from aetherscale.kernel.failures import EffectFailed
from aetherscale.kernel.fault import Fault
from aetherscale.runtime.component import Progress, Report
from tests.simulation.world import World


class SimulatedWires:
    """One process's hand on the host's networks."""

    def __init__(self, world: World, number: int, context: Context) -> None:
        self._world, self._number, self._context = world, number, context
        self._driver = SimulatedNetworking(world.networks)

    async def start(self, report: Report[NetworkMessage]) -> None:
        def told(observation: NetworkMessage) -> Awaitable[Any]:
            if self._number == self._world.process:
                return self._context.run(report, observation)
            return asyncio.Future()

        await self._driver.start(told)

    async def reconcile(self, expected: Mapping[str, Network]) -> None:
        networks = self._world.networks
        deed, ready = networks.looks(), [each for each in expected if expected[each].phase == "ready"]
        await self._driver.reconcile(expected)
        await self._world.require_alive(self._number)
        networks.has_seen(deed, ready)

    async def close(self) -> None:
        await self._driver.close()

    async def perform(self, effect: NetworkEffect, progress: Progress) -> NetworkOutcome:
        async def work() -> NetworkOutcome:
            outcome = await self._driver.perform(effect, progress)
            if self._world.faults.loses_answer():
                self._world.note(f"{type(effect).__name__} {effect.network_id}: done, and told as failed")
                return EffectFailed(effect.key, "the host did it, and did not say so")
            return outcome

        return await self._world.pass_through(self._number, type(effect).__name__, work)

    def require(self, kind: NetworkKind = "isolated") -> None:
        self._driver.require(kind)

    def public_bridge(self) -> str:
        return self._driver.public_bridge()

    def is_of_host(self, address: str) -> bool:
        return self._driver.is_of_host(address)

    def has_address(self, address: str) -> bool:
        return self._driver.has_address(address)

    def routes(self) -> HostRoutes:
        return self._driver.routes()

    async def restore(self, ports: Mapping[str, Sequence[PortSpec]]) -> None:
        deed = self._world.networks.looks()
        # The ports are those of this moment: the driver takes its turn in it.
        await self._world.pass_through(self._number, "restore-ports", lambda: self._driver.restore(ports), at_once=True)
        self._world.networks.has_restored(deed)

    async def reconnect(self) -> None:
        networks = self._world.networks
        deed, taps = networks.looks(), networks.taps_in_use()
        await self._world.pass_through(self._number, "reconnect-ports", self._driver.reconnect)
        networks.has_reconnected(deed, taps)

    async def open(self, vm_id: str, ports: Sequence[PortSpec], rules: VmRules | None = NO_RULES) -> list[int]:
        return await self._world.pass_through(
            self._number, "open-ports", lambda: self._driver.open(vm_id, ports, rules)
        )

    def dropped(self, vm_id: str) -> Mapping[str, Mapping[str, int]]:
        return self._driver.dropped(vm_id)

    def leased(self, vm_id: str) -> Mapping[str, Sequence[str]]:
        return self._driver.leased(vm_id)

    def cut(self, vm_id: str) -> Sequence[str]:
        return self._driver.cut(vm_id)

    def borrow_from(self, lend: Lend) -> None:
        self._driver.borrow_from(lend)

    def restore_groups(self, groups: Mapping[str, Sequence[Rule]]) -> None:
        self._driver.restore_groups(groups)

    def restore_rules(self, rules: Mapping[str, VmRules]) -> None:
        self._driver.restore_rules(rules)

    async def apply_group(self, group_id: str, rules: Sequence[Rule], *, keep_established: bool = False) -> None:
        await self._change(
            "apply-group", lambda: self._driver.apply_group(group_id, rules, keep_established=keep_established)
        )

    async def remove_group(self, group_id: str) -> None:
        await self._change("remove-group", lambda: self._driver.remove_group(group_id))

    async def apply_rules(self, vm_id: str, rules: VmRules, *, keep_established: bool = False) -> None:
        await self._change(
            "apply-rules", lambda: self._driver.apply_rules(vm_id, rules, keep_established=keep_established)
        )

    async def _change(self, name: str, change: Callable[[], Awaitable[None]]) -> None:
        """A change of the firewall, which may be done and yet told as failed."""

        async def work() -> None:
            await change()
            if self._world.faults.loses_answer():
                self._world.note(f"{name}: done, and told as failed")
                raise Fault("the host did it, and did not say so")

        await self._world.pass_through(self._number, name, work)

    async def close_ports(self, vm_id: str, ports: Sequence[PortSpec]) -> None:
        await self._world.pass_through(self._number, "close-ports", lambda: self._driver.close_ports(vm_id, ports))
