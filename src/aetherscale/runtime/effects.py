"""The work that is pending on the host, at most one piece for each aggregate at a time.

What is pending is a function of state, so it is asked for anew after every event and after every restart. An effect in
flight that is no longer pending is cancelled, and the next one begins when it has ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any, Final, Protocol, TypeVar

from aetherscale import shortage
from aetherscale.bus.tasks import Tasks
from aetherscale.kernel.failures import EffectFailed
from aetherscale.runtime.component import Effect

log = logging.getLogger(__name__)

M = TypeVar("M")

Perform = Callable[[str, Any], Awaitable[M]]
"""Make an effect of an aggregate true."""
Answer = Callable[[str, Any, M], "asyncio.Future[Any]"]
"""Hand in what the host answered to an aggregate's effect; the future is done when it has been decided on."""


Gate = Callable[[Any], AbstractAsyncContextManager[Any]]
"""A limit that an effect waits for before it begins."""


LONGEST_WAIT_S: Final = 60.0
"""Longer than any pause between two attempts: what seems to wait longer was put off by a clock that went back since."""


class Clock(Protocol):
    """The time now, in microseconds since 1970."""

    def __call__(self) -> int:
        """The time now."""
        ...


class EffectRunner:
    """Runs what is pending. `reconsider` is called whenever that may have changed."""

    def __init__(
        self,
        pending: Callable[[str], Effect | None],
        perform: Perform[Any],
        answer: Answer[Any],
        clock: Clock,
        tasks: Tasks,
        gate: Gate = lambda effect: nullcontext(),
    ) -> None:
        self._pending = pending
        self._perform = perform
        self._answer = answer
        self._clock = clock
        self._tasks = tasks
        self._gate = gate
        self._running: dict[str, tuple[str, asyncio.Task[None]]] = {}
        self._closed = False

    def close(self) -> None:
        """Begin nothing more. Running effects are cancelled by the owner of the tasks."""
        self._closed = True

    def reconsider(self, aggregate_id: str) -> None:
        """Begin what is pending, cancel what is no longer."""
        if self._closed:
            return
        effect = self._pending(aggregate_id)
        running = self._running.get(aggregate_id)
        if running is not None:
            key, task = running
            if effect is None or effect.key != key:
                task.cancel()
        elif effect is not None:
            task = self._tasks.spawn(self._work(aggregate_id, effect), f"{aggregate_id} {effect.key}")
            self._running[aggregate_id] = (effect.key, task)
            task.add_done_callback(lambda done: self._ended(aggregate_id, effect.key, done))

    async def _work(self, aggregate_id: str, effect: Effect) -> None:
        wait_s = (effect.not_before_us - self._clock()) / 1e6
        if wait_s > 0:
            await asyncio.sleep(min(wait_s, LONGEST_WAIT_S))
        async with self._gate(effect):
            outcome = await self._outcome(aggregate_id, effect)
        await asyncio.shield(self._answer(aggregate_id, effect, outcome))

    async def _outcome(self, aggregate_id: str, effect: Effect) -> Any:
        try:
            async with asyncio.timeout(effect.deadline_s):
                return await self._perform(aggregate_id, effect)
        except TimeoutError:
            return EffectFailed(effect.key, f"timed out after {effect.deadline_s:g} s")
        except Exception as fault:
            if shortage.lacks_threads(fault):
                return EffectFailed(effect.key, f"{shortage.THREADS}: {shortage.MORE_THREADS}")
            log.exception("%s: the driver failed at %s", aggregate_id, effect.key)
            return EffectFailed(effect.key, f"internal error: {type(fault).__name__}: {fault}")

    def _ended(self, aggregate_id: str, key: str, task: asyncio.Task[None]) -> None:
        del self._running[aggregate_id]
        effect = self._pending(aggregate_id)
        if effect is None or self._closed:
            return
        if effect.key == key and not task.cancelled():
            # Ours is the fault: an answer that changes nothing would be asked for again for ever.
            log.error("%s: the answer to %s changed nothing; waiting for something else to happen", aggregate_id, key)
            return
        self.reconsider(aggregate_id)
