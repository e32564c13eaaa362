"""The fold of what happens, for all readers of changes: it begins with the first reader and ends with the last one.

It begins from the objects as the node knows them, so nothing of the past is folded here; a reader who wants more of
that than is kept asks the historian first.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from typing import Any, Final

import msgspec
from msgspec import Struct

from aetherscale.bus.tasks import Tasks
from aetherscale.components import kinds
from aetherscale.debugger.changes import EventChange, Wanted, change_of
from aetherscale.gateways.http.port import Inside
from aetherscale.kernel.messages import Recorded, split_stream
from aetherscale.kernel.registry import Kind, advance

MAX_KEPT: Final = 1000
"""The newest changes that are kept as they are sent, for all readers; the historian tells those of before."""


class Kept(Struct, frozen=True):
    """A change as it is sent."""

    seq: int
    tenant: str
    change: EventChange
    data: bytes


class Live:
    """What happens, as changes, from a position on."""

    def __init__(self, inside: Inside) -> None:
        self._inside = inside
        self._kinds: Mapping[str, Kind[Any]] = {kind.name: kind for kind in kinds()}
        self._node = inside.node
        self.head, standing = inside.standing()
        """The last event that is folded."""
        self._objects = {kind: dict(standing[kind]) for kind in self._kinds}
        self.begin = self.head
        """All changes after this event are kept."""
        self.is_ended = False
        self._kept: deque[Kept] = deque()
        self._grown = asyncio.Event()
        self._following = Tasks("http changes")
        self._following.spawn(self._follow(), "follow")

    async def close(self) -> None:
        """Follow no more."""
        await self._following.close()

    def since(self, position: int, tenant: str, wanted: Wanted) -> list[Kept]:
        """The changes after a position, from `begin` on, that a reader wants."""
        found: list[Kept] = []
        for kept in reversed(self._kept):
            if kept.seq <= position:
                break
            if kept.tenant == tenant and wanted.has(kept.change):
                found.append(kept)
        return found[::-1]

    async def grown(self, position: int) -> None:
        """Wait until there are events after a position, or no more come."""
        while self.head <= position and not self.is_ended:
            await self._grown.wait()

    async def _follow(self) -> None:
        try:
            async with aclosing(self._inside.events(self.head)) as pages:
                async for page in pages:
                    self._fold(page)
                    self._tell()
        finally:
            self.is_ended = True
            self._tell()

    def _tell(self) -> None:
        self._grown.set()
        self._grown = asyncio.Event()

    def _fold(self, page: Sequence[Recorded]) -> None:
        for recorded in page:
            name, aggregate_id = split_stream(recorded.stream)
            kind = self._kinds.get(name)
            if kind is not None:
                before = self._objects[name].get(aggregate_id)
                after = advance(kind, before, recorded, aggregate_id)
                self._objects[name][aggregate_id] = after
                change = change_of(kind, self._node, before, after, recorded)
                self._kept.append(Kept(recorded.seq, recorded.tenant, change, msgspec.json.encode(change)))
                if len(self._kept) > MAX_KEPT:
                    self.begin = self._kept.popleft().seq
            self.head = recorded.seq
