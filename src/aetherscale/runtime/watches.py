"""What happens to entities, told to whoever waits for it.

A story is a chain of links, one for each event. A reader holds on to the link at which it came in and walks from there
at its own pace; what no reader holds on to any more is forgotten by itself. So nobody is made to wait for a slow
reader, and nobody has to unsubscribe.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

from aetherscale.kernel.messages import Recorded
from aetherscale.kernel.registry import Entity
from aetherscale.kernel.replies import Chunk

S = TypeVar("S")


class Link(Generic[S]):
    """One thing that happened: an event with the entity after it, or a progress chunk; nothing in the first link."""

    __slots__ = ("__weakref__", "_next", "_told", "chunk", "entity", "is_whole", "recorded")

    def __init__(
        self,
        recorded: Recorded | None = None,
        entity: Entity[S] | None = None,
        chunk: Chunk | None = None,
        *,
        is_whole: bool = True,
    ) -> None:
        self.recorded = recorded
        self.entity = entity
        self.chunk = chunk
        self.is_whole = is_whole
        """Whether the entity is as a decision left it, not in the middle of its events."""
        self._next: Link[S] | None = None
        self._told = asyncio.Event()

    async def following(self) -> Link[S]:
        """The link after this one, as soon as there is one."""
        await self._told.wait()
        assert self._next is not None
        return self._next

    def continue_with(self, link: Link[S]) -> None:
        """Tell what happened next."""
        self._next = link
        self._told.set()


def is_whole(recorded: Sequence[Recorded], index: int) -> bool:
    """Whether an event is the last one in its stream of the decision that it belongs to, given what follows it."""
    event = recorded[index]
    return not any(
        later.stream == event.stream and later.command_id == event.command_id
        for later in recorded[index + 1 : index + 8]
    )


class Stories(Generic[S]):
    """The present end of each entity's story that somebody follows."""

    def __init__(self) -> None:
        self._ends: WeakValueDictionary[str, Link[S]] = WeakValueDictionary()

    def follow(self, entity_id: str) -> Link[S]:
        """Come in now: everything from here on is reached through this link."""
        link = self._ends.get(entity_id)
        if link is None:
            link = Link()
            self._ends[entity_id] = link
        return link

    def tell(self, entity_id: str, link: Link[S]) -> None:
        """Go on with an entity's story; without effect where nobody follows it."""
        end = self._ends.get(entity_id)
        if end is not None:
            self._ends[entity_id] = link
            end.continue_with(link)
