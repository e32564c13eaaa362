"""Passes observations to the actor, and does background work at most once at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from aetherscale.actors.compute.driver import Observe
from aetherscale.actors.compute.model.effects import ComputeObservation
from aetherscale.bus.tasks import Tasks


class Reports:
    """Hands observations on; while an outcome is being made that they follow from, they wait for it."""

    def __init__(self, observe: Observe) -> None:
        self._observe = observe
        self._held_back: list[ComputeObservation] | None = None

    def __call__(self, observation: ComputeObservation) -> None:
        """Report, now or after `release`."""
        if self._held_back is not None:
            self._held_back.append(observation)
        else:
            self._observe(observation)

    def hold(self) -> None:
        """Keep what comes until `release`."""
        if self._held_back is None:
            self._held_back = []

    def release(self) -> None:
        """Report what was kept, after whatever the caller does before it yields to the loop."""
        asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        held, self._held_back = self._held_back or [], None
        for observation in held:
            self._observe(observation)


class Chores:
    """Named work in the background; what is under way already is not begun again."""

    def __init__(self, tasks: Tasks, owner: str) -> None:
        self._tasks = tasks
        self._owner = owner
        self._running: set[str] = set()

    def begin(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        """Run `work`, unless the work of that name is still under way."""
        if name not in self._running:
            self._running.add(name)
            self._tasks.spawn(self._run(name, work), f"{self._owner}: {name}")

    async def _run(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        finally:
            self._running.discard(name)
