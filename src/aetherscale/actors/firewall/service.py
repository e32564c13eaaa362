"""The queries of the firewall beyond groups."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Any

from msgspec import to_builtins
from msgspec.structs import replace

from aetherscale.actors.compute.model import events as vms
from aetherscale.actors.firewall.model import events as groups
from aetherscale.actors.firewall.model.commands import ExplainOptions, WatchDropsOptions
from aetherscale.actors.firewall.model.drops import DropView, drop_view
from aetherscale.actors.firewall.model.explain import addresses_in, explain, hindering, topology
from aetherscale.actors.firewall.model.topology import Topology
from aetherscale.actors.network.model import events as networks
from aetherscale.actors.network.model.views import Dropped
from aetherscale.actors.network.ports import FIREWALL, HOST_NETWORKS, Firewall, HostNetworks
from aetherscale.kernel.calls import Call
from aetherscale.kernel.errors import Reason, Refused
from aetherscale.kernel.replies import Chunk, item, result, status
from aetherscale.runtime.component import World


class FirewallService:
    """Answers from what the log has, and tells what the host drops."""

    def __init__(self, world: World, driver: object) -> None:
        self._world = world

    async def explain(self, options: ExplainOptions, call: Call) -> AsyncIterator[Chunk]:
        """The answer to `explain`. Raises `Refused` (bad request, not found)."""
        host: HostNetworks = self._world.port(HOST_NETWORKS)
        own = frozenset(each for each in addresses_in(options.source, options.target) if host.has_address(str(each)))
        world = replace(self._topology(self._views(vms.KIND, call), call), own=own)
        found = explain(world, options.source, options.target, options.port)
        others = hindering(found, await host.obstacles()) if found.way else []
        yield result({**to_builtins(found), "others": [{"what": each.what, "remedy": each.remedy} for each in others]})

    async def watch(self, options: WatchDropsOptions, call: Call) -> AsyncIterator[Chunk]:
        """The answer to `watch-drops`. Raises `Refused`."""
        only = self._alive(options.vm_id, call) if options.vm_id else ""
        host: HostNetworks = self._world.port(HOST_NETWORKS)
        host.require()
        firewall: Firewall = self._world.port(FIREWALL)
        yield status("progress", step="having the host tell what it drops")
        drops = await firewall.watch_drops()
        try:
            yield status("watching", node=self._world.node)
            async for dropped in drops:
                if only in ("", dropped.vm_id) and (view := self._seen(dropped, call)) is not None:
                    yield item({"drop": view})
        finally:
            await drops.close()
        yield result({})

    def _alive(self, reference: str, call: Call) -> str:
        """The id of a VM that is not deleted. Raises `Refused` (not found)."""
        found = self._world.find(vms.KIND, call.tenant, reference)
        if found.state.phase == "deleted":
            raise Refused(Reason.NOT_FOUND, f"no such VM: {reference!r} has been deleted", field="vm-id")
        return found.id

    def _seen(self, dropped: Dropped, call: Call) -> DropView | None:
        """The packet as this caller sees it; None where it is of no VM of the caller's tenant."""
        ends = [each for each in (dropped.vm_id, dropped.other_id) if each]
        try:
            views = [self._world.view(vms.KIND, call.tenant, each) for each in ends]
            return drop_view(dropped, self._topology(views, call))
        except (KeyError, Refused):
            return None

    def _topology(self, machines: Iterable[Any], call: Call) -> Topology:
        """The networks and groups of the caller's tenant, and these VMs."""
        of_tenant = [each.state for each in self._world.of_tenant(groups.KIND, call.tenant)]
        return topology(self._views(networks.KIND, call), of_tenant, machines)

    def _views(self, kind: str, call: Call) -> list[Any]:
        return [self._world.fields(kind, each)[kind] for each in self._world.of_tenant(kind, call.tenant)]
