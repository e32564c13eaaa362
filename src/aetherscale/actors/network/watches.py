"""What somebody else does to what is ours, as it happens: rules by nftables' notifications, devices by netlink's.

Whoever is told looks at the host again: what is told is why, and not how it stands.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Final

from aetherscale.actors.network.netlink.watching import Change, Overflow
from aetherscale.actors.network.nft import watching as rules
from aetherscale.actors.network.nft.watching import RulesChanged
from aetherscale.bus.tasks import Tasks
from aetherscale.kernel.fault import Fault

log = logging.getLogger(__name__)

AGAIN_S: Final = 1.0
"""After which a watch that has failed begins again."""

WatchDevices = Callable[[], AsyncGenerator[Change, None]]
"""Begins to tell of devices, in the present network namespace."""
OnRules = Callable[[str, str], Awaitable[None]]
"""Told of a change of our rules: what it was, and who made it; two empty texts where something may have changed."""
OnDevice = Callable[[str], Awaitable[None]]
"""Told of the name of a device that may have changed; "" for any."""


class Watches:
    """Listens in the network namespace that it is started in."""

    def __init__(self, devices: WatchDevices, on_rules: OnRules, on_device: OnDevice) -> None:
        self._devices = devices
        self._on_rules = on_rules
        self._on_device = on_device
        self._tasks = Tasks("network")
        self._changed: dict[str, None] = {}
        """The devices that have changed since they were told of: what happens to one meanwhile is told once."""
        self._has_changed = asyncio.Event()

    def start(self) -> None:
        """Begin to listen."""
        self._tasks.spawn(self._for_ever(self._watch_rules), "rules")
        self._tasks.spawn(self._for_ever(self._watch_devices), "devices")
        self._tasks.spawn(self._for_ever(self._tell_of_devices), "what is told of devices")

    async def close(self) -> None:
        """Listen no more."""
        await self._tasks.close()

    async def _for_ever(self, watch: Callable[[], Awaitable[None]]) -> None:
        """Where the host refuses to tell, it is asked again: each watch begins with what may have happened before."""
        while True:
            try:
                await watch()
            except (Fault, OSError) as failure:
                log.warning("what others do to networks is not told, which is tried again: %s", failure)
            except Exception:
                log.exception("what others do to networks is not told, which is tried again")
            await asyncio.sleep(AGAIN_S)

    async def _watch_rules(self) -> None:
        async with aclosing(rules.watch()) as changes:
            async for change in changes:
                if isinstance(change, RulesChanged):
                    await self._on_rules(change.what, f"{change.program}, pid {change.pid}")
                else:
                    await self._on_rules("", "")

    async def _watch_devices(self) -> None:
        async with aclosing(self._devices()) as changes:
            async for change in changes:
                self._note("" if isinstance(change, Overflow) else change.known_as)

    def _note(self, name: str) -> None:
        self._changed[name] = None
        self._has_changed.set()

    async def _tell_of_devices(self) -> None:
        while True:
            await self._has_changed.wait()
            self._has_changed.clear()
            while self._changed:
                name = next(iter(self._changed))
                del self._changed[name]
                try:
                    await self._on_device(name)
                except BaseException:
                    self._note(name)
                    raise
