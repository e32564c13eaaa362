"""The end of the log, kept in memory for those who follow it.

A follower at the end is given what was just committed without touching a file; one further back reads pages. It keeps
a bounded number of events and knows nothing of who follows, so that a slow follower costs nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

from aetherscale.eventstore.store import Closed, Damaged, StoredEvent

PAGE_EVENTS = 1000
MOST_EVENTS = 2000
MOST_BYTES = 4 * 1024 * 1024

ReadPage = Callable[[int], Awaitable[Sequence[StoredEvent]]]


class Tail:
    """The last events of a log, and the notice that there are more. `head` is the position of the last one."""

    def __init__(self, head: int) -> None:
        self.head = head
        self._recent: list[StoredEvent] = []
        self._recent_bytes = 0
        self._grown = asyncio.Event()
        self._closed = False

    def extend(self, events: Sequence[StoredEvent]) -> None:
        """The log has grown: the events, at least one, follow `head` without a gap."""
        self._recent.extend(events)
        self._recent_bytes += sum(len(event.data) for event in events)
        while len(self._recent) > MOST_EVENTS or self._recent_bytes > MOST_BYTES:
            older = self._recent[: len(self._recent) // 2 + 1]
            del self._recent[: len(older)]
            self._recent_bytes -= sum(len(event.data) for event in older)
        self.head = events[-1].seq
        self._wake()

    def close(self) -> None:
        """There will be no more: followers end."""
        self._closed = True
        self._wake()

    async def follow(self, after: int, read_page: ReadPage) -> AsyncGenerator[Sequence[StoredEvent], None]:
        """All events after a position, for ever; `read_page` is asked for those that memory has no longer."""
        position = after
        while not self._closed:
            if position >= self.head:
                await self._grown.wait()
                continue
            page = self._since(position)
            if not page:
                try:
                    page = await read_page(position)
                except Closed:
                    return
            if not page:
                raise Damaged(f"the log ends at event {position}, but event {self.head} was written", position)
            position = page[-1].seq
            yield page

    def _since(self, position: int) -> Sequence[StoredEvent]:
        """The events after a position; none where memory does not reach back to it."""
        start = position - (self.head - len(self._recent))
        return self._recent[start : start + PAGE_EVENTS] if start >= 0 else ()

    def _wake(self) -> None:
        self._grown.set()
        self._grown = asyncio.Event()
