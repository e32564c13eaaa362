"""Compares the host with the log, on a timer.

What it runs is the same at the start of the node, on the timer and after a fault: compare, adopt, notice what is gone.
It is a safety net: drivers report what happens as it happens.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from aetherscale.bus.tasks import Tasks

log = logging.getLogger(__name__)

INTERVAL_S: Final = 60.0


class Reconciler:
    """Runs `reconcile` every `interval_s`, and at once when something looks wrong."""

    def __init__(self, reconcile: Callable[[], Awaitable[None]], interval_s: float = INTERVAL_S) -> None:
        self._reconcile = reconcile
        self._interval_s = interval_s
        self._wanted = asyncio.Event()
        self._tasks = Tasks("reconciler")

    def start(self) -> None:
        """Begin; the first time is after one interval, since the start of a node does it once itself."""
        self._tasks.spawn(self._run(), "timer")

    def soon(self) -> None:
        """Look now."""
        self._wanted.set()

    async def close(self) -> None:
        """Look no more."""
        await self._tasks.close()

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._interval_s):
                    await self._wanted.wait()
            self._wanted.clear()
            try:
                await self._reconcile()
            except Exception:
                log.exception("the host could not be compared with the log; trying again later")
