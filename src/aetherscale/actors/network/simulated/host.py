"""The part of a simulated host that networks are made of. It outlives the driver, as a host outlives its node."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from aetherscale.actors.compute.model.commands import VmRules
from aetherscale.actors.firewall.model.commands import Rule
from aetherscale.actors.network.model.addresses import Prefix
from aetherscale.actors.network.model.views import Dropped, Obstacle


async def _nothing(step: str, what: str) -> None:
    """No interference."""


class SimulatedDrops:
    """What is dropped while somebody watches, among others who do."""

    def __init__(self, watching: list[SimulatedDrops]) -> None:
        self._watching = watching
        self._told: asyncio.Queue[Dropped | None] = asyncio.Queue()

    def put(self, dropped: Dropped) -> None:
        """Tell of one."""
        self._told.put_nowait(dropped)

    async def __aiter__(self) -> AsyncIterator[Dropped]:
        """As in `DropsWatched`."""
        while (dropped := await self._told.get()) is not None:
            yield dropped

    def finish(self) -> None:
        """There will be no more."""
        self._told.put_nowait(None)

    async def close(self) -> None:
        """As in `DropsWatched`."""
        if self in self._watching:
            self._watching.remove(self)
            self.finish()


class SimulatedNetworks:
    """Bridges, rules and taps. A reboot takes them all; `interfere(step, what)` may raise `Fault` before each step."""

    def __init__(self) -> None:
        self.boot_id = "simulated"
        self.bridges: dict[str, str] = {}
        """The ids of networks by the names of their bridges."""
        self.has_tables = False
        """Whether the tables are there that the rules are in."""
        self.ruled_networks: set[str] = set()
        """The bridges that have rules."""
        self.ruled_taps: set[str] = set()
        """The taps that have rules."""
        self.sent: Counter[str] = Counter()
        """The packets that guests have sent, by the tap. Each has the size of the smallest frame."""
        self.taps: dict[str, tuple[str, str]] = {}
        """By name: the id of the VM, and the bridge that the tap is in; "" for none."""
        self.groups: dict[str, tuple[Rule, ...]] = {}
        """The rules of groups that the kernel has, by the id of the group."""
        self.rules: dict[str, VmRules] = {}
        """The groups and forwards of VMs that the kernel has, by the id of the VM."""
        self.routes: dict[Prefix, str] = {}
        self.public_bridge = "br0"
        """The bridge that leads to public addresses; "" for none. It is the host's own, and outlives a reboot."""
        self.addresses: set[str] = set()
        """Of the host itself."""
        self.lacking: str = ""
        """What the host lacks for networks; "" for nothing."""
        self.obstacles: list[Obstacle] = []
        """The filters of others."""
        self.watching: list[SimulatedDrops] = []
        """Who watches what is dropped."""
        self.interfere: Callable[[str, str], Awaitable[Any]] = _nothing

    def drop(self, dropped: Dropped) -> None:
        """A packet is dropped, which its guest has sent unless it is an inward one."""
        if not dropped.is_inward:
            self.sent[dropped.tap] += 1
        for each in self.watching:
            each.put(dropped)

    def lose_bridge(self, name: str) -> None:
        """A bridge goes, whoever removes it. Its taps stay, without a bridge."""
        self.bridges.pop(name, None)
        for tap, (vm_id, bridge) in self.taps.items():
            if bridge == name:
                self.taps[tap] = (vm_id, "")

    def flush_rules(self) -> None:
        """All rules go, whoever removes them, and the tables with them."""
        self.has_tables = False
        self.ruled_networks.clear()
        self.ruled_taps.clear()

    def reboot(self, boot_id: str) -> None:
        """The host is started anew: nothing of it is left."""
        self.boot_id = boot_id
        self.flush_rules()
        self.bridges.clear()
        self.taps.clear()
        self.groups.clear()
        self.rules.clear()
