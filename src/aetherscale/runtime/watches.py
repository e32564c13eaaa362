"""The changes of aggregates, for the callers who wait for them.

A watch is a chain of changes, one for each event. A reader holds on to the change at which it came in and walks on from
there at its own pace; what no reader holds on to any more is garbage. So no publisher waits for a slow reader, and no
reader has to unsubscribe.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

from aetherscale.kernel.messages import Recorded
from aetherscale.kernel.registry import Aggregate
from aetherscale.kernel.replies import Chunk

S = TypeVar("S")


class Change(Generic[S]):
    """An event with the aggregate after it, or a progress chunk; nothing in the first change."""

    __slots__ = ("__weakref__", "_next", "_told", "aggregate", "chunk", "is_whole", "recorded")

    def __init__(
        self,
        recorded: Recorded | None = None,
        aggregate: Aggregate[S] | None = None,
        chunk: Chunk | None = None,
        *,
        is_whole: bool = True,
    ) -> None:
        self.recorded = recorded
        self.aggregate = aggregate
        self.chunk = chunk
        self.is_whole = is_whole
        """Whether the aggregate is as a decision left it, not in the middle of its events."""
        self._next: Change[S] | None = None
        self._told = asyncio.Event()

    async def following(self) -> Change[S]:
        """The change after this one, as soon as there is one."""
        await self._told.wait()
        assert self._next is not None
        return self._next

    def continue_with(self, change: Change[S]) -> None:
        """Add the change after this one."""
        self._next = change
        self._told.set()


def is_whole(recorded: Sequence[Recorded], index: int) -> bool:
    """Whether an event is the last one in its stream of the decision that it belongs to, given what follows it."""
    event = recorded[index]
    return not any(
        later.stream == event.stream and later.command_id == event.command_id
        for later in recorded[index + 1 : index + 8]
    )


class Watches(Generic[S]):
    """The last change of each aggregate that has a reader."""

    def __init__(self) -> None:
        self._ends: WeakValueDictionary[str, Change[S]] = WeakValueDictionary()

    def follow(self, aggregate_id: str) -> Change[S]:
        """Come in now: everything from here on is reached through this change."""
        change = self._ends.get(aggregate_id)
        if change is None:
            change = Change()
            self._ends[aggregate_id] = change
        return change

    def tell(self, aggregate_id: str, change: Change[S]) -> None:
        """Add a change; without effect where the aggregate has no reader."""
        end = self._ends.get(aggregate_id)
        if end is not None:
            self._ends[aggregate_id] = change
            end.continue_with(change)
