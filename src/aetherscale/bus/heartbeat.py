"""A sign of life of each node every five seconds, from which others see that it is there and how far its log is."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

from aetherscale.bus.bus import Bus, BusUnavailable
from aetherscale.bus.tasks import Tasks
from aetherscale.kernel import subjects, wire
from aetherscale.kernel.times import to_rfc3339

INTERVAL_S: Final = 5.0


class Beat(wire.Message, frozen=True, omit_defaults=False):
    """What a heartbeat says."""

    node: str
    epoch: str
    seq: int
    """The position of the last event in the node's log."""
    version: str
    time: str


class Heartbeat:
    """Beats from `start` to `close`; a beat that cannot be sent is left out, never sent late."""

    def __init__(
        self,
        bus: Bus,
        *,
        node: str,
        epoch: str,
        head: Callable[[], Awaitable[int]],
        version: str,
        clock: Callable[[], int],
        interval_s: float = INTERVAL_S,
    ) -> None:
        self._bus, self._node, self._epoch, self._head = bus, node, epoch, head
        self._version, self._clock, self._interval_s = version, clock, interval_s
        self._tasks = Tasks("heartbeat")

    def start(self) -> None:
        """Begin, with the first beat at once."""
        self._tasks.spawn(self._beat_for_ever(), "beat")

    async def close(self) -> None:
        """Stop."""
        await self._tasks.close()

    async def _beat_for_ever(self) -> None:
        subject = subjects.heartbeat(self._node)
        while True:
            beat = Beat(self._node, self._epoch, await self._head(), self._version, to_rfc3339(self._clock()))
            with suppress(BusUnavailable):
                await self._bus.publish(subject, wire.encode(beat))
            await asyncio.sleep(self._interval_s)
