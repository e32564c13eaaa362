"""The work that is owed to the host, at most one piece for each entity at a time.

What is owed is a function of state, so it is asked for anew after every event and after every restart. Work in flight
that is no longer owed is cancelled, and the next piece begins when it has ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any, Final, Protocol, TypeVar

from aetherscale import shortage
from aetherscale.runtime.component import Owed
from aetherscale.bus.tasks import Tasks

log = logging.getLogger(__name__)

M = TypeVar("M")

Perform = Callable[[str, Any], Awaitable[M]]
"""Make an effect of an entity true."""
Failed = Callable[[Any, str], M]
Answer = Callable[[str, Any, M], "asyncio.Future[Any]"]
"""Hand in what the host answered to an entity's effect; the future is done when it has been decided on."""


Gate = Callable[[Any], AbstractAsyncContextManager[Any]]
"""What an effect has to get through before it begins."""


LONGEST_WAIT_S: Final = 60.0
"""Longer than any pause between two attempts: what seems to wait longer was put off by a clock that went back since."""


class Clock(Protocol):
    """The time now, in microseconds since 1970."""

    def __call__(self) -> int:
        """The time now."""
        ...


class OwedWork:
    """Runs what is owed. `reconsider` is told whenever that may have changed."""

    def __init__(
        self,
        pending: Callable[[str], Owed | None],
        perform: Perform[Any],
        failed: Failed[Any],
        answer: Answer[Any],
        clock: Clock,
        tasks: Tasks,
        gate: Gate = lambda effect: nullcontext(),
    ) -> None:
        self._pending = pending
        self._perform = perform
        self._failed = failed
        self._answer = answer
        self._clock = clock
        self._tasks = tasks
        self._gate = gate
        self._running: dict[str, tuple[str, asyncio.Task[None]]] = {}
        self._closed = False

    def close(self) -> None:
        """Begin nothing more. What runs is ended by whoever closes the tasks."""
        self._closed = True

    def reconsider(self, entity_id: str) -> None:
        """Begin what is owed, cancel what is no longer."""
        if self._closed:
            return
        effect = self._pending(entity_id)
        running = self._running.get(entity_id)
        if running is not None:
            key, task = running
            if effect is None or effect.key != key:
                task.cancel()
        elif effect is not None:
            task = self._tasks.spawn(self._work(entity_id, effect), f"{entity_id} {effect.key}")
            self._running[entity_id] = (effect.key, task)
            task.add_done_callback(lambda done: self._ended(entity_id, effect.key, done))

    async def _work(self, entity_id: str, effect: Owed) -> None:
        wait_s = (effect.not_before_us - self._clock()) / 1e6
        if wait_s > 0:
            await asyncio.sleep(min(wait_s, LONGEST_WAIT_S))
        async with self._gate(effect):
            outcome = await self._outcome(entity_id, effect)
        await asyncio.shield(self._answer(entity_id, effect, outcome))

    async def _outcome(self, entity_id: str, effect: Owed) -> Any:
        try:
            async with asyncio.timeout(effect.deadline_s):
                return await self._perform(entity_id, effect)
        except TimeoutError:
            return self._failed(effect, f"timed out after {effect.deadline_s:g} s")
        except Exception as fault:
            if shortage.lacks_threads(fault):
                return self._failed(effect, f"{shortage.THREADS}: {shortage.MORE_THREADS}")
            log.exception("%s: the driver failed at %s", entity_id, effect.key)
            return self._failed(effect, f"internal error: {type(fault).__name__}: {fault}")

    def _ended(self, entity_id: str, key: str, task: asyncio.Task[None]) -> None:
        del self._running[entity_id]
        effect = self._pending(entity_id)
        if effect is None or self._closed:
            return
        if effect.key == key and not task.cancelled():
            # Ours is the fault: an answer that changes nothing would be asked for again for ever.
            log.error("%s: the answer to %s changed nothing; waiting for something else to happen", entity_id, key)
            return
        self.reconsider(entity_id)
