"""The packets that are dropped of ports, told to whoever watches. While nobody does, the kernel logs none.

They are facts of the moment: nothing of them is kept, and who reads too slowly loses the oldest.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Final

from aetherscale.actors.compute.model.commands import PortSpec
from aetherscale.actors.network.known import Known
from aetherscale.actors.network.model.devices import BRIDGE_PREFIX, bridge_name
from aetherscale.actors.network.model.marks import Drop
from aetherscale.actors.network.model.views import Dropped
from aetherscale.actors.network.nft.droplog import DropLog, Logged
from aetherscale.bus.tasks import Tasks
from aetherscale.identifiers import now_us
from aetherscale.kernel.errors import Reason, Refused
from aetherscale.kernel.fault import Fault

log = logging.getLogger(__name__)

REMEDY: Final = (
    "modprobe nfnetlink_log, unless it is there; only one program can have a group of nflog: "
    "cat /proc/net/netfilter/nfnetlink_log"
)
UNREACHABLE: Final = "unreachable"
"""The kind of what a port has sent to the host, or by way of it, and the host did not take."""
WAITING: Final = 1000
"""Packets that wait for one who watches."""

Switch = Callable[[bool], Awaitable[None]]
"""Has the kernel log what it drops, or no more. Raises `Fault`."""


class Watched:
    """What is dropped while somebody watches, in order; it ends with `close`, or where the kernel tells no more."""

    def __init__(self, leave: Callable[[Watched], Awaitable[None]]) -> None:
        self._leave = leave
        self._waiting: deque[Dropped] = deque(maxlen=WAITING)
        self._news = asyncio.Event()
        self._is_over = False

    def put(self, dropped: Dropped) -> None:
        """Tell of one."""
        self._waiting.append(dropped)
        self._news.set()

    def finish(self) -> None:
        """There will be no more."""
        self._is_over = True
        self._news.set()

    async def __aiter__(self) -> AsyncIterator[Dropped]:
        """Each, as it happens."""
        while True:
            self._news.clear()
            while self._waiting:
                yield self._waiting.popleft()
            if self._is_over:
                return
            await self._news.wait()

    async def close(self) -> None:
        """Watch no more. Idempotent."""
        self.finish()
        await self._leave(self)


class Drops:
    """Everybody who watches. The first one has the kernel log, the last one ends it."""

    def __init__(self, known: Known, switch: Switch) -> None:
        self._known = known
        self._switch = switch
        self._turn = asyncio.Lock()
        self._watching: set[Watched] = set()
        self._log: DropLog | None = None
        self._tasks = Tasks("drops")

    @property
    def is_watched(self) -> bool:
        """Whether the kernel is to log what it drops."""
        return self._log is not None

    async def watch(self) -> Watched:
        """Begin to watch; the kernel logs from here on. Raises `Refused` where it does not."""
        async with self._turn:
            if self._log is None:
                try:
                    await self._begin()
                except (Fault, OSError) as failure:
                    raise Refused(
                        Reason.UNAVAILABLE, f"what is dropped cannot be watched: {failure}", remedy=REMEDY
                    ) from failure
            watched = Watched(self._end)
            self._watching.add(watched)
            return watched

    async def close(self) -> None:
        """Nobody watches any more. The rules stay as they are; the next process replaces them."""
        for each in self._watching:
            each.finish()
        self._watching.clear()
        await self._tasks.close()
        self._forget()

    def _forget(self) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None

    async def _begin(self) -> None:
        opened = self._log = DropLog()
        try:
            await self._switch(True)
        except BaseException:
            self._forget()
            # However it ended: the kernel may log already, for nobody.
            with suppress(Fault, OSError):
                await asyncio.shield(self._switch(False))
            raise
        self._tasks.spawn(self._read(opened), "watch")

    async def _end(self, watched: Watched) -> None:
        async with self._turn:
            if watched not in self._watching:
                return
            self._watching.remove(watched)
            if self._watching:
                return
            await self._tasks.close()
            self._forget()
            with suppress(Fault):  # the rules were changed by others, and are replaced without it
                await self._switch(False)

    async def _read(self, of: DropLog) -> None:
        try:
            while True:
                for logged in await of.read():
                    if (dropped := self._told(logged)) is not None:
                        for each in self._watching:
                            each.put(dropped)
        except OSError as failure:
            log.warning("what is dropped cannot be watched any more: %s", failure)
            self._forget()
            for each in self._watching:
                each.finish()

    def _told(self, logged: Logged) -> Dropped | None:
        """None where the port is gone already, or is none of ours."""
        inward, frame = logged.direction == "in", logged.frame
        device, far_device = (logged.outdev, logged.indev) if inward else (logged.indev, logged.outdev)
        address, far_address = (frame.target, frame.source) if inward else (frame.source, frame.target)
        own = self._port(device, address)
        if own is None:
            return None
        vm_id, port = own
        # Who sends is known by the tap alone. By way of the host nobody is of the network.
        other = self._port(far_device, "") if inward else self._with(port.network_id, far_address)
        return Dropped(
            at_us=now_us(),
            vm_id=vm_id,
            other_id=other[0] if other is not None else "",
            network_id=port.network_id,
            tap=port.tap,
            kind=_word(logged),
            is_inward=inward,
            is_to_host=logged.is_to_host,
            frame=frame,
        )

    def _port(self, index: int, address: str) -> tuple[str, PortSpec] | None:
        """The port that a device is of, or in the network of a bridge, which has the address."""
        try:
            name = socket.if_indextoname(index) if index else ""
            if not name.startswith(BRIDGE_PREFIX):
                return self._known.port_at(name)
        except (OSError, KeyError):
            return None
        networks = (each for each in self._known.networks if bridge_name(each) == name)
        return self._with(next(networks, ""), address)

    def _with(self, network_id: str, address: str) -> tuple[str, PortSpec] | None:
        found = (port for port in self._known.ports_in(network_id) if address in (port.ipv4, port.ipv6))
        port = next(found, None)
        return self._known.port_at(port.tap) if port is not None else None


def _word(logged: Logged) -> str:
    """The kind, as callers have it."""
    if logged.kind is not None:
        return logged.kind.name.lower()
    return Drop.UNINVITED.name.lower() if logged.direction == "in" else UNREACHABLE
