"""Groups in the kernel, which the driver of networks has: one transaction for each change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aetherscale.actors.firewall.model.effects import (
    ApplyGroup,
    GroupEffect,
    GroupOutcome,
    GroupRemoved,
    RulesApplied,
)
from aetherscale.actors.firewall.model.state import Group
from aetherscale.actors.network.ports import Firewall
from aetherscale.kernel.failures import EffectFailed
from aetherscale.kernel.fault import Fault
from aetherscale.runtime.component import Progress, Report


class Groups:
    """The driver of groups, on this host or on a simulated one."""

    def __init__(self, firewall: Firewall) -> None:
        self._firewall = firewall

    async def start(self, report: Report[Any]) -> None:
        """Nothing happens to groups that the driver of networks does not mend."""

    async def reconcile(self, expected: Mapping[str, Group]) -> None:
        """Say which groups there are; the kernel is given them with the ports of VMs."""
        there = (each for each in expected.values() if each.phase not in ("deleting", "deleted"))
        if expected:
            self._firewall.restore_groups({each.id: each.standing for each in there})

    async def close(self) -> None:
        """Nothing is open."""

    async def perform(self, effect: GroupEffect, progress: Progress) -> GroupOutcome:
        """As in `Driver`."""
        try:
            if isinstance(effect, ApplyGroup):
                await self._firewall.apply_group(
                    effect.group_id, effect.rules, keep_established=effect.keep_established
                )
                return RulesApplied(effect.key, effect.revision)
            await self._firewall.remove_group(effect.group_id)
            return GroupRemoved(effect.key)
        except Fault as fault:
            return EffectFailed.by(effect.key, fault)
