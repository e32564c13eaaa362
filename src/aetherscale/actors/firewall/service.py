"""The queries of the firewall beyond groups."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from msgspec import to_builtins

from aetherscale.actors.compute.model import events as vms
from aetherscale.actors.firewall.model import events as groups
from aetherscale.actors.firewall.model.commands import ExplainOptions
from aetherscale.actors.firewall.model.explain import explain, topology
from aetherscale.actors.network.model import events as networks
from aetherscale.kernel.calls import Call
from aetherscale.kernel.replies import Chunk, result
from aetherscale.runtime.component import World


class FirewallService:
    """Answers from what the log has; the host is not asked."""

    def __init__(self, world: World, driver: object) -> None:
        self._world = world

    async def explain(self, options: ExplainOptions, call: Call) -> AsyncIterator[Chunk]:
        """The answer to `explain`. Raises `Refused` (bad request, not found)."""
        world = topology(
            self._views(networks.KIND, call),
            [each.state for each in self._world.of_tenant(groups.KIND, call.tenant)],
            self._views(vms.KIND, call),
        )
        yield result(to_builtins(explain(world, options.source, options.target, options.port)))

    def _views(self, kind: str, call: Call) -> list[Any]:
        return [self._world.fields(kind, each)[kind] for each in self._world.of_tenant(kind, call.tenant)]
