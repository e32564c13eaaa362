"""One lane for one entity, lanes in parallel: what is posted for an entity happens one after the other, in order."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from aetherscale.bus.tasks import Tasks
from aetherscale.kernel.errors import Refused

log = logging.getLogger(__name__)

T = TypeVar("T")

LANE_LIMIT: Final = 256
"""Requests that may wait for one entity; what the host says is never turned away."""

Job = tuple[Callable[[], Awaitable[Any]], "asyncio.Future[Any]"]


class Lanes:
    """Queues of jobs by entity. A job that fails unexpectedly is logged and harms neither its lane nor another."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks
        self._waiting: dict[str, deque[Job]] = {}

    def post(self, entity_id: str, job: Callable[[], Awaitable[T]], *, bounded: bool) -> asyncio.Future[T]:
        """Put a job at the end of the entity's lane. The future has its result; `Refused` is the only exception in it.

        Raises `Refused` (503) where the job is bounded and the lane is full.
        """
        lane = self._waiting.get(entity_id)
        if bounded and lane is not None and len(lane) >= LANE_LIMIT:
            raise Refused(503, f"{LANE_LIMIT} requests are waiting for {entity_id} already", retryable=True)
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        done.add_done_callback(_seen)
        if lane is None:
            self._waiting[entity_id] = deque([(job, done)])
            self._tasks.spawn(self._work(entity_id), f"lane {entity_id}")
        else:
            lane.append((job, done))
        return done

    async def _work(self, entity_id: str) -> None:
        lane = self._waiting[entity_id]
        try:
            while lane:
                job, done = lane[0]
                await _run(job, done, entity_id)
                lane.popleft()
        finally:
            del self._waiting[entity_id]
            for _, done in lane:
                done.cancel()


async def _run(job: Callable[[], Awaitable[Any]], done: asyncio.Future[Any], entity_id: str) -> None:
    try:
        result = await job()
    except Refused as refused:
        _set(done, refused)
    except Exception:
        log.exception("the lane of %s: a message could not be handled", entity_id)
        _set(done, Refused(500, "an internal error; the node's log has the details"))
    else:
        if not done.done():
            done.set_result(result)


def _set(done: asyncio.Future[Any], refused: Refused) -> None:
    if not done.done():
        done.set_exception(refused)


def _seen(done: asyncio.Future[Any]) -> None:
    """A caller who has gone away leaves its answer unread; that is no fault."""
    if not done.cancelled():
        done.exception()
