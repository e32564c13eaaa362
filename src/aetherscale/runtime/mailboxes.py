"""One mailbox for each aggregate: its messages are handled one after the other, in order; mailboxes run in parallel."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from aetherscale.bus.tasks import Tasks
from aetherscale.kernel.errors import Reason, Refused

log = logging.getLogger(__name__)

T = TypeVar("T")

MAILBOX_LIMIT: Final = 256
"""Requests that may wait for one aggregate; what the host says is never turned away."""

Job = tuple[Callable[[], Awaitable[Any]], "asyncio.Future[Any]"]


class Mailboxes:
    """Queues of jobs by aggregate. A job that fails unexpectedly is logged; its mailbox and all others go on."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks
        self._waiting: dict[str, deque[Job]] = {}

    @property
    def busy(self) -> int:
        """How many aggregates have something to do."""
        return len(self._waiting)

    @property
    def waiting(self) -> int:
        """How many jobs there are, those that have been begun among them."""
        return sum(map(len, self._waiting.values()))

    def post(self, aggregate_id: str, job: Callable[[], Awaitable[T]], *, bounded: bool) -> asyncio.Future[T]:
        """Put a job at the end of the mailbox. The future has its result; `Refused` is the only exception in it.

        Raises `Refused` (unavailable) where the job is bounded and the mailbox is full.
        """
        mailbox = self._waiting.get(aggregate_id)
        if bounded and mailbox is not None and len(mailbox) >= MAILBOX_LIMIT:
            raise Refused(
                Reason.UNAVAILABLE, f"{MAILBOX_LIMIT} requests are waiting for {aggregate_id} already", retryable=True
            )
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        done.add_done_callback(_seen)
        if mailbox is None:
            self._waiting[aggregate_id] = deque([(job, done)])
            self._tasks.spawn(self._work(aggregate_id), f"mailbox {aggregate_id}")
        else:
            mailbox.append((job, done))
        return done

    async def _work(self, aggregate_id: str) -> None:
        mailbox = self._waiting[aggregate_id]
        try:
            while mailbox:
                job, done = mailbox[0]
                await _run(job, done, aggregate_id)
                mailbox.popleft()
        finally:
            del self._waiting[aggregate_id]
            for _, done in mailbox:
                done.cancel()


async def _run(job: Callable[[], Awaitable[Any]], done: asyncio.Future[Any], aggregate_id: str) -> None:
    try:
        result = await job()
    except Refused as refused:
        _set(done, refused)
    except Exception:
        log.exception("the mailbox of %s: a message could not be handled", aggregate_id)
        _set(done, Refused(Reason.INTERNAL, "an internal error; the node's log has the details"))
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
