"""Turns at something of which there is little: a few at once, and no tenant has all of them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager


class Shares:
    """At most `most` turns at once, `most_of_one` of them by one tenant. The tenant with the fewest is next."""

    def __init__(self, most: int, most_of_one: int) -> None:
        self._most = most
        self._most_of_one = most_of_one
        self._having: Counter[str] = Counter()
        self._waiting: list[tuple[str, asyncio.Future[None]]] = []

    @property
    def is_crowded(self) -> bool:
        """Whether a transfer waits for the end of another one's turn."""
        return bool(self._waiting)

    @asynccontextmanager
    async def turn(self, tenant: str, wait: Callable[[int], None]) -> AsyncIterator[None]:
        """Have a turn for as long as the block lasts. Before a wait, `wait` is called with how many have one."""
        await self._begin(tenant, wait)
        try:
            yield
        finally:
            self._end(tenant)

    async def _begin(self, tenant: str, wait: Callable[[int], None]) -> None:
        come: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((tenant, come))
        self._next()
        if come.done():
            return
        wait(self._having.total())
        try:
            await come
        except asyncio.CancelledError:
            if come.done() and not come.cancelled():
                self._end(tenant)  # the turn came in the same moment
            else:
                self._waiting.remove((tenant, come))
            raise

    def _end(self, tenant: str) -> None:
        self._having[tenant] -= 1
        if not self._having[tenant]:
            del self._having[tenant]
        self._next()

    def _next(self) -> None:
        """Give turns to those who wait, as far as there are any."""
        while self._having.total() < self._most:
            # A waiter that was cancelled a moment ago is still in the queue, until its own task runs.
            waiting = [each for each in self._waiting if not each[1].done()]
            able = [each for each in waiting if self._having[each[0]] < self._most_of_one]
            if not able:
                return
            chosen = min(able, key=lambda each: self._having[each[0]])  # of equals the first that came
            self._waiting.remove(chosen)
            self._having[chosen[0]] += 1
            chosen[1].set_result(None)
